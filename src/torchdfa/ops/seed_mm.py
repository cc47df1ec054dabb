"""``seed_mm``: multiply errors by a random matrix that is drawn, a block of columns at a time, and forgotten.

``seed_mm(error, key, first_row, n, distribution, factor, dtype)`` returns ``error @ D`` (..., n) for ``error``
(..., K), where D (K, n) is rows ``first_row`` and following of ``torchdfa.counter.random_matrix`` with n columns,
times ``factor``, rounded to ``dtype``. One operator of ``torch.library``, with a fake, a gradient with respect to
``error`` and a rule for vmap. It runs in plain torch on any device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from torchdfa.counter import random_columns

# A block of columns and all that drawing it needs take about this.
CHUNK_BYTES = 10 * 2**20
_BYTES_A_NUMBER = 48
_NAME = "torchdfa::seed_mm"

# key, first_row, n, distribution, factor, dtype
Stream = tuple[int, int, int, str, float, torch.dtype]


def _chunks(rows: int, stream: Stream, like: Tensor) -> Iterator[tuple[slice, Tensor]]:
    key, first, n, distribution, factor, dtype = stream
    step = max(1, CHUNK_BYTES // (_BYTES_A_NUMBER * max(1, rows)))
    for start in range(0, n, step):
        columns = range(start, min(start + step, n))
        raw = random_columns(range(first, first + rows), columns, n, distribution, key, like.device)
        yield slice(columns.start, columns.stop), (raw if factor == 1.0 else raw * factor).to(dtype).to(like.dtype)


def _check(error: Tensor) -> None:
    torch._check(
        error.dim() >= 1 and error.is_floating_point(),
        lambda: f"seed_mm: error must be floating-point of shape (..., K), found {error.dtype} {tuple(error.shape)}",
    )


def reference(error: Tensor, *stream: Any) -> Tensor:
    """The product in plain torch."""
    _check(error)
    rows = error.reshape(-1, error.shape[-1])
    n = stream[2]
    out = error.new_empty(rows.shape[0], n)
    for columns, matrix in _chunks(error.shape[-1], stream, error):
        torch.mm(rows, matrix, out=out[:, columns])
        del matrix  # before the next one is drawn
    return out.view(*error.shape[:-1], n)


def _fake(error: Tensor, *stream: Any) -> Tensor:
    _check(error)
    return error.new_empty(*error.shape[:-1], stream[2])


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.rows, ctx.stream = inputs[0].shape[-1], inputs[1:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    back = grad.new_zeros(*grad.shape[:-1], ctx.rows)
    for columns, matrix in _chunks(ctx.rows, ctx.stream, grad):
        back = back + grad[..., columns] @ matrix.T
        del matrix
    return back, *[None for _ in ctx.stream]


def _vmap(info: Any, in_dims: tuple[int | None, ...], error: Tensor, *stream: Any) -> tuple[Tensor, int]:
    assert in_dims[0] is not None
    return seed_mm(error.movedim(in_dims[0], 0), *stream), 0


torch.library.define(
    _NAME,
    "(Tensor error, int key, int first_row, SymInt n, str distribution, float factor, ScalarType dtype) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)
torch.library.impl(_NAME, "CompositeExplicitAutograd")(reference)
torch.library.register_fake(_NAME)(_fake)
torch.library.register_autograd(_NAME, _backward, setup_context=_setup_context)
torch.library.register_vmap(_NAME, _vmap)

seed_mm = torch.ops.torchdfa.seed_mm.default
