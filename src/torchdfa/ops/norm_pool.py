"""What follows a convolution of VGG-M (ReLU, response norm, max pooling) in one pass, where no gradient is wanted.

torch writes each of them to memory and reads it again, which takes longer than their arithmetic.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchdfa.ops.build import Loader, NoKernelError, library, one_openmp, open_library

SOURCE = "norm_pool.c"
FIELD, STRIDE, BETA = 3, 2, 0.75  # of the pooling, and of the norm: what the library knows
# Numbers that a thread must read before it is worth waking.
_WORK_A_THREAD = 2**16
_DTYPES = (torch.float32, torch.bfloat16)


class Job(ctypes.Structure):
    """As in norm_pool.c."""

    _fields_ = (
        ("x", ctypes.c_void_p), ("y", ctypes.c_void_p), ("images", ctypes.c_int64), ("height", ctypes.c_int64),
        ("width", ctypes.c_int64), ("channels", ctypes.c_int64), ("size", ctypes.c_int64), ("k", ctypes.c_float),
        ("factor", ctypes.c_float), ("bf16", ctypes.c_int), ("scratch", ctypes.c_void_p),
    )  # fmt: skip


@dataclass(frozen=True)
class Kernel:
    """The library; ``openmp`` where it may use torch's threads."""

    library: Any
    openmp: bool

    def __call__(self, x: Tensor, size: int, alpha: float, k: float) -> Tensor:
        x = x.contiguous(memory_format=torch.channels_last)
        n, channels, height, width = x.shape
        pooled = ((side - FIELD) // STRIDE + 1 for side in (height, width))
        y = torch.empty(n, channels, *pooled, dtype=x.dtype, memory_format=torch.channels_last)
        threads = max(1, min(torch.get_num_threads(), n, x.numel() // _WORK_A_THREAD)) if self.openmp else 1
        job = Job(x.data_ptr(), y.data_ptr(), n, height, width, channels, size, k, alpha / size)
        job.bf16 = x.dtype == torch.bfloat16
        scratch = torch.empty(threads, self.library.torchdfa_norm_pool_scratch(ctypes.byref(job)))
        job.scratch = scratch.data_ptr()
        self.library.torchdfa_norm_pool(ctypes.byref(job), threads)
        return y


def norm_pool(x: Tensor, size: int, alpha: float, beta: float, k: float) -> Tensor | None:
    """``max_pool2d(LocalResponseNorm(size, alpha, beta, k)(relu(x)), 3, 2)`` of images (N, C, H, W).

    It comes in channels_last, and in bfloat16 is rounded once, at the end. None where the library cannot do it: off the
    CPU, where a gradient is wanted, in other numbers, at another beta, of less than 3x3 pixels, or without a compiler.
    """
    wants_gradient = torch.is_grad_enabled() and x.requires_grad
    if type(x) is not Tensor or x.device.type != "cpu" or x.dtype not in _DTYPES or wants_gradient:
        return None
    if beta != BETA or x.dim() != 4 or min(x.shape[2:]) < FIELD or torch.compiler.is_compiling():
        return None
    kernel = load()
    return None if isinstance(kernel, str) else kernel(x, size, alpha, k)


def _load() -> Kernel:
    kernel = _open()
    _self_test(kernel)
    return kernel


def _open() -> Kernel:
    opened = open_library(library(SOURCE, flags=("-fno-math-errno",)))
    opened.torchdfa_norm_pool_scratch.argtypes = [ctypes.c_void_p]
    opened.torchdfa_norm_pool_scratch.restype = ctypes.c_int64
    opened.torchdfa_norm_pool.argtypes = [ctypes.c_void_p, ctypes.c_int]
    opened.torchdfa_norm_pool.restype = None
    return Kernel(opened, bool(opened.torchdfa_norm_pool_openmp()) and one_openmp())


def _self_test(kernel: Kernel) -> None:
    """A library that computes something else on this machine is not used."""
    x = torch.randn(2, 20, 7, 6, generator=torch.Generator().manual_seed(0)) * 30
    for size, dtype, tolerance in ((2, torch.float32, 1e-5), (5, torch.bfloat16, 1e-2)):
        found = kernel(x.to(dtype), size, 0.1, 1.5).float()
        expected = F.max_pool2d(nn.LocalResponseNorm(size, 0.1, BETA, 1.5)(F.relu(x)), FIELD, STRIDE)
        if not torch.allclose(found, expected, rtol=tolerance, atol=tolerance):
            raise NoKernelError("it fails its self-test on this processor")


load = Loader(_load, "the tracker's response norm runs in plain torch, slower")
