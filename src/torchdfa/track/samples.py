"""Boxes drawn around a target: candidates, and examples that overlap it much or little."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from torchdfa.errors import RunError
from torchdfa.track.boxes import overlap

SMALLEST = 10.0  # pixels; MDNet makes no sample smaller, nor one larger than the image less so much
_ROUNDS = 20


@dataclass(frozen=True)
class Spread:
    """How boxes vary: ``kind`` gaussian (clipped at two sigma), uniform, or whole (all over the image).

    Centres move by up to ``trans`` times the mean side, sides grow or shrink by up to ``scale``, and by ``aspect``
    against each other.
    """

    kind: str
    trans: float = 0.0
    scale: float = 1.0
    aspect: float = 1.0


def draw(spread: Spread, box: Tensor, n: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """(n, 4) float64 boxes around ``box`` (4,), inside an image of ``size`` (width, height)."""
    width, height = size
    noise = _noise(spread.kind, n, 4, generator)
    sides = box[2:].expand(n, 2).clone()
    if spread.aspect != 1:
        stretch = spread.aspect ** (torch.rand(n, 2, generator=generator, dtype=torch.float64) * 2 - 1)
        sides = sides * stretch
    sides = sides * spread.scale ** noise[:, 2:3]
    limit = torch.tensor([width - SMALLEST, height - SMALLEST], dtype=torch.float64).clamp(min=SMALLEST)
    sides = torch.minimum(sides.clamp(min=SMALLEST), limit)
    if spread.kind == "whole":
        centre = _all_over(n, sides, size, generator)
    else:
        centre = (box[:2] + box[2:] / 2) + spread.trans * box[2:].mean() * noise[:, :2]
    return torch.cat([_inside(centre, sides, size) - sides / 2, sides], dim=1)


def _noise(kind: str, n: int, columns: int, generator: torch.Generator) -> Tensor:
    """Within -1 and 1."""
    if kind == "gaussian":
        return (0.5 * torch.randn(n, columns, generator=generator, dtype=torch.float64)).clamp(-1, 1)
    return torch.rand(n, columns, generator=generator, dtype=torch.float64) * 2 - 1


def _all_over(n: int, sides: Tensor, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    free = torch.tensor(size, dtype=torch.float64) - sides
    return sides / 2 + free * torch.rand(n, 2, generator=generator, dtype=torch.float64)


def _inside(centre: Tensor, sides: Tensor, size: tuple[int, int]) -> Tensor:
    return torch.minimum(torch.maximum(centre, sides / 2), torch.tensor(size, dtype=torch.float64) - sides / 2)


def draw_overlapping(
    spread: Spread, box: Tensor, n: int, size: tuple[int, int], generator: torch.Generator, *,
    low: float = 0.0, high: float = 1.0, areas: tuple[float, float] | None = None,
) -> Tensor:  # fmt: skip
    """Up to n such boxes whose overlap with ``box`` lies in low..high (and whose area is in ``areas`` times its)."""
    found = [torch.empty(0, 4, dtype=torch.float64)]
    left = n
    for _ in range(_ROUNDS):
        drawn = draw(spread, box, 2 * n, size, generator)
        ious = torch.from_numpy(overlap(drawn.numpy(), box.numpy()))
        kept = (ious >= low) & (ious <= high)
        if areas is not None:
            ratio = drawn[:, 2:].prod(dim=1) / box[2:].prod()
            kept &= (ratio >= areas[0]) & (ratio <= areas[1])
        found.append(drawn[kept][:left])
        left -= len(found[-1])
        if not left:
            break
    return torch.cat(found)


def require(found: Tensor, wanted: int, what: str, box: Tensor) -> Tensor:
    """``found``; RunError where it is empty, a warning with the numbers where it is shorter than wanted."""
    if len(found) == 0:
        raise RunError(
            f"no {what} samples can be drawn around the box {_shown(box)}: the target is too large or too small for "
            "the image; choose another box"
        )
    if len(found) < wanted:
        warnings.warn(
            f"only {len(found)} of {wanted} {what} samples could be drawn around the box {_shown(box)}; they are used.",
            stacklevel=3,
        )
    return found


def _shown(box: Tensor) -> str:
    return ",".join(f"{value:g}" for value in np.round(box.numpy(), 2))
