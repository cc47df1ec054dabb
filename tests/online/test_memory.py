"""Bytes: what is stated is what there is, before and after learning, and learning adds none."""

from __future__ import annotations

import gc
import tracemalloc

import numpy as np
import pytest

from torchdfa.errors import UsageError
from torchdfa.online import OnlineHead


def real(head):
    """Bytes of the arrays and buffers that a head holds, by part."""
    layers = head.network_.layers
    copies = [l.sender.nbytes for l in layers if l.sender is not None and head.rule == "bdfa"]  # noqa: E741
    buffers = [b.numel() * b.element_size() for l in layers if l.feedback is not None for b in l.feedback.buffers()]  # noqa: E741
    return {
        "weights": sum(l.weight.nbytes + l.bias.nbytes for l in layers),  # noqa: E741
        "optimizer": sum(part.nbytes for l in layers for part in l.momentum or ()),  # noqa: E741
        "feedback": sum(buffers) + sum(copies),
        "feedback_stored": sum(buffers),
        "replay": 0 if head.replay_ is None else head.replay_.rows.nbytes + head.replay_.came.nbytes,
    }


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "bdfa", "frozen"])
def test_stated_before_the_first_update_and_true_after_it(rule, keep):
    made = {"hidden_layer_sizes": (24, 17), "momentum": 0.9, "replay": 3, "keep_signs": keep}
    head = OnlineHead(features=20, classes=5, rule=rule, **made)
    stated = head.memory()
    random = np.random.default_rng(0)
    head.partial_fit(random.standard_normal((30, 20)), random.integers(0, 5, 30))
    assert head.memory() == stated
    assert real(head).items() <= stated.to_dict().items()
    assert stated.gradients == 0
    head.add_class(5)
    assert real(head).items() <= head.memory().to_dict().items()


def test_a_head_of_512_and_10_classes():
    """640 bytes of one-bit feedback and its scale, where dense feedback takes 32 times that; a copy for speed."""
    bits, dense = (OnlineHead(512, 10, rule=rule).memory() for rule in ("bdfa", "dfa"))
    assert bits.weights == 4 * (512 * 512 + 512 + 512 * 10 + 10)
    assert bits.feedback_stored == 640 + 4
    assert bits.feedback == 644 + 20_480
    assert OnlineHead(512, 10, keep_signs=False).memory().feedback == 644
    assert dense.feedback == dense.feedback_stored == 20_480
    assert OnlineHead(512, 10, rule="bp").memory().feedback == 0


def test_text():
    text = str(OnlineHead(512, 10).memory())
    assert "weights          1,071,144\n" in text
    assert "gradients                0\n" in text
    assert "feedback            21,124  (644 in a file)" in text
    with pytest.raises(UsageError, match="needs the sizes"):
        OnlineHead(512).memory()


@pytest.mark.parametrize("parameters", [{}, {"rule": "bp", "momentum": 0.9}, {"replay": 4}, {"keep_signs": False}])
def test_an_update_takes_what_is_stated_and_leaves_nothing(parameters):
    """numpy's memory as Python traces it: the peak of an update is within activations, and a thousand add nothing."""
    tracemalloc.start()
    head = OnlineHead(features=256, classes=10, hidden_layer_sizes=(256,), learning_rate=1e-3, **parameters)
    random = np.random.default_rng(0)
    x, y = random.standard_normal((1300, 256)).astype(np.float32), random.integers(0, 10, 1300)
    for i in range(300):
        head.partial_fit(x[i : i + 1], y[i : i + 1])
    gc.collect()
    before, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    for i in range(300, 1300):
        head.partial_fit(x[i : i + 1], y[i : i + 1])
    _, peak = tracemalloc.get_traced_memory()
    gc.collect()
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert after - before < 4096
    assert peak - before < head.memory().activations + head.memory().scaler + 32_768  # Python's own
    assert peak - before < head.memory().weights / 2  # nowhere is there a gradient
