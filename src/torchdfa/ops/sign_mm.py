"""``sign_mm(error, bits, n)``: multiply errors by a matrix of signs that is stored as one bit an element.

``error`` (..., K) of any floating dtype and layout, ``bits`` (K, ceil(n / 8)) as ``torchdfa.bits.pack`` makes them;
returns ``error @ signs`` (..., n) in the dtype of ``error``: the product of Eq. 9. A ``RuntimeError`` names sizes
that do not fit. One operator of ``torch.library``: it has a fake, so torch.compile takes it whole; a gradient with
respect to ``error``; a rule for vmap; a reference in plain torch for every device; and kernels for a CPU and for
NVIDIA GPUs where they work. It may be called from several threads at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from torchdfa.bits import packed_width, unpack
from torchdfa.ops import cpu, cuda

# Without a kernel no more than this is unpacked at a time, so packed feedback saves memory in the step too.
CHUNK_BYTES = 10 * 2**20
_NAME = "torchdfa::sign_mm"


def _require(holds: bool | torch.SymBool, message: Callable[[], str]) -> None:
    """Sizes that are known take no call of torch: beside a product with one error it is felt."""
    if holds is not True:
        torch._check(holds, message)


def _check(error: Tensor, bits: Tensor, n: int) -> None:
    _require(
        error.dim() >= 1 and error.is_floating_point(),
        lambda: f"sign_mm: error must be floating-point of shape (..., K), found {error.dtype} {tuple(error.shape)}",
    )
    _require(
        bits.dim() == 2 and bits.dtype == torch.uint8,
        lambda: f"sign_mm: bits must be a uint8 matrix, found {bits.dtype} {tuple(bits.shape)}",
    )
    _require(
        error.shape[-1] == bits.shape[0],
        lambda: f"sign_mm: error has {error.shape[-1]} columns and bits {bits.shape[0]} rows; they must be as many",
    )
    _require(
        bits.shape[1] == packed_width(n),
        lambda: f"sign_mm: {n} columns take {packed_width(n)} bytes a row, but bits have {bits.shape[1]}",
    )


def _chunks(bits: Tensor, n: int, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor]]:
    """Column ranges, each with its signs unpacked; together with what unpacking needs a range takes CHUNK_BYTES."""
    bytes_a_column = max(1, bits.shape[0] * (dtype.itemsize + 1))
    step = max(1, CHUNK_BYTES // (8 * bytes_a_column)) * 8
    for start in range(0, n, step):
        stop = min(start + step, n)
        yield slice(start, stop), unpack(bits[:, start // 8 : packed_width(stop)], stop - start, dtype)


def reference(error: Tensor, bits: Tensor, n: int) -> Tensor:
    """The product in plain torch: signs unpacked a block of columns at a time."""
    _check(error, bits, n)
    rows = error.reshape(-1, error.shape[-1])
    out = error.new_empty(rows.shape[0], n)
    for columns, signs in _chunks(bits, n, error.dtype):
        torch.mm(rows, signs, out=out[:, columns])
        del signs  # before the next ones are unpacked
    return out.view(*error.shape[:-1], n)


def _on_cpu(error: Tensor, bits: Tensor, n: int) -> Tensor:
    _check(error, bits, n)
    out = cpu.sign_mm(error, bits, n)
    return reference(error, bits, n) if out is None else out


def _on_cuda(error: Tensor, bits: Tensor, n: int) -> Tensor:
    _check(error, bits, n)
    out = cuda.sign_mm(error, bits, n)
    return reference(error, bits, n) if out is None else out


def _fake(error: Tensor, bits: Tensor, n: int) -> Tensor:
    _check(error, bits, n)
    return error.new_empty(*error.shape[:-1], n)


def _setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
    ctx.save_for_backward(inputs[1])
    ctx.n = inputs[2]


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
    (bits,) = ctx.saved_tensors
    back = grad.new_zeros(*grad.shape[:-1], bits.shape[0])
    for columns, signs in _chunks(bits, ctx.n, grad.dtype):
        back = back + grad[..., columns] @ signs.T
        del signs
    return back, None, None


def _vmap(info: Any, in_dims: tuple[int | None, ...], error: Tensor, bits: Tensor, n: int) -> tuple[Tensor, int]:
    error_dim, bits_dim = in_dims[:2]
    if bits_dim is None:
        assert error_dim is not None
        return sign_mm(error.movedim(error_dim, 0), bits, n), 0
    errors = [error] * info.batch_size if error_dim is None else error.unbind(error_dim)
    return torch.stack([sign_mm(e, b, n) for e, b in zip(errors, bits.unbind(bits_dim), strict=True)]), 0


# define and impl rather than custom_op, whose call takes twice as long.
torch.library.define(_NAME, "(Tensor error, Tensor bits, SymInt n) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,))
torch.library.impl(_NAME, "CompositeExplicitAutograd")(reference)
torch.library.impl(_NAME, "CPU")(_on_cpu)
if torch.version.cuda is not None:  # not ROCm, whose devices are called cuda too
    torch.library.impl(_NAME, "CUDA")(_on_cuda)
torch.library.register_fake(_NAME)(_fake)
torch.library.register_autograd(_NAME, _backward, setup_context=_setup_context)
torch.library.register_vmap(_NAME, _vmap)

sign_mm = torch.ops.torchdfa.sign_mm.default
