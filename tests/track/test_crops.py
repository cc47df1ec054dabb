from __future__ import annotations

import torch

from torchdfa.track.crops import crop, prepared


def ramp():
    """An image whose red is its column and green its row."""
    y, x = torch.meshgrid(torch.arange(60), torch.arange(80), indexing="ij")
    return torch.stack([x, y, torch.zeros_like(x)]).to(torch.uint8)


def test_a_crop_shows_the_region_around_its_box():
    image = prepared(ramp())
    # context 2 around (30..50, 20..30): the region 20..60 by 15..35, in 8 x 8 pixels of 5 by 2.5
    found = crop(image, torch.tensor([[30.0, 20, 20, 10]]), 2.0, 8) + 128
    assert torch.allclose(found[0, 0, 0], 20 + 5 * (torch.arange(8) + 0.5) - 0.5, atol=1e-3)
    assert torch.allclose(found[0, 1, :, 0], 15 + 2.5 * (torch.arange(8) + 0.5) - 0.5, atol=1e-3)


def test_around_the_image_is_middle_grey():
    found = crop(prepared(ramp()), torch.tensor([[-100.0, -100, 20, 20]]), 1.0, 4)
    assert torch.equal(found, torch.zeros(1, 3, 4, 4))
