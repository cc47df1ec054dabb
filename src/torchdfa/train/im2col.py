"""3x3 convolutions of small maps by matrix products, for CPUs whose own are slow on them.

Chellapilla, Puri & Simard, "High Performance Convolutional Neural Networks for Document Processing" (2006): the 3x3
neighbourhood of each pixel becomes a row ("im2col"), and output and both gradients are matrix products of these rows.
On maps of 4x4 pixels and less, torch's convolutions take several times as long in bf16 on a CPU with AMX, the gradient
of the weights above all. The result is that of ``nn.Conv2d`` but for rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from torchdfa.train.winograd import is_3x3

# Larger maps gain nothing: the rows take nine times the map's memory, and torch's convolutions are fast there.
LARGEST_MAP = 4 * 4  # pixels


def use_(model: nn.Module) -> int:
    """Let the model's 3x3 convolutions that `winograd.is_3x3` names run this way; returns how many they are.

    Parameters, buffers and names stay as they are. Maps larger than `LARGEST_MAP` go torch's way.
    """
    found = [module for module in model.modules() if is_3x3(module)]
    for module in found:
        module.__class__ = Im2colConv2d
    return len(found)


class Im2colConv2d(nn.Conv2d):
    """`nn.Conv2d` with another algorithm for small maps; made of one by `use_`."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[2] * x.shape[3] > LARGEST_MAP:
            return super().forward(x)
        autocast = torch.is_autocast_enabled(x.device.type)
        dtype = torch.get_autocast_dtype(x.device.type) if autocast else x.dtype
        out = conv3x3(x.to(dtype), self.weight.to(dtype))
        return out if self.bias is None else out + self.bias.to(dtype)[:, None, None]


def conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """``F.conv2d(x, weight, padding=1)`` of images (N, C, H, W) with weights (K, C, 3, 3), in channels_last."""
    return _Conv3x3.apply(x, weight)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        rows = _neighbourhoods(x)
        ctx.save_for_backward(rows, weight)
        ctx.channels = x.shape[1]
        return _maps(rows @ _channels_last(weight).flatten(1).t(), x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:  # a convolution too, by the kernels turned round
            taps = _channels_last(weight).flatten(1, 2)
            turned = torch.cat([taps[:, tap] for tap in reversed(range(9))])
            grad_x = _maps(_neighbourhoods(grad) @ turned, grad)
        if ctx.needs_input_grad[1]:
            kernels = _channels_last(grad).flatten(0, 2).t() @ rows
            grad_weight = kernels.view(-1, 3, 3, ctx.channels).permute(0, 3, 1, 2)
        return grad_x, grad_weight


def _channels_last(x: Tensor) -> Tensor:
    """(N, C, H, W) as (N, H, W, C): a view of the same memory where that is in channels_last."""
    return x.permute(0, 2, 3, 1)


def _neighbourhoods(x: Tensor) -> Tensor:
    """Images (N, C, H, W) as (N H W, 9 C): each row the 3x3 pixels round one pixel, zeros beyond the border."""
    padded = F.pad(_channels_last(x), (0, 0, 1, 1, 1, 1)).contiguous()
    image, row, pixel, channel = padded.stride()
    n, channels, height, width = x.shape
    size, stride = (n, height, width, 3, 3, channels), (image, row, pixel, row, pixel, channel)
    return padded.as_strided(size, stride).reshape(n * height * width, 9 * channels)


def _maps(rows: Tensor, like: Tensor) -> Tensor:
    """Rows (N H W, C) as images (N, C, H, W) of the height and width of `like`."""
    return rows.view(len(like), *like.shape[2:], -1).permute(0, 3, 1, 2)
