"""What a head is given, checked as scikit-learn checks it; a refused input raises before anything has changed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _check_sample_weight, validate_data
from torch import Tensor

from torchdfa.errors import UsageError

if TYPE_CHECKING:
    from torchdfa.online.head import OnlineHead

Rows = NDArray[np.floating[Any]]


class Batch(NamedTuple):
    """Rows to learn from: features (rows, features), places of their labels in ``classes``, weights (rows,)."""

    x: Rows
    labels: list[int]
    weights: NDArray[np.float64]

    def part(self, chosen: slice) -> Batch:
        return Batch(self.x[chosen], self.labels[chosen], self.weights[chosen])

    def in_order(self, order: NDArray[np.int64]) -> Batch:
        return Batch(self.x[order], [self.labels[i] for i in order.tolist()], self.weights[order])


def checked(head: OnlineHead, x: Any, y: Any, *, first: bool) -> tuple[Rows, NDArray[Any]]:
    """Rows to learn from and their labels; ``first`` notes their width (and names of columns) on ``head``.

    Raises ValueError for what is empty, not finite, of another width or no labels.
    """
    quick = None if first else _quick(head, x)
    if quick is not None and type(y) is np.ndarray and y.shape == quick.shape[:1]:
        return quick, y
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinity, and is refused
        found, labels = validate_data(head, as_numpy(x), as_numpy(y), dtype=head.dtype, reset=first)
    check_classification_targets(labels)
    return found, labels


def batch(x: Rows, y: NDArray[Any], sample_weight: Any, places: dict[Any, int]) -> Batch:
    """Checked rows with the places of their labels, without rows of weight 0.

    UsageError for unknown labels, or where no row is left.
    """
    labels = _places(y, places)
    if sample_weight is None:
        return Batch(x, labels, np.ones(len(x)))
    if not np.any(np.asarray(sample_weight)):
        raise UsageError("sample_weight is zero for every row, so there is nothing to learn from")
    weights = _check_sample_weight(sample_weight, x, dtype=np.float64, ensure_non_negative=True)
    found = Batch(x, labels, weights)
    return found if weights.all() else found.in_order(np.flatnonzero(weights))


def checked_rows(head: OnlineHead, x: Any) -> Rows:
    """Rows for ``predict``."""
    quick = _quick(head, x)
    return validate_data(head, as_numpy(x), dtype=head.dtype, reset=False) if quick is None else quick


def as_numpy(values: Any) -> Any:
    """Tensors as arrays; all else as it is."""
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else values


def _quick(head: OnlineHead, x: Any) -> Rows | None:
    """``x`` where it is plainly right, without the tenth of a millisecond that the full check takes; None in doubt."""
    if type(x) is not np.ndarray or x.ndim != 2 or x.dtype.kind != "f" or hasattr(head, "feature_names_in_"):
        return None
    if x.shape[1] != getattr(head, "n_features_in_", None) or not len(x):
        return None
    if x.dtype != head.dtype:
        with np.errstate(over="ignore"):
            x = x.astype(head.dtype)
    return x if math.isfinite(np.vdot(x, x)) else None


def _places(y: NDArray[Any], places: dict[Any, int]) -> list[int]:
    values = y.tolist()
    try:
        return [places[value] for value in values]
    except KeyError:
        unknown = next(value for value in values if value not in places)
        raise UsageError(
            f"y holds the label {unknown!r}, which is not among the {len(places)} classes; "
            f"call add_class({unknown!r}) first"
        ) from None
