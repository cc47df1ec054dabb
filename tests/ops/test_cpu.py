"""The compiled kernel against float64 over sizes, layouts and dtypes; skipped with its reason where there is none."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchdfa.bits import pack, unpack
from torchdfa.ops import cpu, sign_mm
from torchdfa.ops.sign_mm import reference

SIZES = (1, 7, 31, 33, 65, 1000)
# Relative Frobenius error against float64: what float32 sums of 32000 terms leave, with room.
TOLERANCE = {torch.float32: 5e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}


def paths() -> list[cpu.Kernel]:
    kernel = cpu.load()
    if isinstance(kernel, str):
        return []
    return cpu.paths(cpu._open(cpu.library(*cpu.SOURCES)))


PATHS = paths()


@pytest.fixture(params=PATHS, ids=lambda p: p.path)
def path(request: pytest.FixtureRequest) -> cpu.Kernel:
    return request.param


@pytest.fixture(autouse=True)
def needs_a_kernel() -> None:
    if not PATHS:
        pytest.skip(f"no kernel on this machine: {cpu.load()}")


def case(m: int, k: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, k, generator=generator), pack(torch.randn(k, n, generator=generator))


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-300))


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("n", SIZES)
def test_equals_float64(path: cpu.Kernel, k: int, n: int) -> None:
    for m in (1, 2, 3, 4, 5, 8, 9, 33, 65):
        error, bits = case(m, k, n)
        found = path.product(error, bits, n, 1)
        assert distance(found, error.double() @ unpack(bits, n, torch.float64)) < TOLERANCE[torch.float32], m


def test_a_vocabulary_of_32000(path: cpu.Kernel) -> None:
    for m, n in ((1, 300), (9, 300)):
        error, bits = case(m, 32000, n)
        found = path.product(error, bits, n, 1)
        assert distance(found, error.double() @ unpack(bits, n, torch.float64)) < TOLERANCE[torch.float32]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 70), st.integers(0, 300), st.integers(0, 600), st.integers(1, 3), st.integers(0, 2**31))
def test_any_size_any_number_of_threads(m: int, k: int, n: int, threads: int, seed: int) -> None:
    error, bits = case(m, k, n, seed)
    expected = error.double() @ unpack(bits, n, torch.float64)
    for path in PATHS:
        torch.testing.assert_close(path.product(error, bits, n, threads).double(), expected, rtol=1e-4, atol=1e-4)


def test_every_path_row_and_thread_gives_the_same_bits() -> None:
    """The sums are float32 additions in one order, whatever computes them beside each other."""
    error, bits = case(37, 333, 5000)
    whole = PATHS[0].product(error, bits, 5000, 1)
    for path in PATHS:
        for threads in (1, 2, 3):
            assert torch.equal(path.product(error, bits, 5000, threads), whole)
        assert torch.equal(torch.cat([path.product(row[None], bits, 5000, 1) for row in error]), whole)


def test_strided_error_and_bits(path: cpu.Kernel) -> None:
    error, bits = case(12, 90, 700)
    dense = unpack(bits, 700, torch.float64)
    transposed = error.T.contiguous().T
    assert torch.equal(path.product(transposed, bits, 700, 1), path.product(error, bits, 700, 1))
    part = error[::2, 10:70:3]
    rows = bits[10:70:3]
    expected = part.double() @ dense[10:70:3]
    torch.testing.assert_close(path.product(part, rows, 700, 1).double(), expected, rtol=1e-4, atol=1e-4)
    by_column = bits.T.contiguous().T
    assert torch.equal(path.product(error, by_column, 700, 1), path.product(error, bits, 700, 1))
    same = error[:1].expand(5, -1)
    assert torch.equal(path.product(same, bits, 700, 1)[4:], path.product(error[:1], bits, 700, 1))


def test_padding_bits_are_ignored(path: cpu.Kernel) -> None:
    error, bits = case(3, 40, 261)
    dirty = bits.clone()
    dirty[:, -1] |= 0b11100000
    assert torch.equal(path.product(error, dirty, 261, 1), path.product(error, bits, 261, 1))


def test_infinities_and_nan_go_the_way_of_a_matrix_product(path: cpu.Kernel) -> None:
    """A loss scaler looks for them."""
    error, bits = case(3, 40, 300)
    error[0, 5], error[1, 7] = torch.inf, torch.nan
    found, expected = path.product(error, bits, 300, 1), error @ unpack(bits, 300)
    assert torch.equal(found[0].isposinf(), expected[0].isposinf())
    assert found[0].isinf().all()
    assert found[1].isnan().all()
    assert found[2].isfinite().all()


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_the_operator_takes_the_kernel(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    error, bits = case(2 * 3, 70, 900)
    error = error.to(dtype).view(2, 3, 70)
    found = sign_mm(error, bits, 900)
    assert found.dtype == dtype
    assert distance(found, error.double() @ unpack(bits, 900, torch.float64)) < TOLERANCE[dtype]
    assert torch.equal(found, cpu.sign_mm(error, bits, 900))
    monkeypatch.setattr(cpu, "load", lambda: "none")
    assert cpu.sign_mm(error, bits, 900) is None
    assert torch.equal(sign_mm(error, bits, 900), reference(error, bits, 900))


def test_double_precision_and_small_products_stay_with_torch() -> None:
    error, bits = case(4, 70, 900)
    assert cpu.sign_mm(error.double(), bits, 900) is None
    assert cpu.sign_mm(error[:, :3], bits[:3], 900) is None


def test_where_memory_runs_out_the_reference_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    error, bits = case(4, 70, 900)
    monkeypatch.setattr(cpu, "load", lambda: cpu.Kernel("none", 0, lambda *_: 1, False))
    assert torch.equal(sign_mm(error, bits, 900), reference(error, bits, 900))


def test_several_threads_at_once() -> None:
    cases = [case(4 + i, 200 + i, 900 + i) for i in range(8)]
    alone = [sign_mm(error, bits, 900 + i) for i, (error, bits) in enumerate(cases)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            together = pool.map(lambda i: sign_mm(*cases[i], 900 + i), range(8))
            assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_gradient_opcheck_and_compile_with_the_kernel() -> None:
    error, bits = case(4, 70, 900)
    torch.library.opcheck(sign_mm, (error.clone().requires_grad_(), bits, 900))
    torch.compiler.reset()
    run = torch.compile(lambda e: sign_mm(e, bits, 900) + 1, fullgraph=True, backend="aot_eager")
    assert torch.equal(run(error), sign_mm(error, bits, 900) + 1)
