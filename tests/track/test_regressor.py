from __future__ import annotations

import numpy as np
import pytest
import torch

from torchdfa.track.regressor import RIDGE, BoxRegressor


def data(n=60, features=200, seed=0):
    """Features that are, up to noise, linear in how each box lies to the target."""
    g = torch.Generator().manual_seed(seed)
    truth = torch.tensor([50.0, 40, 20, 10], dtype=torch.float64)
    boxes = truth + torch.randn(n, 4, generator=g, dtype=torch.float64) * torch.tensor([4.0, 4, 1, 1])
    boxes[:, 2:] = boxes[:, 2:].clamp(min=5)
    shift = ((truth[:2] + truth[2:] / 2) - (boxes[:, :2] + boxes[:, 2:] / 2)) / boxes[:, 2:]
    targets = torch.cat([shift, (truth[2:] / boxes[:, 2:]).log()], dim=1)
    x = targets @ torch.randn(4, features, generator=g, dtype=torch.float64) * 30 + 2
    return x.float(), boxes, truth, targets


def test_the_kernel_form_equals_scikit_learns_ridge():
    from sklearn.linear_model import Ridge

    x, boxes, truth, targets = data()
    ours = BoxRegressor()
    ours.fit(x, boxes, truth)
    theirs = Ridge(alpha=RIDGE).fit(x.double().numpy(), targets.numpy())
    assert np.allclose(ours.slope.numpy(), theirs.coef_.T, atol=1e-9)
    assert np.allclose(ours.offset.numpy(), theirs.intercept_, atol=1e-9)


@pytest.mark.parametrize("whiten", [False, True])
def test_boxes_around_are_brought_to_the_target(whiten):
    x, boxes, truth, _ = data()
    regressor = BoxRegressor(whiten)
    regressor.fit(x, boxes, truth)
    found = regressor.predict(x, boxes, (160, 120))
    assert (found - truth).abs().max() < 1.0
    assert (boxes - truth).abs().max() > 5


def test_predictions_are_cut_at_the_border():
    x, boxes, truth, _ = data()
    regressor = BoxRegressor()
    regressor.fit(x, boxes, truth)
    found = regressor.predict(x[:3], boxes[:3], (60, 45))
    assert (found[:, 0] + found[:, 2] <= 60).all()
    assert (found[:, 1] + found[:, 3] <= 45).all()
    assert (found[:, 2:] > 0).all()
