"""One frame, from whatever holds it to uint8 pixels (3, H, W)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from torchdfa.errors import UsageError
from torchdfa.train import photos

_RULE = "a frame must be a path, a Pillow image, a uint8 array (H, W, 3) or a uint8 tensor (3, H, W)"
Frame: TypeAlias = "str | Path | Image.Image | np.ndarray[Any, Any] | Tensor"


def pixels(frame: Frame) -> Tensor:
    """uint8 (3, H, W) of a file, a Pillow image, an array (H, W, 3) or (H, W), or a tensor (3, H, W).

    Grey and transparent images become RGB, 16-bit grey is scaled to 8. UsageError where that cannot be done.
    """
    if isinstance(frame, (str, Path, Image.Image)):
        return torch.from_numpy(np.array(photos.whole(frame))).permute(2, 0, 1)
    if isinstance(frame, np.ndarray):
        return _of_array(frame)
    if not isinstance(frame, Tensor):
        raise UsageError(f"{_RULE}; found {type(frame).__name__}")
    if frame.dtype == torch.uint8 and frame.ndim == 3 and frame.shape[0] == 3:
        return frame.cpu()
    raise UsageError(f"{_RULE}; found a tensor {frame.dtype} {tuple(frame.shape)}")


def _of_array(array: np.ndarray[Any, Any]) -> Tensor:
    if array.dtype == np.uint16 and array.ndim == 2:
        array = (array >> 8).astype(np.uint8)
    if array.ndim == 2:
        array = np.repeat(array[:, :, None], 3, axis=2)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise UsageError(f"a frame as array must be uint8 (H, W, 3) or (H, W); found {array.dtype} {array.shape}")
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)
