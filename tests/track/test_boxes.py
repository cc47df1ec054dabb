from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from torchdfa.track.boxes import centre_error, centres, enclosing, overlap

numbers = st.integers(-50, 50)
sizes = st.integers(1, 40)
box = st.tuples(numbers, numbers, sizes, sizes)


def by_counting(a, b):
    """The overlap of two boxes of whole pixels, pixel by pixel."""
    pixels = [{(x, y) for x in range(q[0], q[0] + q[2]) for y in range(q[1], q[1] + q[3])} for q in (a, b)]
    return len(pixels[0] & pixels[1]) / len(pixels[0] | pixels[1])


@given(box, box)
def test_overlap_equals_the_count_of_pixels(a, b):
    assert overlap(a, b)[0] == by_counting(a, b)
    assert overlap(b, a)[0] == overlap(a, b)[0]


def test_two_boxes_without_area_overlap_by_zero_and_nan_stays():
    assert overlap([5, 5, 0, 0], [5, 5, 0, 0])[0] == 0
    assert np.isnan(overlap([np.nan, 5, 1, 1], [5, 5, 1, 1])[0])


def test_the_centre_is_that_of_the_pixels():
    assert centres([10, 20, 5, 4]).tolist() == [[12, 21.5]]
    assert centre_error([0, 0, 1, 1], [3, 4, 1, 1])[0] == 5


def test_a_polygon_becomes_the_box_around_it():
    assert enclosing([0, 5, 10, 0, 20, 5, 10, 12]).tolist() == [[0, 0, 20, 12]]
