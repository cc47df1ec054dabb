"""Which kernels run on this machine, and why."""

from __future__ import annotations

from dataclasses import dataclass

from torchdfa.ops import cpu


@dataclass(frozen=True)
class KernelInfo:
    """What computes an operator on a kind of device: a compiled path, or ``"torch"``, the reference in plain torch."""

    op: str
    device: str
    runs: str
    why: str


def kernels() -> tuple[KernelInfo, ...]:
    """What computes each operator here, and why; builds the CPU kernel if it was not used yet. Raises nothing."""
    kernel = cpu.load()
    if isinstance(kernel, str):
        on_cpu = KernelInfo("sign_mm", "cpu", "torch", kernel)
    else:
        threads = (
            "as many threads as torch"
            if kernel.openmp
            else "one thread: the compiler's OpenMP is missing, or not torch's"
        )
        on_cpu = KernelInfo("sign_mm", "cpu", kernel.path, f"built by a C compiler of this machine; {threads}")
    return on_cpu, KernelInfo("sign_mm", "cuda", "torch", "there is no compiled kernel for GPUs")
