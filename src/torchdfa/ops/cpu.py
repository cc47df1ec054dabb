"""The compiled CPU kernel of ``sign_mm``: loaded once, checked against the reference, used where it pays."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from torchdfa.bits import packed_width, unpack
from torchdfa.ops.build import VARIABLE, Loader, NoKernelError, library, one_openmp, open_library

SOURCES = ("sign_mm_bits.c", "sign_mm_lookup.c", "sign_mm_registers.c", "sign_mm.c")
# Below these unpacking the signs and torch's matrix product are as quick.
_SMALLEST, _NARROWEST = 2**12, 256  # weights, columns
# Multiply-adds that a thread must have before it is worth waking.
_WORK_A_THREAD = 2**23
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

Function = Callable[..., int]


@dataclass(frozen=True)
class Kernel:
    """One path of the library: ``function(index, threads, ...)``; ``openmp`` where it may use torch's threads."""

    path: str
    index: int
    function: Function
    openmp: bool

    def product(self, error: Tensor, bits: Tensor, n: int, threads: int) -> Tensor | None:
        """``error`` (M, K) float32 of any strides times the signs; None where memory ran out."""
        out = error.new_empty(error.shape[0], n)
        bits = bits if bits.stride(-1) == 1 else bits.contiguous()
        code = self.function(
            *(self.index, threads if self.openmp else 1, error.data_ptr(), *error.shape, *error.stride()),
            *(bits.data_ptr(), n, bits.stride(0), out.data_ptr()),
        )
        return out if code == 0 else None


def _load() -> Kernel:
    kernel = _choose(_open(library(*SOURCES)), os.environ.get(VARIABLE) or "auto")
    _self_test(kernel)
    return kernel


def _open(path: Path) -> ctypes.CDLL:
    opened = open_library(path)
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    opened.torchdfa_path.restype = ctypes.c_char_p
    opened.torchdfa_sign_mm.argtypes = [
        *(ctypes.c_int, ctypes.c_int, pointer, size, size, size, size),
        *(pointer, size, size, pointer),
    ]
    return opened


def paths(opened: ctypes.CDLL) -> list[Kernel]:
    """What of the library this processor runs, best first."""
    openmp = bool(opened.torchdfa_openmp()) and one_openmp()
    names: list[str] = []
    while (name := opened.torchdfa_path(len(names))) is not None:
        names.append(name.decode())  # "" where the processor cannot run it
    return [Kernel(name, i, opened.torchdfa_sign_mm, openmp) for i, name in enumerate(names) if name]


def _choose(opened: ctypes.CDLL, wanted: str) -> Kernel:
    usable = {kernel.path: kernel for kernel in paths(opened)}
    if wanted == "auto":
        return next(iter(usable.values()))
    if wanted not in usable:
        raise NoKernelError(
            f"{VARIABLE}={wanted!r} is none of auto, off, {', '.join(usable)} (what this processor runs)"
        )
    return usable[wanted]


def _self_test(kernel: Kernel) -> None:
    """A library that computes something else on this machine is not used."""
    generator = torch.Generator().manual_seed(0)
    for rows in (1, 2, 3, 13):
        error = torch.randn(rows, 131, generator=generator)
        bits = torch.randint(256, (131, packed_width(267)), generator=generator, dtype=torch.uint8)
        found, expected = kernel.product(error, bits, 267, 1), error.double() @ unpack(bits, 267, torch.float64)
        if found is None or not torch.allclose(found.double(), expected, rtol=1e-4, atol=1e-4):
            raise NoKernelError(f"its path {kernel.path!r} fails its self-test on this processor")


load = Loader(_load, "sign_mm runs in plain torch, slower and with equal results")


def beats_torch(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether the kernel is quicker than torch's product with a large ±1 matrix: measured for float32 alone."""
    return device.type == "cpu" and dtype == torch.float32 and not isinstance(load(), str)


def sign_mm(error: Tensor, bits: Tensor, n: int) -> Tensor | None:
    """The product by the kernel, or None where there is none or plain torch is as quick. Sizes have been checked."""
    if bits.shape[0] * n < _SMALLEST or n < _NARROWEST or error.dtype not in _DTYPES:
        return None
    kernel = load()
    if isinstance(kernel, str):
        return None
    # Beside the kernel with one error each call of torch is felt, above all after work that emptied the caches.
    plain = error.dim() == 2 and error.dtype == torch.float32
    rows = error if plain else error.reshape(-1, error.shape[-1]).float()
    work = rows.shape[0] * bits.shape[0] * n
    threads = min(torch.get_num_threads(), work // _WORK_A_THREAD) if work >= 2 * _WORK_A_THREAD else 1
    out = kernel.product(rows, bits, n, threads)
    return out if plain or out is None else out.to(error.dtype).view(*error.shape[:-1], n)
