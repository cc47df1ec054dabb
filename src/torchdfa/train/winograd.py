"""3x3 convolutions by Winograd's minimal filtering, for CPUs where torch multiplies every tap.

Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (2016): F(4x4, 3x3) needs 36 products for 16 outputs
where the definition needs 144, F(2x2, 3x3) 16 for 4 where it needs 36. torch takes such an algorithm on a GPU; on a CPU
it has none. The result is that of ``nn.Conv2d`` but for rounding (1e-6 of its norm in float32).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

Matrices = Mapping[int, Sequence[Sequence[float]]]  # by the side m of a tile of outputs
# Below so many input channels the transforms cost what the products save.
LEAST_CHANNELS = 64

# B^T transforms the input, G the kernel, and A^T the products back (their names in the paper).
_INPUT: Matrices = {
    2: [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]],
    4: [
        [4, 0, -5, 0, 1, 0], [0, -4, -4, 1, 1, 0], [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0], [0, 2, -1, -2, 1, 0], [0, 4, 0, -5, 0, 1],
    ],
}  # fmt: skip
_KERNEL: Matrices = {
    2: [[1, 0, 0], [1 / 2, 1 / 2, 1 / 2], [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]],
    4: [
        [1 / 4, 0, 0], [-1 / 6, -1 / 6, -1 / 6], [-1 / 6, 1 / 6, -1 / 6],
        [1 / 24, 1 / 12, 1 / 6], [1 / 24, -1 / 12, 1 / 6], [0, 0, 1],
    ],
}  # fmt: skip
_OUTPUT: Matrices = {
    2: [[1, 1, 1, 0], [0, 1, -1, -1]],
    4: [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
}


def use_(model: nn.Module) -> int:
    """Let those convolutions of the model that gain by it run this way; returns how many they are.

    Parameters, buffers and names stay as they are. Concerned are 3x3 convolutions of stride 1 with a border of one
    zero, no groups or dilation, and at least `LEAST_CHANNELS` input channels.
    """
    found = [module for module in model.modules() if _gains(module)]
    for module in found:
        module.__class__ = WinogradConv2d
    return len(found)


def _gains(module: nn.Module) -> bool:
    return (
        type(module) is nn.Conv2d
        and (module.kernel_size, module.stride, module.dilation) == ((3, 3), (1, 1), (1, 1))
        and (module.padding, module.padding_mode, module.groups) == ((1, 1), "zeros", 1)
        and module.in_channels >= LEAST_CHANNELS
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
        self.register_buffer("kernels", _kernels(phased, m).transpose(1, 2).contiguous(), persistent=False)
        self.register_buffer("bias", conv.bias.detach(), persistent=False)

    @torch.no_grad()
    def forward(self, x: Tensor) -> Tensor:
        height, width = ((side - self.field) // self.stride + 1 for side in x.shape[2:])
        tiles = _input_tiles(x, self.m, (height, width), border=0, stride=self.stride)
        return _images(tiles @ self.kernels, self.m, (len(x), height, width)).add_(self.bias[:, None, None])


def _phases(weight: Tensor) -> Tensor:
    """5x5 kernels (K, C, 5, 5) for stride 2 as 3x3 kernels (K, 4 C, 3, 3) on every second pixel."""
    kernels, channels = weight.shape[:2]
    even = F.pad(weight, (0, 1, 0, 1)).view(kernels, channels, 3, 2, 3, 2)
    return even.permute(0, 3, 5, 1, 2, 4).reshape(kernels, 4 * channels, 3, 3)


class _Conv3x3(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        m = 4 if max(x.shape[2:]) > 2 else 2
        tiles = _input_tiles(x, m, x.shape[2:], border=1)
        ctx.save_for_backward(tiles, weight)
        ctx.m = m
        return _images(tiles @ _kernels(weight, m).transpose(1, 2), m, _size(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        tiles, weight = ctx.saved_tensors
        grad_x = grad_weight = None
        if ctx.needs_input_grad[0]:  # a convolution too, by the kernels turned round
            around = _input_tiles(grad, ctx.m, grad.shape[2:], border=1)
            grad_x = _images(around @ _kernels(weight.flip(2, 3), ctx.m), ctx.m, _size(grad))
        if ctx.needs_input_grad[1]:
            grad_weight = _kernel_gradient(_output_tiles(grad, ctx.m).transpose(1, 2) @ tiles, ctx.m)
        return grad_x, grad_weight


def _transform(matrices: Matrices, m: int, like: Tensor) -> Tensor:
    """A one-dimensional transform taken over rows and columns at once."""
    matrix = torch.tensor(matrices[m], dtype=torch.float64)
    return torch.kron(matrix, matrix).to(like)


def _size(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[2], x.shape[3]


def _input_tiles(x: Tensor, m: int, size: Sequence[int], *, border: int, stride: int = 1) -> Tensor:
    """B^T d B of images (N, C, H, W), for outputs of ``size``: ((m + 2)^2, tiles, stride^2 C).

    With stride 2 the pixels of even and odd rows and columns are channels of their own.
    """
    n, channels, height, width = x.shape
    rows, columns, t = -(-size[0] // m), -(-size[1] // m), m + 2
    below, right = (stride * (m * k + 2) - border - side for k, side in ((rows, height), (columns, width)))
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, border, right, border, below))
    image, row, column, channel = padded.stride()
    overlapping = padded.as_strided(
        (t, t, n, rows, columns, stride, stride, channels),
        (row * stride, column * stride, image, row * stride * m, column * stride * m, row, column, channel),
    )
    return (_transform(_INPUT, m, x) @ overlapping.reshape(t * t, -1)).view(t * t, -1, stride**2 * channels)


def _kernels(weight: Tensor, m: int) -> Tensor:
    """G g G^T of weights (K, C, 3, 3): ((m + 2)^2, K, C)."""
    return (_transform(_KERNEL, m, weight) @ weight.permute(2, 3, 0, 1).reshape(9, -1)).view(-1, *weight.shape[:2])


def _images(products: Tensor, m: int, size: tuple[int, int, int]) -> Tensor:
    """A^T p A of products ((m + 2)^2, tiles, K): images (N, K, H, W) of ``size`` (N, H, W), in channels_last."""
    n, height, width = size
    rows, columns, channels = -(-height // m), -(-width // m), products.shape[-1]
    pixels = _transform(_OUTPUT, m, products) @ products.flatten(1)
    tiled = pixels.view(m, m, n, rows, columns, channels).permute(2, 3, 0, 4, 1, 5)
    whole = tiled.reshape(n, rows * m, columns * m, channels)
    return whole[:, :height, :width].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def _output_tiles(grad: Tensor, m: int) -> Tensor:
    """The adjoint of `_images`: ((m + 2)^2, tiles, K)."""
    n, channels, height, width = grad.shape
    rows, columns = -(-height // m), -(-width // m)
    padded = F.pad(grad.permute(0, 2, 3, 1), (0, 0, 0, columns * m - width, 0, rows * m - height))
    tiled = padded.reshape(n, rows, m, columns, m, channels).permute(2, 4, 0, 1, 3, 5).reshape(m * m, -1)
    return (_transform(_OUTPUT, m, grad).T @ tiled).view((m + 2) ** 2, -1, channels)


def _kernel_gradient(products: Tensor, m: int) -> Tensor:
    """The adjoint of `_kernels`, of ((m + 2)^2, K, C): weights (K, C, 3, 3)."""
    taps = _transform(_KERNEL, m, products).T @ products.flatten(1)
    return taps.view(3, 3, *products.shape[1:]).permute(2, 3, 0, 1)
