"""ReLU, response norm and pooling in one pass, against torch's own three."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from torchdfa.ops import norm_pool as module
from torchdfa.ops.norm_pool import norm_pool

COMPILED = module.load()
needs_the_library = pytest.mark.skipif(isinstance(COMPILED, str), reason=f"no compiled norm here: {COMPILED}")


@pytest.fixture
def loader(forget: Callable[[Any], None]) -> None:
    forget(module)


def slow(x: Tensor, size: int, alpha: float, k: float) -> Tensor:
    return F.max_pool2d(nn.LocalResponseNorm(size, alpha, 0.75, k)(F.relu(x.double())), 3, 2)


@needs_the_library
@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 3), st.sampled_from([1, 3, 8, 13, 96]), st.integers(3, 12), st.integers(3, 12), st.integers(1, 7),
    st.booleans(), st.integers(1, 3),
)  # fmt: skip
def test_it_equals_torchs_three_layers(n, channels, height, width, size, lasting, threads):
    x = torch.randn(n, channels, height, width) * 40
    if lasting:
        x = x.contiguous(memory_format=torch.channels_last)
    before, was = x.clone(), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = norm_pool(x, size, 1e-2, 0.75, 1.5)
    finally:
        torch.set_num_threads(was)
    torch.testing.assert_close(found.double(), slow(x, size, 1e-2, 1.5), rtol=1e-5, atol=1e-5)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(x, before)


@needs_the_library
def test_several_threads_give_the_bits_of_one():
    x, was = torch.randn(5, 96, 51, 51), torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(norm_pool(x, 5, 5e-4, 0.75, 2.0))
    torch.set_num_threads(was)
    assert torch.equal(*found)


@needs_the_library
@pytest.mark.parametrize("size", [2, 3, 5])
def test_bf16_is_rounded_once_at_the_end(size):
    x = (torch.randn(2, 40, 9, 8) * 40).bfloat16()
    found = norm_pool(x, size, 1e-2, 0.75, 1.5)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, norm_pool(x.float(), size, 1e-2, 0.75, 1.5).bfloat16())


@needs_the_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_a_number_stays_so(dtype):
    x = torch.ones(1, 16, 7, 7)
    x[0, 3, 2, 4] = torch.nan
    found = norm_pool(x.to(dtype), 2, 1e-4, 0.75, 1.0)
    assert torch.equal(found.isnan(), slow(x, 2, 1e-4, 1.0).isnan())
    assert found.isnan().sum() == 8  # two windows along rows, two along columns, and the channels 3 and 4
    x[0, 3, 2, 4] = -torch.inf
    assert norm_pool(x.to(dtype), 2, 1e-4, 0.75, 1.0).isfinite().all()


@needs_the_library
def test_what_it_leaves_to_torch():
    x = torch.zeros(1, 8, 5, 5)
    assert norm_pool(x, 2, 1e-4, 0.75, 1.0) is not None
    assert norm_pool(x, 2, 1e-4, 0.5, 1.0) is None
    assert norm_pool(x.double(), 2, 1e-4, 0.75, 1.0) is None
    assert norm_pool(x.to("meta"), 2, 1e-4, 0.75, 1.0) is None
    assert norm_pool(x[..., :2], 2, 1e-4, 0.75, 1.0) is None
    assert norm_pool(x[0], 2, 1e-4, 0.75, 1.0) is None
    x.requires_grad_()
    assert norm_pool(x, 2, 1e-4, 0.75, 1.0) is None
    with torch.no_grad():
        assert norm_pool(x, 2, 1e-4, 0.75, 1.0) is not None


def test_without_the_library_torch_computes_it(loader, reason):
    assert norm_pool(torch.zeros(1, 8, 5, 5), 2, 1e-4, 0.75, 1.0) is None
    assert reason in module.load()


@needs_the_library
def test_a_wrong_library_fails_its_self_test(loader, monkeypatch, caplog):
    call = module.Kernel.__call__
    monkeypatch.setattr(module.Kernel, "__call__", lambda self, x, size, alpha, k: call(self, x, size, alpha, 2 * k))
    assert "it fails its self-test" in module.load()
    assert "plain torch" in caplog.messages[0]
