"""Bounding-box regression (R-CNN): from features of a box to the target's box, ridge regression on the first frame."""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1000.0
_SMALLEST_VARIANCE = 1e-3


class BoxRegressor:
    """Shift of the centre in units of the box, and log of the change in size, linear in the features (n, F).

    ``whiten`` decorrelates the four targets and puts the intercept under the ridge, as R-CNN and MDNet in MATLAB do;
    else features and targets are centred, as scikit-learn's Ridge does for PyMDNet.
    """

    def __init__(self, whiten: bool = False) -> None:
        self.whiten = whiten
        self.slope = torch.empty(0)
        self.offset = torch.empty(0)

    def fit(self, features: Tensor, boxes: Tensor, truth: Tensor) -> None:
        """Learn from the features of ``boxes`` (n, 4) around ``truth`` (4,); solved in n x n (n < F)."""
        x, y = features.double().cpu(), _targets(boxes, truth)
        if self.whiten:
            back, y_mean = torch.eye(4, dtype=y.dtype), y.mean(dim=0)
            y = y - y_mean
            values, vectors = torch.linalg.eigh(y.T @ y / len(y))
            spread = (values.clamp(min=0) + _SMALLEST_VARIANCE).sqrt()
            y, back = y @ (vectors / spread) @ vectors.T, (vectors * spread) @ vectors.T
            x = torch.cat([x, torch.ones(len(x), 1, dtype=x.dtype)], dim=1)
            slope = _ridge(x, y) @ back
            self.slope, self.offset = slope[:-1], slope[-1] + y_mean
        else:
            x_mean, y_mean = x.mean(dim=0), y.mean(dim=0)
            self.slope = _ridge(x - x_mean, y - y_mean)
            self.offset = y_mean - x_mean @ self.slope

    def predict(self, features: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """(n, 4): the target's box as each of ``boxes`` (n, 4) tells it, cut at the image's borders."""
        shift = features.double().cpu() @ self.slope + self.offset
        centre = boxes[:, :2] + boxes[:, 2:] / 2 + shift[:, :2] * boxes[:, 2:]
        sides = boxes[:, 2:] * shift[:, 2:].exp()
        limit = torch.tensor(size, dtype=torch.float64)
        low = torch.minimum((centre - sides / 2).clamp(min=0), limit - 1)
        high = torch.minimum(torch.maximum(centre + sides / 2, low + 1), limit)
        return torch.cat([low, high - low], dim=1)


def _targets(boxes: Tensor, truth: Tensor) -> Tensor:
    shift = (truth[:2] + truth[2:] / 2) - (boxes[:, :2] + boxes[:, 2:] / 2)
    return torch.cat([shift / boxes[:, 2:], (truth[2:] / boxes[:, 2:]).log()], dim=1)


def _ridge(x: Tensor, y: Tensor) -> Tensor:
    """argmin |x w - y|^2 + 1000 |w|^2."""
    kernel = x @ x.T
    kernel.diagonal().add_(RIDGE)
    return x.T @ torch.linalg.solve(kernel, y)
