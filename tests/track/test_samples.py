from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchdfa.errors import RunError
from torchdfa.track.boxes import overlap
from torchdfa.track.samples import Spread, draw, draw_overlapping, require

SIZE = (160, 120)
KINDS = [Spread("gaussian", 0.6, 1.05), Spread("uniform", 1.0, 1.6, 1.1), Spread("whole", 0.0, 1.6)]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@settings(deadline=None)
@given(
    st.tuples(st.floats(-20, 150), st.floats(-20, 110), st.floats(1, 200), st.floats(1, 200)),
    st.sampled_from(KINDS),
    st.integers(0, 99),
)
def test_boxes_lie_in_the_image_and_are_of_10_pixels_at_least(box, spread, seed):
    drawn = draw(spread, torch.tensor(box, dtype=torch.float64), 50, SIZE, generator(seed)).numpy()
    assert (drawn[:, 2:] >= 10).all()
    assert (drawn[:, :2] >= -1e-9).all()
    assert (drawn[:, :2] + drawn[:, 2:] <= np.array(SIZE) + 1e-9).all()


def test_candidates_spread_as_far_as_the_paper_says():
    box = torch.tensor([70.0, 50, 20, 20], dtype=torch.float64)
    drawn = draw(Spread("gaussian", 0.6, 1.05), box, 20_000, SIZE, generator())
    shift = (drawn[:, :2] + drawn[:, 2:] / 2) - torch.tensor([80.0, 60.0])
    assert shift.abs().max() == pytest.approx(0.6 * 20)
    # N(0, 1/2) clipped at +-1: variance 0.25 P(|z|<2) - 2 * 0.25 * 2 phi(2) + P(|z|>2)
    clipped = 0.25 * (0.9545 - 2 * 2 * 0.05399) + 0.0455
    assert float(shift.std()) == pytest.approx(12 * clipped**0.5, rel=0.02)
    ratio = (drawn[:, 2] / 20).log() / np.log(1.05)
    assert ratio.abs().max() == pytest.approx(1)


@pytest.mark.parametrize("low, high", [(0.7, 1.0), (0.0, 0.5), (0.0, 0.3)])
def test_overlaps_are_those_asked_for(low, high):
    box = torch.tensor([70.0, 50, 20, 24], dtype=torch.float64)
    spread = Spread("gaussian", 0.1, 1.3) if low else Spread("uniform", 1.0, 1.6)
    drawn = draw_overlapping(spread, box, 200, SIZE, generator(), low=low, high=high)
    ious = overlap(drawn.numpy(), box.numpy())
    assert len(drawn) == 200
    assert ((ious >= low) & (ious <= high)).all()


def test_areas_can_be_bounded():
    box = torch.tensor([70.0, 50, 20, 24], dtype=torch.float64)
    drawn = draw_overlapping(Spread("uniform", 0.3, 1.6, 1.1), box, 100, SIZE, generator(), low=0.6, areas=(1, 2))
    ratio = drawn[:, 2:].prod(dim=1) / (20 * 24)
    assert ((ratio >= 1) & (ratio <= 2)).all()


def test_too_few_are_said_and_none_is_an_error():
    box = torch.tensor([0.0, 0, 158, 118], dtype=torch.float64)
    none = draw_overlapping(Spread("uniform", 1.0, 1.3), box, 20, SIZE, generator(), high=0.3)
    with pytest.raises(RunError, match="no negative samples"):
        require(none, 20, "negative", box)
    with pytest.warns(UserWarning, match="only 2 of 20 positive"):
        require(box.repeat(2, 1), 20, "positive", box)
