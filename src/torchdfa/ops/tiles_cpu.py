"""The compiled transforms of Winograd's convolutions: those of `tiles_torch` for m = 4, in float32 on a CPU.

Torch multiplies by matrices that are half zeros, and copies before and after; the library reads each pixel once.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from torchdfa.ops import tiles_torch
from torchdfa.ops.build import Loader, NoKernelError, library, one_openmp, open_library

SOURCE = "tiles.c"
TILE, LANES = 4, 8  # the m of its tiles, and what the number of channels must be a multiple of
_IMAGE_TILES, _IMAGES, _GRADIENT_TILES, _KERNEL_TILES, _KERNELS = range(5)  # as numbered in tiles.c
# Numbers that a thread must write before it is worth waking.
_WORK_A_THREAD = 2**16
_ALWAYS = (1, (0, 0), (2**62, 2**62))  # every tap of every tile is there


class Side(ctypes.Structure):
    """Where the taps of the tiles lie in memory, and which are there; as in tiles.c."""

    _fields_ = (
        ("data", ctypes.c_void_p), ("tile", ctypes.c_int64 * 3), ("tap", ctypes.c_int64 * 2),
        ("step", ctypes.c_int64), ("first", ctypes.c_int64 * 2), ("end", ctypes.c_int64 * 2),
    )  # fmt: skip


class Job(ctypes.Structure):
    """What is done to how many tiles; as in tiles.c."""

    _fields_ = (("source", Side), ("to", Side), ("sizes", ctypes.c_int64 * 3), ("channels", ctypes.c_int64))


@dataclass(frozen=True)
class Kernel:
    """The library, with the functions of `tiles_torch`; ``openmp`` where it may use torch's threads."""

    path: str
    function: Any
    openmp: bool

    def image_tiles(self, x: Tensor, m: int, size: Sequence[int], *, border: int, stride: int = 1) -> Tensor:
        x, tiles = _channels_last(x), (len(x), -(-size[0] // m), -(-size[1] // m))
        channels = x.shape[-1]
        out = x.new_empty((m + 2) ** 2, tiles[0] * tiles[1] * tiles[2], stride**2 * channels)
        for row in range(stride):
            for column in range(stride):
                source = _image(x, m, stride, (row - border, column - border))
                to = _planes(out, tiles, (row * stride + column) * channels)
                self._run(_IMAGE_TILES, source, to, tiles, channels)
        return out

    def images(self, products: Tensor, m: int, size: tuple[int, int, int]) -> Tensor:
        products, tiles = products.contiguous(), (size[0], -(-size[1] // m), -(-size[2] // m))
        out = products.new_empty(*size, products.shape[-1])
        self._run(_IMAGES, _planes(products, tiles), _image(out, m), tiles, products.shape[-1])
        return out.permute(0, 3, 1, 2)

    def gradient_tiles(self, grad: Tensor, m: int) -> Tensor:
        grad = _channels_last(grad)
        n, height, width, channels = grad.shape
        tiles = (n, -(-height // m), -(-width // m))
        out = grad.new_empty((m + 2) ** 2, tiles[0] * tiles[1] * tiles[2], channels)
        self._run(_GRADIENT_TILES, _image(grad, m), _planes(out, tiles), tiles, channels)
        return out

    def kernel_tiles(self, weight: Tensor, m: int, *, turned: bool = False) -> Tensor:
        weight = _channels_last(weight)
        kernels, channels = len(weight), weight.shape[-1]
        out = weight.new_empty((m + 2) ** 2, kernels, channels)
        tiles = (kernels, 1, 1)
        self._run(_KERNEL_TILES, _kernel(weight, turned=turned), _planes(out, tiles), tiles, channels)
        return out

    def kernels(self, products: Tensor, m: int) -> Tensor:
        products = products.contiguous()
        tiles, channels = (products.shape[1], 1, 1), products.shape[2]
        out = products.new_empty(tiles[0], 3, 3, channels)
        self._run(_KERNELS, _planes(products, tiles), _kernel(out), tiles, channels)
        return out.permute(0, 3, 1, 2)

    def _run(self, which: int, source: Side, to: Side, tiles: tuple[int, int, int], channels: int) -> None:
        work = (TILE + 2) ** 2 * tiles[0] * tiles[1] * tiles[2] * channels
        threads = max(1, min(torch.get_num_threads(), work // _WORK_A_THREAD)) if self.openmp else 1
        self.function(ctypes.byref(Job(source, to, tiles, channels)), which, threads)


def _channels_last(x: Tensor) -> Tensor:
    """(N, H, W, C), contiguous; no copy of what is in channels_last."""
    return x.permute(0, 2, 3, 1).contiguous()


def _side(x: Tensor, offset: int, tile: Sequence[int], tap: Sequence[int], there: tuple[Any, ...] = _ALWAYS) -> Side:
    return Side(x.data_ptr() + x.element_size() * offset, tuple(tile), tuple(tap), *there)


def _image(x: Tensor, m: int, stride: int = 1, start: tuple[int, int] = (0, 0)) -> Side:
    """Images (N, H, W, C): every ``stride``-th pixel from ``start`` on, which may lie before the first one."""
    image, row, column = x.stride()[:3]
    first = tuple(-(s // stride) for s in start)  # ceil(-s / stride)
    end = tuple(-((s - side) // stride) for s, side in zip(start, x.shape[1:3], strict=True))
    offset = start[0] * row + start[1] * column
    return _side(
        x, offset, (image, m * stride * row, m * stride * column), (stride * row, stride * column), (m, first, end)
    )


def _planes(x: Tensor, tiles: tuple[int, int, int], channel: int = 0) -> Side:
    """Products ((m + 2)^2, tiles, channels), from ``channel`` on."""
    plane, tile = x.stride()[:2]
    along = (tiles[1] * tiles[2] * tile, tiles[2] * tile, tile)
    return _side(x, channel, along, ((TILE + 2) * plane, plane))


def _kernel(x: Tensor, *, turned: bool = False) -> Side:
    """Kernels (K, 3, 3, C), one tile each."""
    kernel, row, column = x.stride()[:3]
    if turned:
        return _side(x, 2 * (row + column), (kernel, 0, 0), (-row, -column))
    return _side(x, 0, (kernel, 0, 0), (row, column))


def _load() -> Kernel:
    kernel = _open()
    _self_test(kernel)
    return kernel


def _open() -> Kernel:
    opened = open_library(library(SOURCE))
    opened.torchdfa_tiles_path.restype = ctypes.c_char_p
    opened.torchdfa_tiles.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_int]
    opened.torchdfa_tiles.restype = None
    openmp = bool(opened.torchdfa_tiles_openmp()) and one_openmp()
    return Kernel(opened.torchdfa_tiles_path().decode(), opened.torchdfa_tiles, openmp)


def _self_test(kernel: Kernel) -> None:
    """A library that computes something else on this machine is not used."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, LANES, 7, 5, generator=generator)
    weight = torch.randn(3, LANES, 3, 3, generator=generator)
    products = torch.randn((TILE + 2) ** 2, 8, LANES, generator=generator)
    for name, arguments, named in (
        ("image_tiles", (x, TILE, (7, 5)), {"border": 1}),
        ("images", (products, TILE, (2, 7, 5)), {}),
        ("gradient_tiles", (x, TILE), {}),
        ("kernel_tiles", (weight, TILE), {"turned": True}),
        ("kernels", (products, TILE), {}),
    ):
        found, expected = (getattr(where, name)(*arguments, **named) for where in (kernel, tiles_torch))
        if not torch.allclose(found, expected, rtol=1e-4, atol=1e-4):
            raise NoKernelError(f"its {name} fails its self-test on this processor")


load = Loader(_load, "Winograd's convolutions run in plain torch, slower")
