"""Which kernels run on this machine, and why."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from torchdfa.ops import cpu, cuda


@dataclass(frozen=True)
class KernelInfo:
    """What computes an operator on a kind of device: a compiled path, or ``"torch"``, the reference in plain torch."""

    op: str
    device: str
    runs: str
    why: str


def kernels() -> tuple[KernelInfo, ...]:
    """What computes each operator here, and why; builds the kernels if they were not used yet. Raises nothing."""
    return _on_cpu(), _on_cuda()


def _on_cpu() -> KernelInfo:
    kernel = cpu.load()
    if isinstance(kernel, str):
        return KernelInfo("sign_mm", "cpu", "torch", kernel)
    one = "one thread: the compiler's OpenMP is missing, or not torch's"
    threads = "as many threads as torch" if kernel.openmp else one
    return KernelInfo("sign_mm", "cpu", kernel.path, f"built by a C compiler of this machine; {threads}")


def _on_cuda() -> KernelInfo:
    """Of the current GPU."""
    if torch.version.cuda is None:
        return KernelInfo("sign_mm", "cuda", "torch", "this torch is built without CUDA")
    if not torch.cuda.is_available():
        return KernelInfo("sign_mm", "cuda", "torch", "torch sees no GPU")
    kernel = cuda.load(torch.device("cuda", torch.cuda.current_device()))
    if isinstance(kernel, str):
        return KernelInfo("sign_mm", "cuda", "torch", kernel)
    name = torch.cuda.get_device_name()
    return KernelInfo("sign_mm", "cuda", "triton", f"compiled by Triton; agrees with float64 on {name}")
