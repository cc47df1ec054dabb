"""``sign_mm``: multiply an error by a matrix of signs that is stored as one bit an element."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from torchdfa.bits import packed_width, unpack

# The unpacked part of the matrix never exceeds this, so a packed feedback saves memory in the step too.
CHUNK_BYTES = 10 * 2**20


@torch.library.custom_op("torchdfa::sign_mm", mutates_args=())
def sign_mm(error: Tensor, bits: Tensor, n: int) -> Tensor:
    """``error @ signs`` for ``error`` (M, K) and ``signs`` (K, n) packed as uint8 (K, ceil(n / 8)).

    Reference kernel: the signs are unpacked a block of columns at a time and multiplied by torch.
    Returns (M, n) in the dtype of ``error``.
    """
    out = error.new_empty(error.shape[0], n)
    step = max(1, CHUNK_BYTES // max(1, 8 * bits.shape[0] * error.element_size())) * 8
    for start in range(0, n, step):
        stop = min(start + step, n)
        block = unpack(bits[:, start // 8 : packed_width(stop)], stop - start, error.dtype)
        torch.mm(error, block, out=out[:, start:stop])
    return out


@sign_mm.register_fake
def _(error: Tensor, bits: Tensor, n: int) -> Tensor:
    torch._check(error.dim() == 2 and bits.dim() == 2, lambda: "sign_mm: error and bits must be matrices")
    torch._check(error.shape[1] == bits.shape[0], lambda: "sign_mm: error's columns must equal bits' rows")
    return error.new_empty(error.shape[0], n)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    ctx.bits, ctx.n = inputs[1], inputs[2]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    return grad @ unpack(ctx.bits, ctx.n, grad.dtype).T, None, None


sign_mm.register_autograd(_backward, setup_context=_setup_context)
