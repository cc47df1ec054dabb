from __future__ import annotations

import numpy as np
import pytest

from torchdfa.errors import UsageError
from torchdfa.track.protocols import PROTOCOLS, curves, protocol

TRUTH = np.tile([50.0, 40.0, 20.0, 10.0], (4, 1))


def moved(by):
    """Results that are off by so many pixels to the right in each frame."""
    result = TRUTH.copy()
    result[:, 0] += by
    return result


def test_curves_computed_by_hand():
    """Off by 0, 5, 10, 25 of 20 pixels: overlaps 1, 3/5, 1/3, 0."""
    found = curves(moved([0, 5, 10, 25]), TRUTH)
    expected = [sum(o > t / 20 for o in (1, 0.6, 1 / 3, 0)) / 4 for t in range(21)]
    assert found.success.tolist() == expected
    assert expected[0] == 0.75
    assert (expected[6], expected[7], expected[11], expected[12], expected[20]) == (0.75, 0.5, 0.5, 0.25, 0)
    assert found.auc == sum(expected) / 21
    assert (found.op50, found.op75) == (0.5, 0.25)
    assert [found.precision[d] for d in (0, 4, 5, 10, 24, 25)] == [0.25, 0.25, 0.5, 0.75, 0.75, 1]
    assert found.precision20 == 0.75
    assert found.mean_overlap == pytest.approx((1 + 0.6 + 1 / 3) / 4)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_truth_itself_gets_20_of_21(name):
    found = curves(TRUTH, TRUTH, name)
    assert found.auc == 20 / 21
    assert found.precision20 == 1


# What the toolkits make of odd rows, in half of 200 frames of which the others are exact: AUC x 21, precision.
ODD = {
    "truth touches the left edge": {"got10k": (20, 1), "pysot": (20, 1), "pytracking": (10, 0.5), "otb": (10, 1)},
    "truth has no area": {"got10k": (10, 0.5), "pysot": (10, 1), "pytracking": (10, 0.5), "otb": (10, 1)},
    "result has no area": {"got10k": (10, 0.5), "pysot": (10, 0.5), "pytracking": (20, 1), "otb": (20, 1)},
}


@pytest.mark.parametrize("name", PROTOCOLS)
@pytest.mark.parametrize("case", ODD)
def test_where_the_toolkits_disagree(case, name):
    truth = np.tile([50.0, 40.0, 20.0, 10.0], (200, 1))
    result = truth.copy()
    half = slice(1, None, 2)
    if case == "truth touches the left edge":
        truth[half, 0] = result[half, 0] = 0
    elif case == "truth has no area":
        truth[half] = 0
    else:
        result[half] = 0
    found = curves(result, truth, name)
    auc, precision = ODD[case][name]
    assert found.auc * 21 == pytest.approx(auc)
    assert found.precision20 == precision


def test_nan_is_a_miss_repeated_or_refused():
    result = moved([0, 0, 0, 0])
    result[2] = np.nan
    assert curves(result, TRUTH, "got10k").success[0] == 0.75
    assert curves(result, TRUTH, "otb").success[0] == 1
    assert curves(result, TRUTH, "otb").repaired == 1
    with pytest.raises(UsageError, match="refuses"):
        curves(result, TRUTH, "pytracking")


def test_the_first_frame_is_the_truth_but_for_pysot():
    result = moved([100, 0, 0, 0])
    assert curves(result, TRUTH, "otb").success[0] == 1
    assert curves(result, TRUTH, "pysot").success[0] == 0.75


def test_short_results_are_an_error_or_padded():
    with pytest.raises(UsageError, match="3 boxes for 4 frames"):
        curves(TRUTH[:3], TRUTH)
    assert curves(TRUTH[:3], TRUTH, "pytracking").success[0] == 0.75


def test_nothing_cannot_be_scored():
    with pytest.raises(UsageError, match="0 frames"):
        curves(TRUTH[:0], TRUTH[:0])
    with pytest.raises(UsageError, match="must be one of otb"):
        protocol("vot")
