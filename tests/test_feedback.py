from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from torchdfa.bits import unpack
from torchdfa.errors import ConversionError
from torchdfa.feedback import ConvFeedback, DenseFeedback, SignFeedback, chain_product, require_usable, scale_factor

ALL = slice(None)


def test_dense_projects_the_error_with_its_matrix() -> None:
    matrix = torch.randn(3, 8, dtype=torch.float64)
    error = torch.randn(5, 3, dtype=torch.float64)
    store = DenseFeedback(matrix)
    found = store.project(error, store.tensors(), ALL, torch.Size((5, 2, 2, 2)))
    assert torch.equal(found, (error @ matrix).view(5, 2, 2, 2))


@pytest.mark.parametrize("limit", [0, 2**20])
def test_signs_project_alike_with_and_without_the_unpacked_copy(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchdfa.feedback.UNPACKED_LIMIT_BYTES", limit)
    matrix = torch.randn(3, 9)
    store = SignFeedback(matrix, 0.25, torch.float64)
    assert (store.signs is None) == (limit == 0)
    error = torch.randn(2, 4, 3, dtype=torch.float64)
    expected = (error * 0.25) @ matrix.sign().double()
    torch.testing.assert_close(
        store.project(error, store.tensors(), ALL, torch.Size((2, 4, 9))), expected, rtol=1e-14, atol=1e-14
    )
    rows = slice(1, 3)
    expected = (error[..., 1:] * 0.25) @ matrix.sign().double()[1:]
    found = store.project(error[..., 1:], store.tensors(), rows, torch.Size((2, 4, 9)))
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


def test_signs_cost_one_bit_and_say_what_the_copy_costs() -> None:
    store = SignFeedback(torch.randn(10, 512), 1.0, torch.float32)
    assert store.logical_bytes == 10 * 512 // 8 + 4
    assert store.actual_bytes == store.logical_bytes + 10 * 512 * 4
    assert set(store.state_dict()) == {"bits", "scale"}


@pytest.mark.parametrize(
    "dtype, size, kernel, kept",
    [
        (torch.float32, 8 * 2**20, True, True),  # torch's product is the quickest
        (torch.float32, 8 * 2**20 + 4, True, False),
        (torch.float32, 8 * 2**20 + 4, False, True),
        (torch.float32, 64 * 2**20, False, True),
        (torch.float32, 64 * 2**20 + 4, False, False),
        (torch.bfloat16, 8 * 2**20 + 4, True, True),  # where the kernel was measured in float32 alone
    ],
)
def test_where_a_copy_is_kept(
    dtype: torch.dtype, size: int, kernel: bool, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchdfa.ops.cpu.load", lambda: object() if kernel else "none")
    store = SignFeedback(torch.ones(1, 1), 1.0, dtype)
    store.shape = (1, size // dtype.itemsize)
    assert store._copy_pays(dtype) == kept


def test_where_a_copy_is_kept_is_decided_anew_for_another_dtype_or_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchdfa.feedback.KERNEL_LIMIT_BYTES", 3 * 9 * 2)
    monkeypatch.setattr("torchdfa.feedback.UNPACKED_LIMIT_BYTES", 3 * 9 * 4)
    monkeypatch.setattr("torchdfa.ops.cpu.load", object)
    matrix = torch.randn(3, 9)
    store = SignFeedback(matrix, 0.25, torch.float32)
    assert store.signs is None  # the kernel is quicker
    assert store.float().signs is None
    assert torch.equal(store.bfloat16().signs, torch.where(matrix >= 0, 1.0, -1.0).bfloat16())
    assert store.double().signs is None  # too large
    assert store.float().signs is None
    elsewhere = store.to("meta").signs  # no kernel there
    assert (elsewhere.shape, elsewhere.dtype) == (matrix.shape, torch.float32)


def test_loading_bits_renews_their_unpacked_copy() -> None:
    old, new = (SignFeedback(torch.randn(4, 20), s, torch.float32) for s in (1.0, 2.0))
    old.load_state_dict(new.state_dict())
    assert torch.equal(old.signs, unpack(new.bits, 20))
    assert float(old.scale) == 2.0


def test_stores_hold_no_parameters() -> None:
    for store in (DenseFeedback(torch.ones(2, 3)), SignFeedback(torch.ones(2, 3), 1.0, torch.float32)):
        assert list(store.parameters()) == []


@pytest.mark.parametrize(
    "conv, shape",
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, bias=False), (2, 4, 9, 8)),
        (nn.Conv2d(4, 6, 3, groups=2, dilation=2), (2, 4, 9, 8)),
        (nn.Conv1d(4, 8, 5, padding=2, groups=4), (3, 4, 11)),
        (nn.Conv3d(2, 3, 2), (1, 2, 4, 5, 3)),
    ],
)
def test_conv_feedback_with_the_forward_kernel_is_the_input_gradient(conv: nn.Conv2d, shape: tuple[int, ...]) -> None:
    conv = conv.double()
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    out = conv(x)
    error = torch.randn_like(out)
    (expected,) = torch.autograd.grad(out, x, error)
    store = ConvFeedback(conv.weight.detach().clone(), conv)
    found = store.project(error, store.tensors(), ALL, x.shape)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)


def test_chain_product_order() -> None:
    first, second = torch.randn(5, 7), torch.randn(3, 5)
    torch.testing.assert_close(chain_product([first, second]), second @ first)


def test_scale_unit_number_he_and_match() -> None:
    raw, product = torch.full((4, 50), 2.0), torch.full((4, 50), 0.3)
    assert scale_factor(raw, "unit", product, 50) == 1.0
    assert scale_factor(raw, 0.7, None, 50) == 0.7
    assert scale_factor(raw, "he", None, 50) * 2.0 == pytest.approx(math.sqrt(2 / 50))
    assert scale_factor(raw, "match", product, 50) * 2.0 == pytest.approx(0.3)
    assert scale_factor(product, "match", product, 50) == 1.0


def test_match_without_a_product_says_what_to_pass() -> None:
    with pytest.raises(ConversionError, match='Pass scale="he"'):
        scale_factor(torch.ones(2, 2), "match", None, 2)


def test_zero_and_non_finite_products_are_refused() -> None:
    with pytest.raises(ConversionError, match=r"'fc2'.*zero"):
        require_usable(torch.zeros(2, 3), "fc2")
    with pytest.raises(ConversionError, match="not finite"):
        require_usable(torch.tensor([[float("nan")]]), "fc2")
