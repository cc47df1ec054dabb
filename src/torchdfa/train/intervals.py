"""How far a share of right answers on n test images can be trusted."""

from __future__ import annotations

import math
from statistics import NormalDist

Z95 = NormalDist().inv_cdf(0.975)


def wilson(share: float, n: int, z: float = Z95) -> tuple[float, float]:
    """The score interval (Wilson 1927) of a share in 0..1 measured on n images; 95 % by default."""
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # Rounding must not put the share itself outside: at 0 and 1 a bound equals it.
    return min(share, max(0.0, middle - half)), max(share, min(1.0, middle + half))


def difference(a: float, n_a: int, b: float, n_b: int) -> tuple[float, float]:
    """The 95 % interval of a - b, two shares on n_a and n_b images (Newcombe 1998, method 10).

    It takes the two sets of images as independent. On one and the same test set the true interval is mostly
    narrower, so what this calls a difference is one.
    """
    (low_a, high_a), (low_b, high_b) = wilson(a, n_a), wilson(b, n_b)
    return a - b - math.hypot(a - low_a, high_b - b), a - b + math.hypot(high_a - a, b - low_b)
