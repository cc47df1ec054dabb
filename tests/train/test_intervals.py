from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchdfa.train.intervals import difference, wilson


@pytest.mark.parametrize(
    "hits, n, low, high",
    [  # Newcombe, Statistics in Medicine 17 (1998) 857-872, table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_equals_published_values(hits, n, low, high):
    assert wilson(hits / n, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(
    "a, n_a, b, n_b, low, high",
    [  # the same author, Statistics in Medicine 17 (1998) 873-890, table II, method 10
        (56, 70, 48, 80, 0.0524, 0.3339),
        (9, 10, 3, 10, 0.1705, 0.8090),
        (10, 10, 0, 20, 0.6791, 1.0),
    ],
)
def test_difference_equals_published_values(a, n_a, b, n_b, low, high):
    assert difference(a / n_a, n_a, b / n_b, n_b) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 10**6), st.data())
def test_the_interval_holds_the_share_and_stays_within_0_and_1(n, data):
    share = data.draw(st.integers(0, n)) / n
    low, high = wilson(share, n)
    assert 0 <= low <= share <= high <= 1


def test_a_hundred_photos_leave_eight_points_open():
    low, high = wilson(0.8, 100)
    assert (100 * low, 100 * high) == pytest.approx((71.1, 86.7), abs=0.05)
