"""The transforms of Winograd's convolutions by the fastest means that is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from torchdfa.ops import tiles_cpu, tiles_torch


class Transforms(Protocol):
    """What `tiles_torch` defines."""

    def image_tiles(self, x: Tensor, m: int, size: Sequence[int], *, border: int, stride: int = 1) -> Tensor: ...
    def images(self, products: Tensor, m: int, size: tuple[int, int, int]) -> Tensor: ...
    def gradient_tiles(self, grad: Tensor, m: int) -> Tensor: ...
    def kernel_tiles(self, weight: Tensor, m: int, *, turned: bool = False) -> Tensor: ...
    def kernels(self, products: Tensor, m: int) -> Tensor: ...


def transforms(m: int, like: Tensor, *channels: int) -> Transforms:
    """Those for tiles of m x m and tensors like this one, of so many channels each."""
    compiled = m == tiles_cpu.TILE and like.dtype == torch.float32 and like.device.type == "cpu"
    if compiled and not any(number % tiles_cpu.LANES for number in channels):
        kernel = tiles_cpu.load()
        if not isinstance(kernel, str):
            return kernel
    return tiles_torch
