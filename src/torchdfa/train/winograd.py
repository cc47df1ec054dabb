"""3x3 convolutions by Winograd's minimal filtering, for CPUs where torch multiplies every tap.

Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (2016): F(4x4, 3x3) needs 36 products for 16 outputs
where the definition needs 144, F(2x2, 3x3) 16 for 4 where it needs 36. torch takes such an algorithm on a GPU; on a CPU
it has none. The result is that of ``nn.Conv2d`` but for rounding (1e-6 of its norm in float32).
"""

from __future__ import annotations

from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from torchdfa.ops.tiles import transforms

# Below so many input channels the transforms cost what the products save.
LEAST_CHANNELS = 64


def use_(model: nn.Module) -> int:
    """Let those convolutions of the model that gain by it run this way; returns how many they are.

    Parameters, buffers and names stay as they are. Concerned are those that `is_3x3` names, with at least
    `LEAST_CHANNELS` input channels.
    """
    found = [module for module in model.modules() if is_3x3(module) and module.in_channels >= LEAST_CHANNELS]
    for module in found:
        module.__class__ = WinogradConv2d
    return len(found)


def is_3x3(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether it is a 3x3 convolution of stride 1 with a border of one zero, and no groups or dilation."""
    return (
        type(module) is nn.Conv2d
        and (module.kernel_size, module.stride, module.dilation) == ((3, 3), (1, 1), (1, 1))
        and (module.padding, module.padding_mode, module.groups) == ((1, 1), "zeros", 1)
    )


class WinogradConv2d(nn.Conv2d):
    """`nn.Conv2d` with another algorithm; made of one by `use_`."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.dtype != self.weight.dtype or torch.is_autocast_enabled(x.device.type):
            return super().forward(x)
        out, bias = conv3x3(x, self.weight), self.bias
        return out if bias is None else out + bias[:, None, None]


def conv3x3(x: Tensor, weight: Tensor) -> Tensor:
    """``F.conv2d(x, weight, padding=1)`` of images (N, C, H, W) with weights (K, C, 3, 3), in channels_last."""
    return _Conv3x3.apply(x, weight)


class FixedConv2d(nn.Module):
    """What `nn.Conv2d` computes, of weights that no longer change: their transform is kept, and there is no gradient.

    3x3 kernels of stride 1, or 5x5 of stride 2, without a border. The latter are 3x3 kernels on the four images of
    every second pixel: 9 products for an output of which the definition needs 25.
    """

    kernels: Tensor
    bias: Tensor

    def __init__(self, conv: nn.Conv2d, m: int = 4) -> None:
        super().__init__()
        self.m, self.field, self.stride = m, conv.kernel_size[0], conv.stride[0]
        known = (self.field, self.stride) in ((3, 1), (5, 2)) and conv.padding == (0, 0)
        if not known or (conv.groups, conv.dilation) != (1, (1, 1)) or conv.bias is None:
            raise ValueError(f"conv must be 3x3 of stride 1 or 5x5 of stride 2, with a bias and no padding; got {conv}")
        weight = conv.weight.detach()
        phased = weight if self.stride == 1 else _phases(weight)
        kernels = transforms(m, phased, phased.shape[1]).kernel_tiles(phased, m)
        self.register_buffer("kernels", kernels.transpose(1, 2).contiguous(), persistent=False)
        self.register_buffer("bias", conv.bias.detach(), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        height, width = ((side - self.field) // self.stride + 1 for side in x.shape[2:])
        winograd = transforms(self.m, x, x.shape[1], len(self.bias))
        tiles = winograd.image_tiles(x, self.m, (height, width), border=0, stride=self.stride)
        return winograd.images(tiles @ self.kernels, self.m, (len(x), height, width)).add_(self.bias[:, None, None])


def _phases(weight: Tensor) -> Tensor:
    """5x5 kernels (K, C, 5, 5) for stride 2 as 3x3 kernels (K, 4 C, 3, 3) on every second pixel."""
    kernels, channels = weight.shape[:2]
    even = F.pad(weight, (0, 1, 0, 1)).view(kernels, channels, 3, 2, 3, 2)
    return even.permute(0, 3, 5, 1, 2, 4).reshape(kernels, 4 * channels, 3, 3)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        m = 4 if max(x.shape[2:]) > 2 else 2
        winograd = transforms(m, x, *weight.shape[:2])
        tiles = winograd.image_tiles(x, m, x.shape[2:], border=1)
        ctx.save_for_backward(tiles, weight)
        ctx.m, ctx.winograd = m, winograd
        return winograd.images(tiles @ winograd.kernel_tiles(weight, m).transpose(1, 2), m, _size(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        (tiles, weight), m, winograd = ctx.saved_tensors, ctx.m, ctx.winograd
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:  # a convolution too, by the kernels turned round
            around = winograd.image_tiles(grad, m, grad.shape[2:], border=1)
            grad_x = winograd.images(around @ winograd.kernel_tiles(weight, m, turned=True), m, _size(grad))
        if ctx.needs_input_grad[1]:
            grad_weight = winograd.kernels(winograd.gradient_tiles(grad, m).transpose(1, 2) @ tiles, m)
        return grad_x, grad_weight


def _size(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[2], x.shape[3]
