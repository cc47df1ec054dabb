"""Boxes and words on a frame."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

# Okabe & Ito (2008), told apart with any colour vision; the truth is white.
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#d55e00", "#cc79a7")
TRUTH = "#ffffff"


@dataclass(frozen=True)
class Mark:
    """One box with its colour; dashed where the target is lost."""

    box: NDArray[np.float64]
    colour: str
    label: str = ""
    lost: bool = False


def marked(pixels: NDArray[np.uint8], marks: Seq[Mark], title: str = "") -> NDArray[np.uint8]:
    """The frame (H, W, 3) with boxes and, in their colours, a line of words for each at the top."""
    image = Image.fromarray(pixels)
    pen = ImageDraw.Draw(image)
    width = max(2, round(max(image.size) / 300))
    for mark in marks:
        if np.isfinite(mark.box).all():
            _outline(pen, mark, width)
    lines = [(title, TRUTH), *((mark.label, mark.colour) for mark in marks)]
    for k, (text, colour) in enumerate((text, colour) for text, colour in lines if text):
        at = (4, 3 + 12 * k)
        pen.text((at[0] + 1, at[1] + 1), text, fill="black")
        pen.text(at, text, fill=colour)
    return np.asarray(image)


def _outline(pen: ImageDraw.ImageDraw, mark: Mark, width: int) -> None:
    x, y, w, h = mark.box.tolist()
    corners = [(x, y), (x + w, y), (x + w, y + h), (x, y + h)]
    for a, b in zip(corners, [*corners[1:], corners[0]], strict=True):
        parts: Any = [(a, b)] if not mark.lost else _dashes(a, b)
        for start, end in parts:
            pen.line([start, end], fill=mark.colour, width=width)


def _dashes(a: tuple[float, float], b: tuple[float, float], n: int = 4) -> list[tuple[Any, Any]]:
    at = np.linspace(a, b, 2 * n)
    return [(tuple(at[k]), tuple(at[k + 1])) for k in range(0, 2 * n, 2)]


def side_by_side(panels: Seq[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Panels of one height beside each other."""
    return np.concatenate(list(panels), axis=1)
