"""The body for AVX-512, compiled for any processor; where this one has AVX-512, ``test_cpu.py`` runs it too."""

from __future__ import annotations

import platform

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from torchdfa.bits import pack, unpack
from torchdfa.ops import cpu
from torchdfa.ops.build import NoKernelError, library

SIZES = (1, 7, 31, 33, 65, 1000)
TOLERANCE = 5e-6  # relative Frobenius error against float64


def emulated() -> dict[str, cpu.Kernel] | str:
    if platform.machine() != "x86_64":
        return f"AVX-512 is of x86_64, and this is {platform.machine()}"
    try:
        opened = cpu._open(library(*cpu.SOURCES, flags=("-O1", "-DTORCHDFA_EMULATE")))
    except NoKernelError as error:
        return f"no kernel on this machine: {error}"
    return {kernel.path: kernel for kernel in cpu.paths(opened)}


EMULATED = emulated()


@pytest.fixture
def body() -> cpu.Kernel:
    return emulation("avx512")


def emulation(name: str) -> cpu.Kernel:
    if isinstance(EMULATED, str):
        pytest.skip(EMULATED)
    if name not in EMULATED:
        pytest.skip(f"this compiler cannot build the {name} body")
    return EMULATED[name]


def case(m: int, k: int, n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, k, generator=generator), pack(torch.randn(k, n, generator=generator))


def distance(found: Tensor | None, error: Tensor, bits: Tensor, n: int) -> float:
    assert found is not None
    expected = error.double() @ unpack(bits, n, torch.float64)
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-300))


@pytest.mark.parametrize("k", SIZES)
@pytest.mark.parametrize("n", SIZES)
def test_equals_float64(body: cpu.Kernel, k: int, n: int) -> None:
    for m in (1, 2, 3, 6, 9, 17) if k * n < 10**6 else (1, 2, 33):
        error, bits = case(m, k, n)
        assert distance(body.product(error, bits, n, 1), error, bits, n) < TOLERANCE, m


def test_a_vocabulary_of_32000(body: cpu.Kernel) -> None:
    for m, k, n in ((1, 32000, 40), (3, 32000, 40), (3, 40, 32000)):
        error, bits = case(m, k, n)
        assert distance(body.product(error, bits, n, 1), error, bits, n) < TOLERANCE


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 70), st.integers(0, 600), st.integers(0, 600), st.integers(1, 3), st.integers(0, 2**31))
def test_any_size_any_number_of_threads(m: int, k: int, n: int, threads: int, seed: int) -> None:
    error, bits = case(m, k, n, seed)
    assert distance(emulation("avx512").product(error, bits, n, threads), error, bits, n) < TOLERANCE


def test_tables_in_registers_give_the_bits_of_tables_in_memory() -> None:
    error, bits = case(37, 333, 5000)
    registers, memory = emulation("avx512"), emulation("portable")
    for rows in (error[:1], error[:2], error):
        assert torch.equal(registers.product(rows, bits, 5000, 1), memory.product(rows, bits, 5000, 1))


def test_strided_error_and_bits_and_dirty_padding(body: cpu.Kernel) -> None:
    for m in (2, 12):
        error, bits = case(2 * m, 90, 701)
        part, rows = error[::2, 10:70:3], bits[10:70:3].T.contiguous().T.clone()
        rows[:, -1] |= 0b11100000
        assert distance(body.product(part, rows, 701, 1), part, rows, 701) < TOLERANCE
        same = error[:1].expand(m, -1)
        assert torch.equal(body.product(same, bits, 701, 1)[-1], body.product(same, bits, 701, 1)[0])


def test_infinities_and_nan_go_the_way_of_a_matrix_product(body: cpu.Kernel) -> None:
    for m in (2, 4):
        error, bits = case(m, 40, 300)
        error[0, 5] = torch.inf
        error[1, 7] = torch.nan
        found, expected = body.product(error, bits, 300, 1), error @ unpack(bits, 300)
        assert found is not None
        assert torch.equal(found[0].isposinf(), expected[0].isposinf())
        assert found[0].isinf().all()
        assert found[1].isnan().all()
        assert found[2:].isfinite().all()
        error[0, 6] = torch.inf  # minus it where the signs differ
        found, expected = body.product(error, bits, 300, 1), error @ unpack(bits, 300)
        assert found is not None
        assert torch.equal(found[0].isnan(), expected[0].isnan())


def test_the_instructions_themselves() -> None:
    try:
        usable = {kernel.path: kernel for kernel in cpu.paths(cpu._open(library(*cpu.SOURCES)))}
    except NoKernelError as error:
        pytest.skip(f"no kernel on this machine: {error}")
    if "avx512" not in usable:
        pytest.skip("this processor has no AVX-512")
    for m in (1, 2, 3, 9, 33):
        error, bits = case(m, 1000, 700)
        assert distance(usable["avx512"].product(error, bits, 700, 1), error, bits, 700) < TOLERANCE


def test_the_best_comes_first() -> None:
    assert not isinstance(EMULATED, str) or pytest.skip(EMULATED)
    order = list(EMULATED)
    assert order.index("avx512") < order.index("avx2") < order.index("portable")
