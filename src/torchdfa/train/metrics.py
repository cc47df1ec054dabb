"""Figures of a classifier on a labelled set, from its outputs alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchdfa.errors import RunError


def metrics(logits: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """JSON-able figures of `logits` (N, K) against `labels` (N,), K = len(classes).

    top1, top5 and balanced_accuracy are in percent. top5 is None with five classes or fewer, where it
    would be 100 % for any model. loss is the mean cross-entropy in nats. balanced_accuracy is the mean
    recall of the classes that occur in `labels`. confusion[i][j] counts the samples of class i that were
    taken for class j. Equal outputs rank in class order. Raises RunError where an output is not finite.
    """
    logits, labels = logits.detach().cpu().double(), labels.detach().cpu().long()
    _check(logits, labels, len(classes))
    confusion = _confusion(ranked(logits)[:, 0], labels, len(classes))
    return {
        "top1": top_k(logits, labels, 1),
        "top5": top_k(logits, labels, 5) if len(classes) > 5 else None,
        "loss": float(F.cross_entropy(logits, labels)),
        "balanced_accuracy": balanced_accuracy(confusion),
        "confusion": confusion.tolist(),
        "samples": len(labels),
    }


def top_k(logits: Tensor, labels: Tensor, k: int) -> float:
    """Percent of the samples whose label is among the k largest outputs."""
    hits = (ranked(logits)[:, :k] == labels[:, None]).any(dim=1)
    return 100 * int(hits.sum()) / len(labels)


def balanced_accuracy(confusion: Tensor) -> float:
    """Mean recall in percent over the classes that occur, from counts (true class, predicted class)."""
    totals = confusion.sum(dim=1)
    seen = totals > 0
    return 100 * float((confusion.diagonal()[seen].double() / totals[seen]).mean())


def ranked(logits: Tensor) -> Tensor:
    """The classes of each row of `logits` (N, K) from the largest output to the smallest; equal ones in class order."""
    return logits.sort(dim=1, descending=True, stable=True).indices


def _confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    return torch.bincount(labels * classes + predicted, minlength=classes**2).reshape(classes, classes)


def _check(logits: Tensor, labels: Tensor, classes: int) -> None:
    if logits.ndim != 2 or logits.shape != (len(labels), classes) or not len(labels):
        raise ValueError(
            f"logits must have one row per label and one column per class, at least one row; "
            f"got {tuple(logits.shape)} for {len(labels)} labels and {classes} classes"
        )
    if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(f"labels must lie in 0..{classes - 1}; got {int(labels.min())}..{int(labels.max())}")
    if not torch.isfinite(logits).all():
        raise RunError("the model's outputs hold NaN or infinity; train it again with a lower learning rate")
