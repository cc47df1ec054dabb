"""Batches of a data set that lies whole on the device as uint8: shuffled, augmented, normalised there."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from torchdfa.errors import UsageError

PADDING = 4  # pixels of black on each side before the random crop


def crop_and_flip(images: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
    """Cut one window from each zero-padded image and mirror it where ``flip`` is true.

    ``images`` is uint8 (B, C, H, W); ``top`` and ``left`` (B,) are in 0 .. 2 * PADDING, PADDING being "not moved";
    the result has the shape of ``images`` and lies in memory as channels_last.
    """
    height, width = images.shape[-2:]
    padded = functional.pad(images, (PADDING,) * 4)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    image = torch.arange(len(images), device=images.device)[:, None, None]
    # Index tensors with a slice between them put their dimensions first: (B, H, W, C).
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


class Batches:
    """Iterate over (normalised float32 images (B, C, H, W), int64 labels (B,)), once an epoch.

    Everything random of an epoch is drawn from ``generator`` at the moment ``iter()`` is called, the same on each
    rank: its state before that call repeats the epoch bit for bit. Rank r takes the images r, r + world_size, ...
    of the common order, in batches of ``batch_size`` images a rank. All ranks yield equally many batches, or
    a collective in the training loop would hang: where the shards differ by one image, the longer ones have
    it in their last batch.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augment: bool,
        shuffle: bool,
        generator: torch.Generator,
        device: torch.device | str,
        channels_last: bool,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        _check(x, y, batch_size, mean, std, rank, world_size)
        self.x, self.y = x.to(device), y.to(device)
        self.batch_size, self.augment, self.shuffle, self.generator = batch_size, augment, shuffle, generator
        self.rank, self.world_size = rank, world_size
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        # (x / 255 - mean) / std as one multiplication and one addition
        mean64, std64 = (torch.tensor(tuple(v), dtype=torch.float64).view(1, -1, 1, 1) for v in (mean, std))
        self._factor = (1 / (255 * std64)).float().to(device)
        self._offset = (-mean64 / std64).float().to(device)

    def __len__(self) -> int:
        return math.ceil(len(self.x) // self.world_size / self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n, shard = len(self.x), slice(self.rank, None, self.world_size)
        order = torch.randperm(n, generator=self.generator) if self.shuffle else torch.arange(n)
        moves = self._draw_moves(n)[shard].to(self.y.device) if self.augment else None
        return self._batches(order[shard].to(self.y.device), moves)

    def _draw_moves(self, n: int) -> Tensor:
        """(n, 3): top and left of each crop, and whether to mirror."""
        corner = torch.randint(2 * PADDING + 1, (n, 2), generator=self.generator)
        return torch.cat([corner, torch.randint(2, (n, 1), generator=self.generator)], dim=1)

    def _batches(self, order: Tensor, moves: Tensor | None) -> Iterator[tuple[Tensor, Tensor]]:
        for k in range(len(self)):
            stop = (k + 1) * self.batch_size if k + 1 < len(self) else None
            part = slice(k * self.batch_size, stop)
            images = self.x[order[part]]
            if moves is not None:
                top, left, flip = moves[part].unbind(1)
                images = crop_and_flip(images, top, left, flip.bool())
            yield self._normalise(images), self.y[order[part]]

    def _normalise(self, images: Tensor) -> Tensor:
        floats = images.contiguous(memory_format=self.memory_format).float()
        return floats.mul_(self._factor).add_(self._offset)


def _check(
    x: Tensor,
    y: Tensor,
    batch_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    rank: int,
    world_size: int,
) -> None:
    if x.dtype != torch.uint8 or x.dim() != 4:
        raise UsageError(f"x must be uint8 images (N, C, H, W), but is {x.dtype} of shape {tuple(x.shape)}.")
    if y.shape != x.shape[:1]:
        raise UsageError(f"y must hold one label for each of the {len(x)} images, but has shape {tuple(y.shape)}.")
    if not len(mean) == len(std) == x.shape[1] or min(std) <= 0:
        raise UsageError(f"mean and std need {x.shape[1]} values each, std above 0, but are {mean} and {std}.")
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, but is {batch_size}.")
    if not 0 <= rank < world_size:
        raise UsageError(f"rank must be in 0 .. {world_size - 1} (world_size - 1), but is {rank}.")
    if len(x) < world_size:
        raise UsageError(f"{len(x)} images cannot be shared among {world_size} processes; use at most {len(x)}.")
