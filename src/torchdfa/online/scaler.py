"""Inputs brought to mean 0 and variance 1 by statistics that grow with the stream."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Rows = NDArray[np.floating[Any]]

# Values further from the mean than this many standard deviations are drawn in to there, so that one broken reading
# neither sets the scale of a feature for ever nor drives an update.
FURTHEST = 10.0
# A standard deviation below this part of the mean is rounding: the feature is constant.
ROUNDING = 1e-12
# The scale is taken anew whenever the stream has grown by this part: a third of the time of doing it at each row.
GROWTH = 0.01


class Scaler(NamedTuple):
    """Running mean and sum of squared deviations (features,) over rows of total ``weight`` (Chan et al., 1983).

    ``inverse`` is 1 / std as of ``taken_at`` rows, and 0 where the feature was constant: it carries nothing then.
    """

    mean: Vector
    squares: Vector
    weight: float
    inverse: Vector
    taken_at: float

    def after(self, x: Rows, weights: Vector) -> tuple[Scaler, Vector]:
        """The statistics with the rows of ``x`` (rows, features) counted ``weights`` times each, and they scaled."""
        near = self._near(x)
        added = float(weights.sum()) if len(weights) > 1 else float(weights[0])
        total = self.weight + added
        shift, within = (near[0], None) if len(near) == 1 else _moments(near, weights / added)
        step = shift * (added / total)
        squares = self.squares + shift * shift * (self.weight * added / total)
        if within is not None:
            squares += within * added
        grown = Scaler(self.mean + step, squares, total, self.inverse, self.taken_at)
        if total >= self.taken_at * (1 + GROWTH):
            grown = grown.rescaled()
        return grown, (near - step) * grown.inverse

    def rescaled(self) -> Scaler:
        """With the scale of the present statistics."""
        std = np.sqrt(self.squares / self.weight)
        constant = std <= ROUNDING * np.abs(self.mean)
        inverse = np.divide(1.0, std, out=np.zeros_like(std), where=~constant)
        return self._replace(inverse=inverse, taken_at=self.weight)

    def scaled(self, x: Rows) -> Vector:
        """(x - mean) / std of each feature, (rows, features)."""
        return self._near(x) * self.inverse

    def _near(self, x: Rows) -> Vector:
        """x - mean, drawn in to FURTHEST standard deviations."""
        deviations: Vector = x - self.mean
        scaled = deviations * self.inverse
        squares = scaled * scaled
        if not np.vdot(squares, squares) <= FURTHEST**4:  # a sum that tells of most single rows that none is further
            np.divide(np.sign(scaled) * FURTHEST, self.inverse, out=deviations, where=squares > FURTHEST**2)
        return deviations


def new_scaler(features: int) -> Scaler:
    """Before the first row."""
    return Scaler(np.zeros(features), np.zeros(features), 0.0, np.zeros(features), 0.0)


def _moments(rows: Vector, shares: Vector) -> tuple[Vector, Vector]:
    """Weighted mean and variance of rows."""
    mean = shares @ rows
    return mean, shares @ (rows - mean) ** 2
