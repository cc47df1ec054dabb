"""Boxes as rows of x, y, w, h in pixels: overlap, centres, distance."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

Boxes: TypeAlias = NDArray[np.float64]


def as_boxes(values: ArrayLike) -> Boxes:
    """float64 (n, 4); a single box becomes one row."""
    return np.asarray(values, dtype=np.float64).reshape(-1, 4)


def overlap(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Intersection over union (n,) of boxes (n, 4), or of one box with each; 0 where both areas are 0.

    Coordinates are continuous. The "+1" and "-1" of forms that count pixels cancel: they give the same number.
    NaN stays NaN.
    """
    a, b = as_boxes(a), as_boxes(b)
    low, high = np.maximum(a[:, :2], b[:, :2]), np.minimum(a[:, :2] + a[:, 2:], b[:, :2] + b[:, 2:])
    shared = np.clip(high - low, 0, None).prod(axis=1)
    union = a[:, 2:].prod(axis=1) + b[:, 2:].prod(axis=1) - shared
    return np.divide(shared, union, out=np.where(np.isnan(union), np.nan, 0.0), where=~np.isnan(union) & (union != 0))


def centres(boxes: ArrayLike) -> NDArray[np.float64]:
    """(n, 2): the centre pixel, x + (w - 1) / 2 as the benchmark's authors count it."""
    boxes = as_boxes(boxes)
    return boxes[:, :2] + (boxes[:, 2:] - 1) / 2


def centre_error(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Distance (n,) between the centres, in pixels."""
    return np.sqrt(((centres(a) - centres(b)) ** 2).sum(axis=1))


def enclosing(polygons: ArrayLike) -> Boxes:
    """The upright box around each polygon of four corners (n, 8)."""
    corners: Any = np.asarray(polygons, dtype=np.float64).reshape(-1, 4, 2)
    low, high = corners.min(axis=1), corners.max(axis=1)
    return np.concatenate([low, high - low], axis=1)
