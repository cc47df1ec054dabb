from __future__ import annotations

import pytest
import torch
from torch import nn

from torchdfa.track.lrn import NORMS, LocalResponseNorm, Norm


def both(norm, channels, dtype=torch.float32):
    ours = LocalResponseNorm(channels, norm)
    ours.band = ours.band.to(dtype)
    return ours, nn.LocalResponseNorm(norm.size, norm.alpha, norm.beta, norm.k)


@pytest.mark.parametrize("norm", [*NORMS.values(), Norm(3, 1.5, 2e-4, 0.5), Norm(4, 1.0, 1e-3)], ids=str)
def test_it_equals_torchs_own(norm):
    x = torch.randn(3, 12, 5, 7, generator=torch.Generator().manual_seed(0)) * 40
    ours, theirs = both(norm, 12)
    expected = theirs(x)
    assert torch.allclose(ours(x), expected, rtol=1e-6, atol=1e-6)
    lasting = x.contiguous(memory_format=torch.channels_last)
    assert torch.allclose(ours(lasting), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", [*NORMS.values(), Norm(3, 1.5, 2e-4, 0.5)], ids=str)
def test_its_gradient_equals_torchs_own(norm):
    x = torch.randn(2, 9, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) * 40
    x.requires_grad_()
    ours, theirs = both(norm, 9, torch.float64)
    gradient = torch.randn(2, 9, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    (a,) = torch.autograd.grad(ours(x), x, gradient)
    (b,) = torch.autograd.grad(theirs(x), x, gradient)
    assert torch.allclose(a, b, rtol=1e-6, atol=1e-7)


def test_an_odd_gradient_path_is_followed_under_no_grad_too():
    x = torch.full((1, 4, 1, 1), 2.0)
    with torch.no_grad():
        y = LocalResponseNorm(4, Norm(2, 1.0, 1.0, 0.75))(x)
    # windows of one and of two channels: 1 + 4/2 and 1 + 8/2
    assert y.flatten().tolist() == pytest.approx([2 / 3**0.75, *[2 / 5**0.75] * 3], rel=1e-6)
    assert x.flatten().tolist() == [2.0] * 4
