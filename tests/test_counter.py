from __future__ import annotations

import hashlib
import math

import pytest
import torch

from torchdfa.counter import random_matrix, stream_key


def splitmix64(state: int) -> int:
    """The published algorithm in Python's own integers."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_words_are_splitmix64() -> None:
    from torchdfa.counter import _words

    key = stream_key(7, "fc1")
    found = [word % 2**64 for word in _words(key, 3, 5).tolist()]
    assert found == [splitmix64((key + i * 0x9E3779B97F4A7C15) % 2**64) for i in range(3, 8)]


@pytest.mark.parametrize("distribution", ["normal", "uniform", "sign"])
def test_moments(distribution: str) -> None:
    values = random_matrix(400, 500, distribution, stream_key(0, "x")).double()
    assert abs(float(values.mean())) < 4 / math.sqrt(values.numel())
    assert abs(float(values.square().mean()) - 1) < 0.02
    correlation = (values[:, 1:] * values[:, :-1]).mean()
    assert abs(float(correlation)) < 0.01


def test_normal_tails_and_uniform_range() -> None:
    normal = random_matrix(1000, 200, "normal", 1)
    assert abs(float((normal.abs() > 2).double().mean()) - 0.0455) < 0.003
    uniform = random_matrix(1000, 200, "uniform", 1)
    assert 1.73 < float(uniform.max()) < math.sqrt(3)


def test_signs_are_those_of_the_other_distributions() -> None:
    key = stream_key(3, "layer")
    signs = random_matrix(20, 30, "sign", key)
    for distribution in ("normal", "uniform"):
        assert torch.equal(random_matrix(20, 30, distribution, key).sign(), signs)


def test_block_size_and_added_rows_change_nothing() -> None:
    key = stream_key(5, "head.0")
    whole = random_matrix(6, 11, "normal", key)
    assert torch.equal(random_matrix(6, 11, "normal", key, block=7), whole)
    assert torch.equal(random_matrix(9, 11, "normal", key)[:6], whole)


def test_seed_and_name_both_matter() -> None:
    a, b, c = (random_matrix(4, 64, "normal", stream_key(*k)) for k in ((0, "a"), (0, "b"), (1, "a")))
    assert not torch.equal(a, b)
    assert not torch.equal(a, c)


def test_golden_values_do_not_change() -> None:
    """A change here changes everyone's random feedback: it needs an entry in the changelog."""
    signs = random_matrix(10, 100, "sign", stream_key(0, "classifier.0"))
    digest = hashlib.sha256((signs > 0).numpy().tobytes()).hexdigest()
    assert digest[:16] == "710dd8f265cf0d27"
    normal = random_matrix(1, 4, "normal", stream_key(0, "classifier.0"))
    assert normal[0].tolist() == pytest.approx(
        [-0.046423643827438354, -0.029880419373512268, -1.0897079706192017, -1.5132561922073364], rel=1e-6
    )
