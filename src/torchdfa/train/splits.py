"""Seeded choices among labelled images: a stratified held-out part, a class-balanced nested subset."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from torchdfa.errors import UsageError

Indices = NDArray[np.int64]


def permutation(n: int, seed: int) -> Indices:
    """A permutation that stays the same for ever: of numpy's generators only RandomState promises its stream."""
    return np.random.RandomState(seed % 2**32).permutation(n).astype(np.int64)


def stratified(
    labels: NDArray[np.int64],
    fraction: float,
    seed: int,
    classes: Sequence[str],
    *,
    groups: NDArray[np.int64] | None = None,
) -> NDArray[np.bool_]:
    """Choose about ``fraction`` of each class, at least one image and never all: True where held out, (N,).

    Images with the same number in ``groups`` (N,) stay together; a group with several classes is never held out.
    Raises UsageError where a class cannot be divided.
    """
    groups = np.arange(len(labels)) if groups is None else groups
    held_out = np.zeros(len(labels), dtype=np.bool_)
    order = permutation(len(labels), seed)
    mixed = _groups_of_several_classes(labels, groups)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        chosen = _whole_groups(groups[members], max(1, round(fraction * len(members))), mixed)
        if not chosen.any() or chosen.all():
            raise UsageError(
                f"Class {classes[label]} has {len(members)} image(s) and cannot be divided into two parts; "
                f"give it at least 2 different images."
            )
        held_out[members[chosen]] = True
    return held_out


def _groups_of_several_classes(labels: NDArray[np.int64], groups: NDArray[np.int64]) -> NDArray[np.int64]:
    pairs = np.unique(np.stack([groups, labels]), axis=1)
    values, counts = np.unique(pairs[0], return_counts=True)
    return values[counts > 1]


def _whole_groups(groups: NDArray[np.int64], wanted: int, barred: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Take groups in the order of their first member while they fit into ``wanted``; if none fits, the smallest."""
    values, first, counts = np.unique(groups, return_index=True, return_counts=True)
    free = ~np.isin(values, barred)
    values, first, counts = values[free], first[free], counts[free]
    taken: list[int] = []
    room = wanted
    for k in np.argsort(first):
        if counts[k] <= room:
            taken.append(values[k])
            room -= counts[k]
    if not taken and len(values):
        taken.append(values[np.lexsort((first, counts))[0]])
    return np.isin(groups, taken)


def balanced_order(labels: NDArray[np.int64], seed: int) -> Indices:
    """All images in an order whose every prefix is as balanced over the classes as the data allow.

    A longer prefix therefore contains every shorter one.
    """
    order = permutation(len(labels), seed)
    rank_in_class = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = order[labels[order] == label]
        rank_in_class[members] = np.arange(len(members))
    return np.lexsort((labels, rank_in_class)).astype(np.int64)


def subset(labels: NDArray[np.int64], size: int, seed: int, classes: Sequence[str]) -> Indices:
    """The ``size`` images of the class-balanced subset, in ascending order."""
    if not len(classes) <= size <= len(labels):
        raise UsageError(
            f"subset must be at least the number of classes ({len(classes)}) and at most the number of "
            f"training images ({len(labels)}), but is {size}."
        )
    return np.sort(balanced_order(labels, seed)[:size])
