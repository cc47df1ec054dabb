"""Is one tracker better than another? Their scores sequence by sequence, resampled."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from torchdfa.errors import UsageError

FEWEST = 6  # below, resampling knows too little of what other sequences would give


@dataclass(frozen=True)
class Comparison:
    """Mean of a - b over ``n`` sequences with its 95 % interval; on how many a won, and lost."""

    difference: float
    low: float
    high: float
    n: int
    wins: int
    losses: int

    @property
    def verdict(self) -> str:
        if self.n < FEWEST:
            return "too few sequences to tell"
        if self.low <= 0 <= self.high:
            return "no difference"
        return "better" if self.difference > 0 else "worse"

    def __str__(self) -> str:
        return (
            f"{self.difference:+.4f}, 95 % interval {self.low:+.4f} to {self.high:+.4f} over {self.n} sequences "
            f"({self.wins} won, {self.losses} lost): {self.verdict}"
        )


def compare(a: Mapping[str, float], b: Mapping[str, float], *, resamples: int = 10_000, seed: int = 0) -> Comparison:
    """Paired bootstrap over sequences (Efron & Tibshirani 1993, ch. 13: percentile interval of the mean).

    ``a`` and ``b`` are one score a sequence, the mean over seeds where there are several; seeds are no further
    evidence about other sequences. UsageError where the sequences differ or are fewer than two.
    """
    if set(a) != set(b):
        odd = min(set(a) ^ set(b))
        raise UsageError(f"a paired comparison needs the same sequences on both sides; {odd} is on one only")
    if len(a) < 2:
        raise UsageError("a paired comparison needs at least 2 sequences")
    differences = np.array([a[name] - b[name] for name in sorted(a)])
    drawn = np.random.default_rng(seed).integers(len(differences), size=(resamples, len(differences)))
    low, high = np.percentile(differences[drawn].mean(axis=1), [2.5, 97.5])
    wins, losses = int((differences > 0).sum()), int((differences < 0).sum())
    return Comparison(float(differences.mean()), float(low), float(high), len(differences), wins, losses)
