"""What a tracker asks of its box and of the machine."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from torchdfa.errors import RunError, UsageError
from torchdfa.track.samples import SMALLEST
from torchdfa.train import machine

LEAST_SIDE = 4.0  # pixels


def use_bf16(precision: str, device: str) -> bool:
    """Whether to compute features in bf16; a processor that is slow in it stays with fp32, which is said."""
    chosen = machine.choose_precision(precision, device)
    fast = machine.choose_precision("auto", device) == "bf16"
    if chosen == "bf16" and not fast and device == "cpu":
        warnings.warn("this processor has no fast bf16; fp32 is used, which is faster here.", stacklevel=3)
        return False
    return chosen == "bf16"


def checked_box(box: Any, size: tuple[int, int]) -> Tensor:
    """A box as float64 (4,); UsageError where it cannot be tracked in an image of ``size`` (width, height)."""
    try:
        values = np.asarray(box, dtype=np.float64).reshape(4)
    except (TypeError, ValueError):
        raise UsageError(f"the box must be four numbers x,y,w,h; got {box!r}") from None
    shown, (x, y, w, h), (width, height) = ",".join(f"{v:g}" for v in values), values, size
    if not np.isfinite(values).all():
        raise UsageError(f"the box {shown} holds NaN or infinity")
    if w < LEAST_SIDE or h < LEAST_SIDE:
        raise UsageError(f"the box {shown} is too small: width and height must be at least {LEAST_SIDE:g} pixels")
    if x >= width or y >= height or x + w <= 0 or y + h <= 0:
        raise UsageError(f"the box {shown} lies outside the image of {width} x {height} pixels")
    if w > width or h > height:
        raise UsageError(f"the box {shown} is larger than the image of {width} x {height} pixels")
    if width <= 2 * SMALLEST or height <= 2 * SMALLEST:
        raise RunError(f"an image of {width} x {height} pixels is too small to track in")
    if min(w, h) < SMALLEST or w > width - SMALLEST or h > height - SMALLEST:
        warnings.warn(
            f"the box {shown} is below {SMALLEST:g} pixels or fills the image of {width} x {height}: samples of other "
            "sizes stand for it, and tracking will be poor.",
            stacklevel=3,
        )
    return torch.from_numpy(values.copy())
