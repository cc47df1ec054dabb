"""Local response normalization, exact and fast.

torch's own form pads and average-pools in three dimensions, which takes most of the time of MDNet's features. Here the
window sum is a few shifted additions, or, in bf16, one 1x1 convolution with a banded matrix: processors that are fast
in bf16 multiply matrices faster than they add.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchdfa.errors import UsageError


@dataclass(frozen=True)
class Norm:
    """y = x / (k + alpha/size * sum of x^2 over ``size`` neighbouring channels)^beta, as torch counts alpha."""

    size: int
    k: float
    alpha: float
    beta: float = 0.75

    def __post_init__(self) -> None:
        values: dict[str, Any] = asdict(self)  # files may hold anything
        finite = all(type(v) in (int, float) and math.isfinite(v) for v in values.values())
        if not (finite and type(values["size"]) is int and self.size >= 1 and self.k > 0 and self.alpha >= 0):
            raise UsageError(
                "a response norm needs a whole size of at least 1, a number k above 0, and finite numbers alpha and "
                f"beta; got size={self.size!r}, k={self.k!r}, alpha={self.alpha!r}, beta={self.beta!r}"
            )

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        return f"size={self.size}, k={self.k:g}, alpha/size={self.alpha / self.size:g}, beta={self.beta:g}"


VGG_M = Norm(size=5, k=2.0, alpha=5e-4)  # VGG-M, MDNet in MATLAB, PyMDNet of 2017: alpha/size is 1e-4
PYMDNET_2019 = Norm(size=2, k=1.0, alpha=1e-4)  # torch.nn.LocalResponseNorm(2)
NORMS = {"vgg-m": VGG_M, "pymdnet-2019": PYMDNET_2019}


class LocalResponseNorm(nn.Module):
    """Equal to ``torch.nn.LocalResponseNorm`` on (N, C, H, W), several times as fast on a CPU."""

    band: Tensor

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        self.norm = norm
        self.register_buffer("band", _band(channels, norm), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return _Normalise.apply(x, self.band.to(x.dtype), self.norm)

    def extra_repr(self) -> str:
        return f"{self.band.shape[0]}, {self.norm}"


class _Normalise(torch.autograd.Function):
    """Both passes in the memory they have taken once: fresh pages cost as much as the arithmetic."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, band: Tensor, norm: Norm) -> Tensor:
        squares = x * x
        d = _window_sum(squares, band, norm, 1).add_(norm.k)
        factor = _power(d, norm.beta, out=squares)
        ctx.save_for_backward(x, band, d, factor)
        ctx.norm = norm
        return x * factor

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """dx = g d^-b - 2 b x S^T (g x d^(-b-1)), with S the window sum."""
        x, band, d, factor = ctx.saved_tensors
        inner = (gradient * x).mul_(factor).div_(d)
        spread = _window_sum(inner, band.transpose(0, 1), ctx.norm, -1)
        return torch.mul(gradient, factor, out=inner).addcmul_(x, spread, value=-2 * ctx.norm.beta), None, None


def _window_sum(values: Tensor, band: Tensor, norm: Norm, direction: int) -> Tensor:
    """alpha/size times the sum over each channel's window, or, with direction -1, over the windows it is in."""
    if values.dtype == torch.bfloat16:
        return F.conv2d(values, band)
    factor, channels = norm.alpha / norm.size, values.shape[1]
    total = values * factor
    for offset in range(-(norm.size // 2), (norm.size - 1) // 2 + 1):
        by = offset * direction
        if by and abs(by) < channels:
            here, there = (total[:, :-by], values[:, by:]) if by > 0 else (total[:, -by:], values[:, :by])
            here.add_(there, alpha=factor)
    return total


def _power(d: Tensor, beta: float, out: Tensor) -> Tensor:
    """d^-beta in ``out``; at MDNet's 3/4 without pow."""
    if beta != 0.75:
        return torch.pow(d, -beta, out=out)
    return torch.sqrt(d, out=out).mul_(d).rsqrt_()


def _band(channels: int, norm: Norm) -> Tensor:
    """(C, C, 1, 1): alpha/size where the column lies in the row's window, which reaches down further if even."""
    index = torch.arange(channels)
    offset = index[None, :] - index[:, None]
    inside = (offset >= -(norm.size // 2)) & (offset <= (norm.size - 1) // 2)
    return (inside * (norm.alpha / norm.size)).float()[:, :, None, None]
