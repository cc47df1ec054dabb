"""Running mean and variance: those of all rows, whatever the pieces; constant and broken features."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchdfa.online.scaler import FURTHEST, new_scaler


def learned(x, pieces, weights=None):
    scaler = new_scaler(x.shape[1])
    weights = np.ones(len(x)) if weights is None else weights
    for part in np.split(np.arange(len(x)), pieces):
        if len(part):
            scaler, _ = scaler.after(x[part], weights[part])
    return scaler


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 99), max_size=5).map(sorted), st.integers(0, 2**31))
def test_statistics_are_those_of_all_rows(pieces, seed):
    """Where no row is drawn in: after a first piece of two rows nearly alike, all later ones would be."""
    random = np.random.default_rng(seed)
    x = random.standard_normal((100, 3)) * [1, 1e-3, 1e4] + [5, 0, -1e4]
    weights = random.uniform(0.1, 3, 100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torchdfa.online.scaler.FURTHEST", np.inf)
        scaler = learned(x, pieces, weights)
    mean = np.average(x, axis=0, weights=weights)
    np.testing.assert_allclose(scaler.mean, mean, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        scaler.squares / scaler.weight, np.average((x - mean) ** 2, axis=0, weights=weights), rtol=1e-9
    )


def test_rows_are_scaled_with_themselves_counted():
    x = np.random.default_rng(0).standard_normal((50, 4)) * 7 + 3
    _, scaled = new_scaler(4).after(x, np.ones(50))
    np.testing.assert_allclose(scaled, (x - x.mean(0)) / x.std(0), rtol=1e-12)


def test_the_scale_is_at_most_a_hundredth_of_the_stream_old():
    x = np.random.default_rng(0).standard_normal((3000, 2))
    scaler = learned(x, range(1, 3000))
    assert scaler.taken_at >= 3000 / 1.02
    np.testing.assert_allclose(1 / scaler.inverse, x.std(0), rtol=0.02)


def test_a_constant_feature_carries_nothing_until_it_moves():
    x = np.full((200, 2), 0.1)
    x[:, 1] = np.arange(200)
    scaler = learned(x, range(1, 200))
    assert scaler.inverse[0] == 0
    x[:, 0] = np.arange(200)
    moved = scaler
    for row in x:
        moved, scaled = moved.after(row[None], np.ones(1))
    assert moved.inverse[0] > 0
    assert np.isfinite(scaled).all()


def test_one_broken_reading_does_not_take_the_scale_away():
    x = np.random.default_rng(0).standard_normal((1000, 3))
    scaler = learned(x, range(1, 1000))
    broken, scaled = scaler.after(np.array([[1e30, 0.0, 0.0]]), np.ones(1))
    assert abs(scaled[0, 0]) <= FURTHEST
    assert broken.rescaled().inverse[0] > 0.5 * scaler.inverse[0]
    assert broken.squares[1] == pytest.approx(scaler.squares[1], rel=1e-2)


def test_the_old_statistics_stay_as_they_were():
    scaler = learned(np.random.default_rng(0).standard_normal((10, 3)), [5])
    before = [np.copy(part) for part in scaler]
    scaler.after(np.ones((2, 3)), np.ones(2))
    assert all(np.array_equal(a, b) for a, b in zip(scaler, before, strict=True))
