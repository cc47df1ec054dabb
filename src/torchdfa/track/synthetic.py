"""Sequences made on the spot: a textured target that moves, grows and turns over a textured ground."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from torchdfa.track.boxes import Boxes
from torchdfa.track.boxfile import write_boxes

Pixels = NDArray[np.uint8]


def sequence(
    frames: int, size: tuple[int, int] = (160, 120), side: int = 30, seed: int = 0
) -> tuple[list[Pixels], Boxes]:
    """Frames (H, W, 3) and true boxes (n, 4): a smooth path, sides within a fifth of ``side``, a second object."""
    random = np.random.default_rng(seed)
    ground = _texture(random, (size[1], size[0]), 12, (60, 60, 60), (150, 140, 130))
    patch = _texture(random, (64, 64), 6, (180, 30, 30), (250, 220, 90))
    other = _texture(random, (64, 64), 6, (30, 60, 160), (120, 190, 220))
    phase = random.uniform(0, 2 * np.pi, 4)
    images, boxes = [], []
    for k in range(frames):
        t = 2 * np.pi * k / 80
        image = Image.fromarray(ground)
        _paste(image, other, _place(size, side, t * 0.8, phase[2:] + 1.5))
        box = _place(size, side * (1 + 0.15 * np.sin(1.3 * t)), t, phase[:2])
        _paste(image, patch, box)
        noisy = np.asarray(image, dtype=np.int16) + random.integers(-8, 9, (size[1], size[0], 1))
        images.append(noisy.clip(0, 255).astype(np.uint8))
        boxes.append(box)
    return images, np.array(boxes, dtype=np.float64)


def _place(size: tuple[int, int], side: float, t: float, phase: NDArray[np.float64]) -> tuple[int, int, int, int]:
    width, height = round(side), round(side * 1.1)
    x = (size[0] - width) * (0.5 + 0.42 * np.sin(t + phase[0]))
    y = (size[1] - height) * (0.5 + 0.42 * np.sin(1.4 * t + phase[1]))
    return round(x), round(y), width, height


def _paste(image: Image.Image, patch: Pixels, box: tuple[int, int, int, int]) -> None:
    image.paste(Image.fromarray(patch).resize(box[2:], Image.Resampling.BILINEAR), box[:2])


def _texture(
    random: np.random.Generator, shape: tuple[int, int], cell: int, dark: tuple[int, ...], light: tuple[int, ...]
) -> Pixels:
    """Smooth random blotches between two colours."""
    coarse = random.random((max(2, shape[0] // cell), max(2, shape[1] // cell)))
    smooth = Image.fromarray((coarse * 255).astype(np.uint8)).resize((shape[1], shape[0]), Image.Resampling.BICUBIC)
    part = np.asarray(smooth, dtype=np.float64)[..., None] / 255
    return ((1 - part) * np.array(dark) + part * np.array(light)).astype(np.uint8)


def write(folder: Path, frames: int, **options: int | tuple[int, int]) -> Path:
    """The same as a folder in OTB's layout."""
    images, boxes = sequence(frames, **options)  # type: ignore[arg-type]
    (folder / "img").mkdir(parents=True, exist_ok=True)
    for k, image in enumerate(images, 1):
        Image.fromarray(image).save(folder / "img" / f"{k:04d}.png")
    write_boxes(folder / "groundtruth_rect.txt", boxes, digits=0)
    return folder
