"""Copies and near-copies among photos: a test photo that was trained on flatters the figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

HASH_SIDE = 8  # 8 x 8 comparisons of neighbours: 64 bits
# Chosen on 10,000 CIFAR-10 images: all 27 pairs that both limits let through were one photo by eye.
MAX_BITS = 8  # of 64 that may differ between near-copies
MAX_LEVELS = 12.0  # of 255, mean difference of two 8 x 8 colour thumbnails; tells plain surfaces apart
MAX_PHOTOS = 50_000  # comparing all pairs takes 5 s for so many
MAX_PAIRS = 1_000_000


@dataclass(frozen=True)
class Duplicates:
    """Group numbers (N,): equal numbers are copies (``exact``), or copies and near-copies (``near``)."""

    exact: NDArray[np.int64]
    near: NDArray[np.int64]
    pairs: NDArray[np.int64]  # (P, 2) photos that are copies or near-copies, first < second
    complete: bool  # False: too many photos or pairs, near-copies were not looked for


def find(x: Tensor, digests: Sequence[str]) -> Duplicates:
    """Compare photos (N, C, S, S) uint8 by the digests of their files and by what they show."""
    _, first, exact = np.unique(np.asarray(digests), return_index=True, return_inverse=True)
    representative = first[exact.reshape(-1)].astype(np.int64)
    n = np.arange(len(digests))
    copies = np.stack([representative, n], axis=1)[representative != n]
    near = near_pairs(x) if len(x) <= MAX_PHOTOS else None
    pairs = copies if near is None else np.unique(np.concatenate([copies, near]), axis=0)
    return Duplicates(representative, connected(len(x), pairs), pairs, near is not None)


def difference_hash(x: Tensor) -> Tensor:
    """(N, 64) of +-1: is a pixel of the grey 9 x 8 thumbnail brighter than its left neighbour, by half a level?"""
    grey = x.float().mean(1, keepdim=True)
    small = functional.interpolate(grey, (HASH_SIDE, HASH_SIDE + 1), mode="bilinear", antialias=True)
    return torch.where(small.diff(dim=-1) > 0.5, 1.0, -1.0).flatten(1)


def thumbnail(x: Tensor) -> Tensor:
    """(N, C * 64) of 0 .. 255."""
    return functional.interpolate(x.float(), (HASH_SIDE, HASH_SIDE), mode="bilinear", antialias=True).flatten(1)


def near_pairs(x: Tensor) -> NDArray[np.int64] | None:
    """(P, 2) near-copies, or None where they are more than MAX_PAIRS, as among the frames of a video."""
    pieces = x.split(1024)
    hashes = torch.cat([difference_hash(piece) for piece in pieces])
    thumbnails = torch.cat([thumbnail(piece) for piece in pieces])
    found: list[Tensor] = []
    for start in range(0, len(x), 512):
        # The dot product of two rows of +-1 is 64 - 2 * (bits that differ).
        alike = hashes[start : start + 512] @ hashes[start:].T >= 64 - 2 * MAX_BITS
        pairs = alike.triu(1).nonzero() + start
        if sum(map(len, found)) + len(pairs) > MAX_PAIRS:
            return None
        found.append(_of_one_colour(pairs, thumbnails))
    return torch.cat(found).numpy() if found else np.empty((0, 2), np.int64)


def _of_one_colour(pairs: Tensor, thumbnails: Tensor) -> Tensor:
    kept = [
        part[(thumbnails[part[:, 0]] - thumbnails[part[:, 1]]).abs().mean(1) <= MAX_LEVELS]
        for part in pairs.split(4096)
    ]
    return torch.cat(kept)


def connected(n: int, pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number of each item's group (the smallest member) when each pair joins two of the ``n`` items."""
    group = np.arange(n)
    while len(pairs):
        smaller = group[pairs].min(1)
        before = group.copy()
        np.minimum.at(group, pairs[:, 0], smaller)
        np.minimum.at(group, pairs[:, 1], smaller)
        group = group[group]
        if np.array_equal(group, before):
            break
    return group
