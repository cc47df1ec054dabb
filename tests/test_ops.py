from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from live_memory import LiveMemory
from torchdfa.bits import pack, unpack
from torchdfa.ops import sign_mm
from torchdfa.ops import sign_mm as op
from torchdfa.ops.sign_mm import reference


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


@pytest.mark.parametrize("shape", [(5,), (0, 5), (2, 0, 5), (2, 3, 5), (2, 1, 3, 5)])
def test_any_leading_sizes(shape: tuple[int, ...]) -> None:
    bits = case(1, 5, 19)[1]
    error = torch.randn(shape, dtype=torch.float64)
    found = sign_mm(error, bits, 19)
    assert found.shape == (*shape[:-1], 19)
    torch.testing.assert_close(found, error @ unpack(bits, 19, torch.float64), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("shape", [(3, 5), (0, 5), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_opcheck_with_every_shape_and_dtype(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    bits = case(1, 5, 19)[1]
    torch.library.opcheck(op, (torch.randn(shape, dtype=dtype, requires_grad=dtype == torch.float32), bits, 19))
    torch.library.opcheck(op, (torch.randn(5, 3, dtype=dtype).T, bits, 19))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_graph_breaks(dynamic: bool) -> None:
    torch.compiler.reset()
    bits = case(1, 5, 19)[1]

    def both(error: torch.Tensor) -> torch.Tensor:
        return sign_mm(error * 2, bits, 19).square().sum()

    compiled = torch.compile(both, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for rows in (3, 7):
        errors = [torch.randn(rows, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1)) for _ in "ab"]
        for error, run in zip(errors, (both, compiled), strict=True):
            run(error.requires_grad_()).backward()
        torch.testing.assert_close(errors[1].grad, errors[0].grad, rtol=1e-13, atol=1e-13)


def test_vmap_over_errors_bits_and_both() -> None:
    errors = torch.randn(4, 3, 5, dtype=torch.float64)
    bits = pack(torch.randn(4, 5, 19))
    for dims, expected in (
        ((0, None), [sign_mm(e, bits[0], 19) for e in errors]),
        ((None, 0), [sign_mm(errors[0], b, 19) for b in bits]),
        ((0, 0), [sign_mm(e, b, 19) for e, b in zip(errors, bits, strict=True)]),
    ):
        e, b = errors if dims[0] == 0 else errors[0], bits if dims[1] == 0 else bits[0]
        found = torch.vmap(lambda e, b: sign_mm(e, b, 19), dims)(e, b)
        torch.testing.assert_close(found, torch.stack(expected), rtol=1e-14, atol=1e-14)


def test_several_threads_at_once() -> None:
    cases = [case(4, 64 + i, 300 + i, torch.float32) for i in range(8)]
    alone = [sign_mm(error, bits, 300 + i) for i, (error, bits) in enumerate(cases)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = pool.map(lambda i: sign_mm(*cases[i], 300 + i), range(8))
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_step_never_holds_more_than_a_chunk_of_signs(dtype: torch.dtype) -> None:
    """A matrix whose ±1 take 66 MB in float32."""
    error, bits = torch.ones(2, 4000, dtype=dtype), torch.zeros(4000, 512, dtype=torch.uint8)
    with LiveMemory() as memory:
        found = reference(error, bits, 4096)
    assert memory.peak <= 12 * 2**20
    assert torch.equal(found, torch.full((2, 4096), -4000.0, dtype=dtype))


@pytest.mark.parametrize(
    "error, bits, n, sentence",
    [
        (torch.ones(2, 3), torch.zeros(4, 1, dtype=torch.uint8), 8, "error has 3 columns and bits 4 rows"),
        (torch.ones(2, 4), torch.zeros(4, 1, dtype=torch.uint8), 9, "9 columns take 2 bytes a row, but bits have 1"),
        (torch.ones(2, 4), torch.zeros(4, 8), 8, "bits must be a uint8 matrix"),
        (torch.ones(2, 4).long(), torch.zeros(4, 1, dtype=torch.uint8), 8, "error must be floating-point"),
    ],
)
def test_sizes_that_do_not_fit_are_named(error: torch.Tensor, bits: torch.Tensor, n: int, sentence: str) -> None:
    with pytest.raises(RuntimeError, match=sentence):
        sign_mm(error, bits, n)
    with pytest.raises(RuntimeError, match=sentence):
        sign_mm(error.to("meta"), bits.to("meta"), n)
