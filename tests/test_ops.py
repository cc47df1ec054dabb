from __future__ import annotations

import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchdfa.bits import pack, unpack
from torchdfa.ops import sign_mm
from torchdfa.ops import sign_mm as op


def case(m: int, k: int, n: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(m + 10 * k + 100 * n)
    error = torch.randn(m, k, generator=generator, dtype=torch.float64).to(dtype)
    return error, pack(torch.randn(k, n, generator=generator))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 5), st.integers(1, 20), st.integers(1, 70))
def test_equals_the_dense_product(m: int, k: int, n: int) -> None:
    error, bits = case(m, k, n)
    torch.testing.assert_close(sign_mm(error, bits, n), error @ unpack(bits, n, torch.float64), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_keeps_the_dtype_of_the_error(dtype: torch.dtype) -> None:
    error, bits = case(3, 10, 33, dtype)
    assert torch.equal(sign_mm(error, bits, 33), error @ unpack(bits, 33, dtype))


def test_chunks_do_not_change_the_product(monkeypatch: pytest.MonkeyPatch) -> None:
    error, bits = case(4, 6, 75)
    whole = sign_mm(error, bits, 75)
    monkeypatch.setattr(sys.modules["torchdfa.ops.sign_mm"], "CHUNK_BYTES", 8 * 6 * 8)
    torch.testing.assert_close(sign_mm(error, bits, 75), whole, rtol=1e-14, atol=1e-14)


def test_non_contiguous_error_and_a_slice_of_rows() -> None:
    error, bits = case(4, 6, 21)
    dense = unpack(bits, 21, torch.float64)
    wide = torch.randn(12, 4, dtype=torch.float64).T[:, ::2]
    torch.testing.assert_close(sign_mm(wide, bits, 21), wide @ dense, rtol=1e-14, atol=1e-14)
    part = sign_mm(error[:, 2:5], bits[2:5], 21)
    torch.testing.assert_close(part, error[:, 2:5] @ dense[2:5], rtol=1e-14, atol=1e-14)


def test_opcheck() -> None:
    error, bits = case(3, 5, 19)
    torch.library.opcheck(op, (error.requires_grad_(), bits, 19))


def test_gradient_is_the_transposed_product() -> None:
    error, bits = case(3, 5, 19)
    error.requires_grad_()
    weight = torch.randn(3, 19, dtype=torch.float64)
    (sign_mm(error, bits, 19) * weight).sum().backward()
    torch.testing.assert_close(error.grad, weight @ unpack(bits, 19, torch.float64).T, rtol=1e-14, atol=1e-14)
