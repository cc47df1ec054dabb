"""Crops around boxes, warped to the network's square, with features computed a few at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchdfa.track.mdnet import CHUNK, CROP, GPU_CHUNK

MIDDLE_GREY = 128.0


def prepared(image: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """uint8 (3, H, W) to float (1, 3, H, W) minus 128: the zero around the image is then middle grey."""
    return (image.to(device, torch.float32) - MIDDLE_GREY)[None]


def crop(image: Tensor, boxes: Tensor, context: float, size: int = CROP) -> Tensor:
    """(n, 3, size, size): the region ``context`` times each box (n, 4) of a prepared image, bilinear."""
    height, width = image.shape[-2:]
    boxes = boxes.to(image.device, torch.float32)
    centre, extent = boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:] * context
    place = (torch.arange(size, device=image.device) + 0.5) / size - 0.5
    x = (centre[:, :1] + place * extent[:, :1]) * (2 / width) - 1
    y = (centre[:, 1:] + place * extent[:, 1:]) * (2 / height) - 1
    n = len(boxes)
    grid = torch.stack([x[:, None, :].expand(n, size, size), y[:, :, None].expand(n, size, size)], dim=-1)
    return F.grid_sample(image.expand(n, -1, -1, -1), grid, align_corners=False)


@torch.no_grad()
def features(
    network: nn.Module, image: Tensor, boxes: Tensor, context: float, *, size: int = CROP, bf16: bool = False
) -> Tensor:  # fmt: skip
    """float32 (n, F): the network's features of the crops around boxes (n, 4) of a prepared image."""
    found = []
    for part in boxes.split(CHUNK if image.device.type == "cpu" else GPU_CHUNK):
        patches = crop(image, part, context, size).contiguous(memory_format=torch.channels_last)
        with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
            found.append(network(patches).float())
    return torch.cat(found)
