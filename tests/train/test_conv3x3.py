"""3x3 convolutions by other algorithms give what torch's give, in the output and both gradients."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from torchdfa.train import im2col, winograd

ALGORITHMS = pytest.mark.parametrize("algorithm", [im2col, winograd], ids=["im2col", "winograd"])


@ALGORITHMS
@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 3), st.integers(1, 4), st.integers(1, 4), st.integers(1, 11), st.integers(1, 11),
    st.booleans(), st.integers(0, 2**31),
)  # fmt: skip
def test_output_and_both_gradients_equal_torch_in_float64(algorithm, n, channels, kernels, height, width, last, seed):
    torch.manual_seed(seed)
    form = torch.channels_last if last else torch.contiguous_format
    x = torch.randn(n, channels, height, width, dtype=torch.float64).to(memory_format=form).requires_grad_()
    weight = torch.randn(kernels, channels, 3, 3, dtype=torch.float64).to(memory_format=form).requires_grad_()
    out, wanted = algorithm.conv3x3(x, weight), F.conv2d(x, weight, padding=1)
    torch.testing.assert_close(out, wanted, rtol=0, atol=1e-12)
    error = torch.randn_like(wanted)
    for found, true in zip(
        torch.autograd.grad(out, (x, weight), error), torch.autograd.grad(wanted, (x, weight), error), strict=True
    ):
        torch.testing.assert_close(found, true, rtol=0, atol=1e-12)


@ALGORITHMS
def test_only_what_needs_a_gradient_gets_one(algorithm):
    x, weight = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3, requires_grad=True)
    algorithm.conv3x3(x, weight).sum().backward()
    assert x.grad is None
    assert weight.grad is not None
    x, weight = x.requires_grad_(), weight.detach()
    algorithm.conv3x3(x, weight).sum().backward()
    assert x.grad is not None
    assert weight.grad is None
