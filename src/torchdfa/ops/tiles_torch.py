"""The transforms of Winograd's convolutions in plain torch: the truth that the compiled ones are compared with.

Lavin & Gray, "Fast Algorithms for Convolutional Neural Networks" (2016). Outputs are computed in tiles of m x m; a tile
has (m + 2)^2 products, each an independent matrix product over channels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Matrices = Mapping[int, Sequence[Sequence[float]]]  # by the side m of a tile of outputs

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


def image_tiles(x: Tensor, m: int, size: Sequence[int], *, border: int, stride: int = 1) -> Tensor:
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


def images(products: Tensor, m: int, size: tuple[int, int, int]) -> Tensor:
    """A^T p A of products ((m + 2)^2, tiles, K): images (N, K, H, W) of ``size`` (N, H, W), in channels_last."""
    n, height, width = size
    rows, columns, channels = -(-height // m), -(-width // m), products.shape[-1]
    pixels = _transform(_OUTPUT, m, products) @ products.flatten(1)
    tiled = pixels.view(m, m, n, rows, columns, channels).permute(2, 3, 0, 4, 1, 5)
    whole = tiled.reshape(n, rows * m, columns * m, channels)
    return whole[:, :height, :width].permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)


def gradient_tiles(grad: Tensor, m: int) -> Tensor:
    """The adjoint of `images`: ((m + 2)^2, tiles, K)."""
    n, channels, height, width = grad.shape
    rows, columns = -(-height // m), -(-width // m)
    padded = F.pad(grad.permute(0, 2, 3, 1), (0, 0, 0, columns * m - width, 0, rows * m - height))
    tiled = padded.reshape(n, rows, m, columns, m, channels).permute(2, 4, 0, 1, 3, 5).reshape(m * m, -1)
    return (_transform(_OUTPUT, m, grad).T @ tiled).view((m + 2) ** 2, -1, channels)


def kernel_tiles(weight: Tensor, m: int, *, turned: bool = False) -> Tensor:
    """G g G^T of weights (K, C, 3, 3), ``turned`` by 180 degrees first: ((m + 2)^2, K, C)."""
    taps = (weight.flip(2, 3) if turned else weight).permute(2, 3, 0, 1).reshape(9, -1)
    return (_transform(_KERNEL, m, weight) @ taps).view(-1, *weight.shape[:2])


def kernels(products: Tensor, m: int) -> Tensor:
    """The adjoint of `kernel_tiles`, of products ((m + 2)^2, K, C): weights (K, C, 3, 3)."""
    taps = _transform(_KERNEL, m, products).T @ products.flatten(1)
    return taps.view(3, 3, *products.shape[1:]).permute(2, 3, 0, 1)


def _transform(matrices: Matrices, m: int, like: Tensor) -> Tensor:
    """A one-dimensional transform taken over rows and columns at once."""
    matrix = torch.tensor(matrices[m], dtype=torch.float64)
    return torch.kron(matrix, matrix).to(like)
