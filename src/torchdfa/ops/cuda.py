"""The Triton kernel of ``sign_mm`` for NVIDIA GPUs: checked against float64 once on each, used where it works."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from torchdfa.bits import packed_width, unpack
from torchdfa.ops.build import VARIABLE, NoKernelError

_OLDEST = (8, 0)  # compute capability: the first whose tensor cores multiply bfloat16
_PROGRAMS_A_PROCESSOR = 2
# Relative Frobenius error against float64 that the self-test allows.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}
_LOGGER = logging.getLogger("torchdfa")

# error (M, K), bits, n and how many programs run at a time; as sign_mm_triton.product
Product = Callable[[Tensor, Tensor, int, int], Tensor]


class Loader:
    """Decides at most once for each GPU, whichever thread asks first; holds the kernel or why there is none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._states: dict[int, Product | str] = {}

    def __call__(self, device: torch.device) -> Product | str:
        if (found := self._states.get(device.index)) is not None:
            return found
        with self._lock:
            if device.index not in self._states:
                self._states[device.index] = _load(device)
            return self._states[device.index]


def _load(device: torch.device) -> Product | str:
    if os.environ.get(VARIABLE) == "off":
        _LOGGER.info("sign_mm runs in plain torch on %s, because %s=off", device, VARIABLE)
        return f"{VARIABLE}=off"
    try:
        product = _open(device)
        _self_test(product, device)
    except NoKernelError as error:
        _LOGGER.warning("sign_mm runs in plain torch on %s, because %s", device, error)
        return str(error)
    return product


def _open(device: torch.device) -> Product:
    found = torch.cuda.get_device_capability(device)
    if found < _OLDEST:
        raise NoKernelError(f"its compute capability is {found[0]}.{found[1]}, and 8.0 is needed")
    try:
        from torchdfa.ops.sign_mm_triton import product
    except Exception as error:  # a broken Triton raises anything
        raise NoKernelError(f"Triton cannot be imported ({_first_line(error)})") from None
    return product


def _self_test(product: Product, device: torch.device) -> None:
    """A kernel that cannot be compiled, or computes something else on this GPU, is not used.

    4099 rows, because an addition that loses bits shows in long sums.
    """
    generator = torch.Generator().manual_seed(0)
    for dtype, tolerance in TOLERANCE.items():
        for m, k, n in ((3, 4096, 512), (70, 4099, 267)):
            error = torch.randn(m, k, generator=generator).to(dtype)
            bits = torch.randint(256, (k, packed_width(n)), generator=generator, dtype=torch.uint8)
            expected = error.double() @ unpack(bits, n, torch.float64)
            try:
                result = _run(product, error.to(device), bits.to(device), n).cpu().double()
            except Exception as failure:  # Triton needs a C compiler and a driver of its age, and raises anything
                raise NoKernelError(f"Triton cannot run its kernel ({_first_line(failure)})") from None
            if not (result - expected).norm() <= tolerance * expected.norm():
                raise NoKernelError(f"its kernel fails the self-test on this GPU in {dtype}")


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".strip().split("\n")[0]


def _run(product: Product, error: Tensor, bits: Tensor, n: int) -> Tensor:
    processors = torch.cuda.get_device_properties(error.device).multi_processor_count
    with torch.cuda.device(error.device):
        return product(error, bits, n, processors * _PROGRAMS_A_PROCESSOR)


load = Loader()


def sign_mm(error: Tensor, bits: Tensor, n: int) -> Tensor | None:
    """The product by the kernel, or None where there is none. Sizes have been checked."""
    if error.dtype not in TOLERANCE or bits.device != error.device:
        return None
    product = load(error.device)
    if isinstance(product, str):
        return None
    return _run(product, error.reshape(-1, error.shape[-1]), bits, n).view(*error.shape[:-1], n)
