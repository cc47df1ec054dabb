"""Convolutions of small maps by matrix products give what nn.Conv2d gives."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from torchdfa.train import im2col, models


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


def test_vgg16_keeps_its_names():
    net = models.build("vgg16", classes=10, channels=3, image_size=32)
    names = list(net.state_dict())
    assert im2col.use_(net) == 13
    assert list(net.state_dict()) == names
    assert im2col.use_(net) == 0


@pytest.mark.parametrize("bias", [True, False])
def test_small_maps_go_this_way_and_larger_ones_torch_s(monkeypatch, bias):
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=bias)
    plain = copy.deepcopy(conv)
    im2col.use_(conv)
    taken = []
    own = im2col.conv3x3
    monkeypatch.setattr(im2col, "conv3x3", lambda x, weight: taken.append(tuple(x.shape)) or own(x, weight))
    for shape in ((2, 3, 4, 4), (2, 3, 2, 8), (2, 3, 5, 4), (3, 4, 4)):
        x = torch.randn(shape)
        torch.testing.assert_close(conv(x), plain(x))
    assert taken == [(2, 3, 4, 4), (2, 3, 2, 8)]


def test_under_autocast_it_rounds_as_torch_s_convolution_does():
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 32, 3, padding=1)
    plain = copy.deepcopy(conv)
    im2col.use_(conv)
    x = torch.randn(8, 64, 4, 4)
    inputs, outputs = [x.clone().requires_grad_(), x.clone().requires_grad_()], []
    for layer, image in zip((conv, plain), inputs, strict=True):
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(layer(image))
        outputs[-1].float().square().sum().backward()
    assert outputs[0].dtype == torch.bfloat16
    assert relative(outputs[0].float(), outputs[1].float()) < 2**-8
    assert conv.weight.grad is not None
    assert plain.weight.grad is not None
    assert conv.weight.grad.dtype == torch.float32
    assert relative(conv.weight.grad, plain.weight.grad) < 2**-7
    assert relative(inputs[0].grad, inputs[1].grad) < 2**-7


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(4, 4, 3, padding=1, stride=2), nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 5, padding=2),
        nn.Conv2d(4, 4, 3, padding=2, dilation=2), nn.Conv2d(4, 4, 3, padding=1, groups=2),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), nn.Conv2d(4, 4, 3, padding="same"), nn.Linear(4, 4),
    ],
    ids=str,
)  # fmt: skip
def test_other_layers_are_left_alone(conv):
    assert im2col.use_(conv) == 0
