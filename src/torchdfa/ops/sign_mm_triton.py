"""``sign_mm`` for GPUs in Triton. Only ``torchdfa.ops.cuda`` imports this file, and at the first product on a GPU.

Tensor cores multiply: signs are exact in bfloat16 and float16. An error in float32 is cut into three bfloat16 parts
that add up to it exactly (8 of its 24 bits each), so that no bit of it is lost.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

COLUMNS = 128  # of the product that one program computes
# A program must have this many blocks of signs before its work is divided.
_BLOCKS_A_PROGRAM = 4


@triton.jit
def _signs(octets, ones):
    """Octets (K, W) to ±1 (K, 8 W) of the 16-bit type whose number 1 stands twice in ``ones``.

    Two signs at a time: one shift takes an even bit to bit 15 and the odd one after it, 16 places up, to bit 31.
    Halves of a word become neighbours without an instruction, as they already are in the register.
    """
    halves = (octets.to(tl.uint32) * 0x8001) ^ 0xFFFFFFFF  # odd bits 15 places up; a set bit is +1, sign bit 0
    first = ((halves << 15) & 0x80008000) | ones
    second = ((halves << 13) & 0x80008000) | ones
    third = ((halves << 11) & 0x80008000) | ones
    fourth = ((halves << 9) & 0x80008000) | ones
    pairs = tl.join(tl.join(first, third), tl.join(second, fourth))
    both = tl.join((pairs & 0xFFFF).to(tl.uint16), (pairs >> 16).to(tl.uint16))
    return both.reshape(octets.shape[0], octets.shape[1] * 8)


@triton.jit
def _upper(x):
    """The 8 leading bits of float32 numbers. Cut, not rounded: rounding could overflow."""
    return (x.to(tl.uint32, bitcast=True) & 0xFFFF0000).to(tl.float32, bitcast=True)


@triton.jit
def _product(error, signs, total, OPERAND: tl.constexpr):
    """``total`` plus a block's product. In float32 the block is summed by itself, then added by an IEEE addition:
    tensor cores cut what they add up instead of rounding it, which sums of many blocks would show."""
    if error.dtype == tl.float32:
        high = _upper(error)
        rest = tl.where(error == high, 0.0, error - high)  # an infinity leaves no rest, a NaN itself
        middle = _upper(rest)
        low = rest - middle
        block = tl.dot(low.to(OPERAND), signs)
        block = tl.dot(middle.to(OPERAND), signs, block)
        block = tl.dot(high.to(OPERAND), signs, block)
        return total + block
    return tl.dot(error.to(OPERAND), signs, total)


@triton.jit
def kernel(
    error, bits, out, m, k, n, width, error_row, error_column, bits_row, out_split, blocks, ones,
    OPERAND: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """One tile of ``out``, from ``blocks`` blocks of DEPTH rows of the signs; OPERAND is what is multiplied.

    ``ones`` is no constant, because an instruction holds one constant: with two of them, masking a word and setting
    bits in it would take two (compute capability 9.0; for 8.0 the compiler spends two all the same).
    """
    FORMAT: tl.constexpr = tl.float16 if error.dtype.element_ty == tl.float16 else tl.bfloat16
    tiles = tl.cdiv(n, COLUMNS)
    row = (tl.program_id(0) // tiles) * ROWS + tl.arange(0, ROWS)[:, None]
    tile = tl.program_id(0) % tiles
    octet = tile * (COLUMNS // 8) + tl.arange(0, COLUMNS // 8)[None, :]
    start = tl.program_id(1) * blocks * DEPTH
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for first in range(start, tl.minimum(start + blocks * DEPTH, k), DEPTH):
        depth = first + tl.arange(0, DEPTH)
        at = row.to(tl.int64) * error_row + depth[None, :].to(tl.int64) * error_column
        part = tl.load(error + at, mask=(row < m) & (depth[None, :] < k), other=0.0)
        at = depth[:, None].to(tl.int64) * bits_row + octet
        octets = tl.load(bits + at, mask=(depth[:, None] < k) & (octet < width), other=0)
        total = _product(part, _signs(octets, ones).to(FORMAT, bitcast=True).to(OPERAND), total, OPERAND)
    column = tile * COLUMNS + tl.arange(0, COLUMNS)[None, :]
    at = tl.program_id(1).to(tl.int64) * out_split + row.to(tl.int64) * n + column
    tl.store(out + at, total.to(out.dtype.element_ty), mask=(row < m) & (column < n))


def tile(m: int) -> tuple[int, int]:
    """Rows of the product that one program computes, and rows of signs in a block: what fits the registers."""
    return (16, 64) if m <= 16 else (64, 32)


def product(error: Tensor, bits: Tensor, n: int, programs: int, operand: tl.dtype | None = None) -> Tensor:
    """``error`` (M, K) of any strides times the signs: (M, n) in the dtype of ``error``.

    Where the product has fewer tiles than ``programs`` can run at a time, the signs' rows are divided as well, and
    float32 sums of the parts added. ``operand`` is the type that is multiplied, 16 bits wide by default; Triton's
    interpreter cannot multiply bfloat16 and takes float32.
    """
    m, k = error.shape
    if m * k * n == 0:
        return error.new_zeros(m, n)
    bits = bits if bits.stride(-1) == 1 else bits.contiguous()
    rows, depth = tile(m)
    tiles, blocks = triton.cdiv(m, rows) * triton.cdiv(n, COLUMNS), triton.cdiv(k, depth)
    splits = max(1, min(programs // tiles, blocks // _BLOCKS_A_PROGRAM))
    share = triton.cdiv(blocks, splits)
    splits = triton.cdiv(blocks, share)  # none without a share
    out = error.new_empty(splits, m, n, dtype=error.dtype if splits == 1 else torch.float32)
    half = error.dtype == torch.float16
    kernel[tiles, splits](
        error, bits, out, m, k, n, bits.shape[1], *error.stride(), bits.stride(0), m * n, share,
        0x3C003C00 if half else 0x3F803F80,
        OPERAND=operand or (tl.float16 if half else tl.bfloat16), ROWS=rows, COLUMNS=COLUMNS, DEPTH=depth,
        enable_fp_fusion=False,
    )  # fmt: skip
    return out[0] if splits == 1 else out.sum(0).to(error.dtype)
