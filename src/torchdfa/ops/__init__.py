"""Operators with a schema, a fake and a reference in plain torch, and compiled kernels where they work."""

from torchdfa.ops.kernels import KernelInfo, kernels
from torchdfa.ops.seed_mm import seed_mm
from torchdfa.ops.sign_mm import sign_mm

__all__ = ["KernelInfo", "kernels", "seed_mm", "sign_mm"]
