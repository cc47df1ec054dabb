"""``sign_mm`` beside torch's product with the same matrix in float32, and unpacked a block at a time."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from torchdfa.bench.harness import Case, Job
from torchdfa.bits import pack
from torchdfa.ops import sign_mm
from torchdfa.ops.sign_mm import reference

SHAPES = {
    "small": [(m, k, 4096) for k in (10, 100) for m in (1, 32, 100)],
    "full": [
        *((m, k, 4096) for k in (10, 100, 1000) for m in (1, 8, 32, 100)),
        *((m, 32000, 4096) for m in (1, 8, 32)),
    ],
}


def cases(size: str) -> Iterator[Case]:
    """One case a shape."""
    for m, k, n in SHAPES[size]:
        yield Case(
            "sign_mm",
            f"({m},{k},{n})",
            partial(_jobs, m, k, n),
            (("dense / sign_mm", "dense", "sign_mm"), ("dense / chunks", "dense", "chunks")),
        )


def _jobs(m: int, k: int, n: int) -> dict[str, Job]:
    generator = torch.Generator().manual_seed(0)
    error, matrix = torch.randn(m, k, generator=generator), torch.randn(k, n, generator=generator)
    bits = pack(matrix)

    def nothing() -> None:
        return None

    def dense(_: Any) -> Tensor:
        return error @ matrix

    def kernel(_: Any) -> Tensor:
        return sign_mm(error, bits, n)

    def chunks(_: Any) -> Tensor:
        return reference(error, bits, n)

    return {"dense": (nothing, dense), "sign_mm": (nothing, kernel), "chunks": (nothing, chunks)}
