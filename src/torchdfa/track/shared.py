"""Speed mode: one feature map for all candidates of a frame, sampled where each candidate's features would lie.

An approximation (RT-MDNet's idea): neighbouring crops share what lies between them, scale changes only by sampling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchdfa.track.crops import crop

STRIDE, FIELD = 16, 75  # of VGG-M's conv3: pixels between its outputs, and those that each output sees
GRID = 3


@torch.no_grad()
def map_features(
    network: nn.Module, image: Tensor, boxes: Tensor, context: float, *, size: int, bf16: bool = False
) -> Tensor:
    """float32 (n, F), as ``crops.features`` for VGG-M, from one map over the region that holds all crops."""
    boxes = boxes.to(image.device, torch.float32)
    centre, extent = boxes[:, :2] + boxes[:, 2:] / 2, boxes[:, 2:] * context
    pixel = extent.mean(dim=0) / size  # of the image, for one of the network's
    low = (centre - extent / 2).min(dim=0).values
    cells = (((centre + extent / 2).max(dim=0).values - low) / pixel - FIELD).div(STRIDE).ceil().int().clamp(min=2) + 1
    side = FIELD + STRIDE * (int(cells.max()) - 1)
    region = torch.cat([low, pixel * side])[None]
    with torch.autocast(image.device.type, torch.bfloat16, enabled=bf16):
        flat = network(crop(image, region, 1.0, side).contiguous(memory_format=torch.channels_last)).float()
    channels = flat.shape[1] // int(cells.max()) ** 2
    grid = flat.view(1, channels, int(cells.max()), int(cells.max()))
    return _sample(grid, (centre - extent / 2 - low) / pixel, extent / (pixel * size))


def _sample(grid: Tensor, corner: Tensor, scale: Tensor) -> Tensor:
    """Bilinear samples (n, C * 9) where the 3 x 3 outputs of each crop lie in the map, in the network's pixels."""
    n, cells = len(corner), grid.shape[-1]
    at = (FIELD / 2 + STRIDE * torch.arange(GRID, device=grid.device)).float()
    place = ((corner[:, None, :] + scale[:, None, :] * at[None, :, None]) - FIELD / 2) / STRIDE  # in cells
    unit = 2 * place / (cells - 1) - 1
    points = torch.stack([
        unit[:, None, :, 0].expand(n, GRID, GRID), unit[:, :, None, 1].expand(n, GRID, GRID)
    ], dim=-1)  # fmt: skip
    found = F.grid_sample(grid.expand(n, -1, -1, -1), points, align_corners=True, padding_mode="border")
    return found.flatten(1)
