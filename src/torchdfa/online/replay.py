"""Samples of each class kept to be learned again: a fixed number a class, chosen evenly from all that came."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchdfa.counter import stream_key


class Replay:
    """Up to ``size`` rows of each class, in memory that is taken at once; every choice depends on the seed and a count.

    Each row of a class that has come is kept with the same chance (reservoir sampling, Vitter 1985).
    """

    def __init__(self, classes: int, size: int, features: int, dtype: str, seed: int) -> None:
        self.rows = np.zeros((classes, size, features), dtype)
        self.came = np.zeros(classes, np.int64)  # rows of each class so far
        self.drawn = 0  # draws so far
        self.seed = seed

    @property
    def size(self) -> int:
        return self.rows.shape[1]

    def keep(self, x: NDArray[np.floating[Any]], labels: list[int]) -> None:
        """Consider the rows of ``x`` (rows, features), before scaling, for keeping."""
        for row, label in zip(x, labels, strict=True):
            place = count = int(self.came[label])
            if count >= self.size:
                place = self._number(f"keep/{label}/{count}") % (count + 1)
            if place < self.size:
                self.rows[label, place] = row
            self.came[label] += 1

    def draw(self, count: int) -> tuple[NDArray[np.floating[Any]], list[int]]:
        """``count`` kept rows and their labels, each of a class drawn evenly from those that have any."""
        known = np.flatnonzero(self.came)
        if not len(known):
            return self.rows[:0, 0], []
        numbers = np.array([self._number(f"draw/{self.drawn + i}") for i in range(count)])
        labels = known[numbers % len(known)]
        places = numbers // len(known) % np.minimum(self.came[labels], self.size)
        return self.rows[labels, places], labels.tolist()

    def advance(self, count: int) -> None:
        """Count a draw as made; one whose update was refused is made again."""
        self.drawn += count

    def add_class(self) -> None:
        self.rows = np.concatenate([self.rows, np.zeros_like(self.rows[:1])])
        self.came = np.append(self.came, 0)

    def _number(self, name: str) -> int:
        """63 random bits, a function of seed and name."""
        return stream_key(self.seed, f"replay/{name}") & (2**63 - 1)
