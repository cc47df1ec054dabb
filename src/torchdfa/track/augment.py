"""Variations of the crops of one frame: mirrored, turned, blurred (PyMDNet's three)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

MOST_DEGREES = 30.0
MOST_BLUR = 3.0  # sigma in pixels; PyMDNet blurs with a kernel of up to 7


def vary(crops: Tensor, generator: torch.Generator) -> Tensor:
    """(n, C, H, W) all mirrored or not, turned by up to 30 degrees, blurred in every second frame."""
    mirror, turn, blur, sigma = torch.rand(4, generator=generator).tolist()
    if mirror < 0.5:
        crops = crops.flip(3)
    crops = rotate(crops, (2 * turn - 1) * MOST_DEGREES)
    return gaussian_blur(crops, max(0.1, sigma * MOST_BLUR)) if blur < 0.5 else crops


def rotate(crops: Tensor, degrees: float) -> Tensor:
    """Turned about the centre, bilinear; corners that come from outside are 0 (middle grey)."""
    c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    matrix = crops.new_tensor([[c, -s, 0.0], [s, c, 0.0]]).expand(len(crops), 2, 3)
    grid = F.affine_grid(matrix, list(crops.shape), align_corners=False)
    return F.grid_sample(crops, grid, align_corners=False)


def gaussian_blur(crops: Tensor, sigma: float, radius: int = 3) -> Tensor:
    """Separable Gaussian over 7 pixels; the border is repeated."""
    at = torch.arange(-radius, radius + 1, dtype=crops.dtype, device=crops.device)
    kernel = torch.exp(-(at**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    channels = crops.shape[1]
    padded = F.pad(crops, (radius, radius, radius, radius), mode="replicate")
    across = F.conv2d(padded, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return F.conv2d(across, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
