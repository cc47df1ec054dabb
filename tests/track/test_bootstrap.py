from __future__ import annotations

import numpy as np
import pytest

from torchdfa.errors import UsageError
from torchdfa.track.bootstrap import compare


def scores(values):
    return {f"s{k}": float(v) for k, v in enumerate(values)}


def test_noise_is_no_difference():
    random = np.random.default_rng(1)
    a, b = random.normal(0.5, 0.2, 15), random.normal(0.5, 0.2, 15)
    found = compare(scores(a), scores(b))
    assert found.low <= 0 <= found.high
    assert found.verdict == "no difference"
    assert found.wins + found.losses == found.n == 15
    assert "no difference" in str(found)


def test_a_constant_lead_is_one_and_the_sign_says_whose():
    a = np.linspace(0.2, 0.8, 12)
    assert compare(scores(a + 0.05), scores(a)).verdict == "better"
    assert compare(scores(a), scores(a + 0.05)).verdict == "worse"
    assert compare(scores(a), scores(a + 0.05)).difference == pytest.approx(-0.05)


def test_the_interval_covers_as_often_as_it_says():
    """Of 200 samples of 30 differences around 0.1 about 95 % hold it; 5 standard errors of room for 200 tries."""
    random = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        found = compare(scores(random.normal(0.1, 1, 30)), scores(np.zeros(30)), resamples=1000)
        held += found.low <= 0.1 <= found.high
    assert 0.85 < held / 200 <= 1


def test_what_cannot_be_paired():
    with pytest.raises(UsageError, match="one only"):
        compare({"a": 1.0, "b": 1.0}, {"a": 1.0, "c": 1.0})
    with pytest.raises(UsageError, match="at least 2"):
        compare({"a": 1.0}, {"a": 1.0})
