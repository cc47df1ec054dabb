from __future__ import annotations

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchdfa.errors import RunError
from torchdfa.train.metrics import metrics


def slow_metrics(logits, labels, k):
    """The same figures, one sample at a time in plain Python."""
    confusion = [[0] * k for _ in range(k)]
    hits1 = hits5 = 0
    loss = 0.0
    for row, label in zip(logits, labels, strict=True):
        order = sorted(range(k), key=lambda j: (-row[j], j))
        hits1 += order[0] == label
        hits5 += label in order[:5]
        confusion[label][order[0]] += 1
        loss += math.log(sum(math.exp(v) for v in row)) - row[label]
    recalls = [row[i] / sum(row) for i, row in enumerate(confusion) if sum(row)]
    n = len(labels)
    return {
        "top1": 100 * hits1 / n,
        "top5": 100 * hits5 / n if k > 5 else None,
        "loss": loss / n,
        "balanced_accuracy": 100 * sum(recalls) / len(recalls),
        "confusion": confusion,
        "samples": n,
    }


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 2**32 - 1))
def test_equals_the_slow_reference(n, k, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-3, 4, (n, k), generator=generator).double()  # integers: many ties
    labels = torch.randint(0, k, (n,), generator=generator)
    fast = metrics(logits, labels, [str(i) for i in range(k)])
    slow = slow_metrics(logits.tolist(), labels.tolist(), k)
    assert fast.pop("loss") == pytest.approx(slow.pop("loss"), abs=1e-12)
    assert fast.pop("balanced_accuracy") == pytest.approx(slow.pop("balanced_accuracy"), abs=1e-12)
    assert fast == slow
    json.dumps(fast, allow_nan=False)


def test_known_values():
    logits = torch.eye(7)[[0, 0, 0, 1]] * 50
    figures = metrics(logits, torch.tensor([0, 0, 1, 1]), "abcdefg")
    assert figures["top1"] == 75.0
    assert figures["balanced_accuracy"] == 75.0
    assert figures["confusion"][1][:2] == [1, 1]
    assert figures["loss"] == pytest.approx(12.5)


def test_balanced_accuracy_does_not_reward_the_large_class():
    logits = torch.tensor([[1.0, 0.0]] * 10)
    figures = metrics(logits, torch.tensor([0] * 9 + [1]), ["cat", "dog"])
    assert (figures["top1"], figures["balanced_accuracy"]) == (90.0, 50.0)


def test_top5_says_nothing_with_five_classes():
    assert metrics(torch.eye(5), torch.arange(5), "abcde")["top5"] is None
    assert metrics(torch.eye(6), torch.arange(6), "abcdef")["top5"] == 100.0


def test_half_precision_outputs_are_taken():
    logits = torch.randn(20, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(20) % 8
    assert metrics(logits, labels, "abcdefgh") == metrics(logits.double(), labels, "abcdefgh")


def test_outputs_that_are_not_numbers_are_refused():
    with pytest.raises(RunError, match="NaN or infinity"):
        metrics(torch.tensor([[0.0, float("nan")]]), torch.tensor([0]), "ab")


@pytest.mark.parametrize(
    "logits, labels",
    [
        (torch.zeros(2, 3), [0, 1]),
        (torch.zeros(2, 2), [0]),
        (torch.zeros(0, 2), []),
        (torch.zeros(1, 2), [2]),
    ],
)
def test_shapes_that_do_not_fit_are_refused(logits, labels):
    with pytest.raises(ValueError, match="labels"):
        metrics(logits, torch.tensor(labels, dtype=torch.long), "ab")
