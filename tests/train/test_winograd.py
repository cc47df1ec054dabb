"""Convolutions by Winograd's algorithm give what nn.Conv2d gives."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from torchdfa.train import models, winograd


def relative(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return ((found - wanted).norm() / wanted.norm()).item()


@pytest.mark.parametrize("size", [2, 4, 8, 32])
def test_rounding_in_float32_stays_in_the_last_digits(size):
    torch.manual_seed(0)
    x, weight = torch.randn(4, 64, size, size), torch.randn(64, 64, 3, 3)
    wanted = F.conv2d(x.double(), weight.double(), padding=1)
    assert relative(winograd.conv3x3(x, weight).double(), wanted) < 1e-5


def test_vgg16_keeps_its_first_convolution_and_its_names():
    net = models.build("vgg16", classes=10, channels=3, image_size=32)
    names = list(net.state_dict())
    assert winograd.use_(net) == 12
    assert list(net.state_dict()) == names
    assert type(net.features[0]) is nn.Conv2d
    assert winograd.use_(net) == 0


def test_a_network_with_it_and_one_without_agree_in_every_gradient():
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.Flatten()
    ).double()
    other = copy.deepcopy(plain)
    assert winograd.use_(other) == 1
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    for net in (plain, other):
        net(x).square().sum().backward()
    for (name, found), wanted in zip(other.named_parameters(), plain.parameters(), strict=True):
        assert found.grad is not None
        assert wanted.grad is not None
        assert relative(found.grad, wanted.grad) < 1e-12, name


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(64, 64, 3, padding=1, stride=2), nn.Conv2d(64, 64, 3), nn.Conv2d(64, 64, 5, padding=2),
        nn.Conv2d(64, 64, 3, padding=2, dilation=2), nn.Conv2d(64, 64, 3, padding=1, groups=2),
        nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"), nn.Conv2d(63, 64, 3, padding=1),
        nn.Conv2d(64, 64, 3, padding="same"), nn.Linear(64, 64),
    ],
    ids=str,
)  # fmt: skip
def test_other_layers_are_left_alone(conv):
    assert winograd.use_(conv) == 0


def test_a_single_image_and_autocast_go_torch_s_way():
    conv = nn.Conv2d(64, 8, 3, padding=1)
    x = torch.randn(1, 64, 4, 4)
    wanted = conv(x)
    with torch.autocast("cpu", torch.bfloat16):
        wanted_bf16 = conv(x)
    winograd.use_(conv)
    assert torch.equal(conv(x[0]), nn.functional.conv2d(x[0], conv.weight, conv.bias, padding=1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(conv(x), wanted_bf16)
    torch.testing.assert_close(conv(x), wanted)


@settings(deadline=None, max_examples=40)
@given(
    st.sampled_from([(3, 1), (5, 2)]), st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(5, 17),
    st.integers(5, 17), st.sampled_from([2, 4]), st.integers(0, 2**31),
)  # fmt: skip
def test_fixed_weights_give_what_torch_gives_in_float64(kernel, n, channels, kernels, height, width, m, seed):
    torch.manual_seed(seed)
    conv = nn.Conv2d(channels, kernels, kernel[0], stride=kernel[1]).double()
    x = torch.randn(n, channels, height, width, dtype=torch.float64)
    found = winograd.FixedConv2d(conv, m)(x)
    torch.testing.assert_close(found, conv(x).detach(), rtol=0, atol=1e-12)
    assert not found.requires_grad


@pytest.mark.parametrize(
    "conv",
    [nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, stride=2), nn.Conv2d(2, 2, 5), nn.Conv2d(2, 2, 3, bias=False)],
)
def test_other_convolutions_cannot_be_fixed(conv):
    with pytest.raises(ValueError, match="conv must be 3x3 of stride 1 or 5x5 of stride 2"):
        winograd.FixedConv2d(conv)
