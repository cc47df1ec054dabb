"""The Triton kernel: its arithmetic by Triton's interpreter, its code by compiling it for GPUs that are not there,
the loader with pretended GPUs, and the operator on a real one where there is one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.version import Version
from torch import Tensor

import torchdfa
from torchdfa.bits import pack, unpack
from torchdfa.ops import cuda, kernels, sign_mm
from torchdfa.ops.sign_mm import _on_cuda, reference

NUMPY = Version(np.__version__)
SIZES = (1, 7, 31, 33, 65, 1000)
needs_triton = pytest.mark.skipif(
    find_spec("triton") is None, reason="Triton is not installed: pip install --no-deps -r requirements/triton.txt"
)
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def case(m: int, k: int, n: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, int]:
    generator = torch.Generator().manual_seed(m + 10 * k + 100 * n)
    return torch.randn(m, k, generator=generator).to(dtype), pack(torch.randn(k, n, generator=generator)), n


def distance(found: Tensor, error: Tensor, bits: Tensor, n: int) -> float:
    expected = error.double() @ unpack(bits, n, torch.float64).to(error.device)
    return float((found.double() - expected).norm() / expected.norm().clamp_min(1e-300))


def layouts(dtype: torch.dtype) -> list[tuple[Tensor, Tensor, int]]:
    """Transposed, cut out, repeated without a copy; rows of bits left out, bits by column, dirty padding."""
    error, bits, n = case(12, 90, 133, dtype)
    dirty = bits.clone()
    dirty[:, -1] |= 0b11100000
    return [
        (error.T.contiguous().T, bits, n),
        (error[::2, 10:70:3], bits[10:70:3], n),
        (error[:1].expand(5, -1), bits.T.contiguous().T, n),
        (error, dirty, n),
        (error[:, :0], bits[:0], n),
        (error[:0], bits, n),
    ]


def not_finite(dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    error, bits, n = case(5, 40, 133, dtype)
    error[0, 5], error[1, 7], error[2, 3], error[2, 4] = torch.inf, torch.nan, torch.inf, -torch.inf
    error[3, 0] = torch.finfo(dtype).max
    return error, bits, n


def assert_propagates(found: Tensor, error: Tensor, bits: Tensor, n: int) -> None:
    """Infinities and NaN go the way of a matrix product: a loss scaler looks for them."""
    expected = error @ unpack(bits, n, error.dtype)
    assert found[0].isinf().all()
    assert found[1].isnan().all()
    for kind in (torch.isposinf, torch.isneginf, torch.isnan):
        assert torch.equal(kind(found), kind(expected))
    assert found[3:].isfinite().all()


def _interpreter_loops() -> bool:
    """Triton 3.6's interpreter takes the bound of a loop from an array of one element, which NumPy 2.4 refuses."""
    return find_spec("triton") is not None and (Version(version("triton")) >= Version("3.7") or Version("2.4") > NUMPY)


@needs_triton
@pytest.mark.skipif(not _interpreter_loops(), reason="the interpreter of this Triton fails with NumPy 2.4 or later")
@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_interpreted(dtype: torch.dtype, tmp_path: Path) -> None:
    """Both tile sizes, one program for all rows of the signs or several; layouts; infinities.

    Triton's interpreter cannot multiply bfloat16: parts and signs of float32 are bfloat16 numbers all the same, but are
    held in float32 as they are multiplied.
    """
    sizes = [(m, k, n) for m, (k, n) in zip((1, 17, 3, 33, 65) * 8, product(SIZES, SIZES), strict=False)]
    cases = [(*case(*size, dtype), programs) for size, programs in zip(sizes, (1, 12) * 18, strict=True)]
    cases += [(*one, 1) for one in layouts(dtype)] + [(*not_finite(dtype), 1)]
    torch.save(cases, tmp_path / "cases.pt")
    worker = Path(__file__).with_name("interpreted.py")
    subprocess.run([sys.executable, "-W", "ignore", str(worker), str(tmp_path / "cases.pt")], check=True)
    *found, last = torch.load(tmp_path / "cases.pt")
    for (error, bits, n, programs), one in zip(cases, found, strict=False):
        assert one.dtype == dtype
        assert one.shape == (len(error), n)
        assert distance(one, error, bits, n) < cuda.TOLERANCE[dtype], (error.shape, n, programs)
    assert_propagates(last, *not_finite(dtype))


@pytest.fixture(scope="module")
def fresh_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty cache, so that what was compiled by another version or for another test run is not taken."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("triton")))
        yield


@needs_triton
class TestCompiled:
    """What the compiler makes of the kernel for GPUs of compute capability 8.0 and 9.0."""

    @staticmethod
    def compiled(capability: int, dtype: str, m: int, sizes: int) -> Any:
        """With sizes known to be multiples of 16, or to be 1, or (0) not known: Triton compiles each of these."""
        import triton
        from triton.backends.compiler import GPUTarget

        from torchdfa.ops.sign_mm_triton import COLUMNS, kernel, tile, tl

        rows, depth = tile(m)
        constants = {"OPERAND": tl.float16 if dtype == "fp16" else tl.bfloat16}
        constants |= {"ROWS": rows, "COLUMNS": COLUMNS, "DEPTH": depth} | ({"error_column": 1} if sizes == 16 else {})
        names = {"m", "k", "n", "width", "error_row", "error_column", "bits_row", "out_split", "blocks"}
        constants |= dict.fromkeys(names, 1) if sizes == 1 else {}
        types = dict.fromkeys(kernel.arg_names, "i32") | {"error": f"*{dtype}", "bits": "*u8", "out": f"*{dtype}"}
        types |= dict.fromkeys(constants, "constexpr")
        sixteen = {"error", "bits", "out"} | names - {"m", "error_column", "blocks"} if sizes == 16 else ()
        hints = {(i,): [["tt.divisibility", 16]] for i, name in enumerate(kernel.arg_names) if name in sixteen}
        source = triton.compiler.ASTSource(fn=kernel, signature=types, constexprs=constants, attrs=hints)
        options = {"num_warps": 4, "enable_fp_fusion": False}
        return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)

    @staticmethod
    def loop(ptx: str) -> list[str]:
        """Instructions between the label that is jumped back to and the jump."""
        lines = [re.sub(r"^@!?%p\d+\s+", "", line.strip()) for line in ptx.splitlines()]
        labels: dict[str, int] = {}
        for i, line in enumerate(lines):
            if label := re.match(r"(\$\w+):", line):
                labels[label[1]] = i
            elif (jump := re.match(r"bra\S*\s+(\$\w+);", line)) and jump[1] in labels:
                return [text.split()[0] for text in lines[labels[jump[1]] : i] if re.match(r"[a-z]", text)]
        raise AssertionError("the kernel has no loop")

    @pytest.mark.parametrize("m, sizes", [(1, 16), (1, 1), (33, 0)])
    @pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
    @pytest.mark.parametrize("capability", [80, 90])
    def test_compiles(self, fresh_cache: None, capability: int, dtype: str, m: int, sizes: int) -> None:
        made = self.compiled(capability, dtype, m, sizes)
        assert made.asm["cubin"].startswith(b"\x7fELF")
        assert f".target sm_{capability}" in made.asm["ptx"]
        operands = ".f16.f16" if dtype == "fp16" else ".bf16.bf16"
        products = [text for line in made.asm["ptx"].splitlines() for text in re.findall(r"\bw?g?mma\.\S+", line)]
        assert any(operands in text for text in products)

    @pytest.mark.parametrize("dtype", ["bf16", "fp16"])
    @pytest.mark.parametrize("capability", [80, 90])
    def test_decodes_two_signs_at_a_time(self, fresh_cache: None, capability: int, dtype: str) -> None:
        """In the whole loop fewer than 4 instructions a sign; bit by bit it takes 9 and more."""
        loop = self.loop(self.compiled(capability, dtype, 1, 16).asm["ptx"])
        signs = 64 * 128 // 128  # for each of 128 threads
        assert len(loop) < 4 * signs
        for shift_or_mask in ("shl.b32", "and.b32", "or.b32"):
            assert loop.count(shift_or_mask) < 0.7 * signs

    @pytest.mark.parametrize("m, sizes", [(1, 16), (33, 0)])
    @pytest.mark.parametrize("capability", [80, 90])
    def test_blocks_of_float32_are_added_by_rounding_additions(
        self, fresh_cache: None, capability: int, m: int, sizes: int
    ) -> None:
        """Not by the tensor cores: every number of a tile has its addition in every turn of the loop."""
        loop = self.loop(self.compiled(capability, "fp32", m, sizes).asm["ptx"])
        tile = (16 if m == 1 else 64) * 128
        assert sum(re.match(r"add(\.rn)?\.f32", text) is not None for text in loop) >= tile // 128


class TestLoader:
    """With a GPU and a kernel that are pretended: tensors stay on the CPU."""

    DEVICE = torch.device("cuda", 0)

    @pytest.fixture(autouse=True)
    def pretended(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv(cuda.VARIABLE, raising=False)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Pretended 100")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.version, "cuda", "13.0")
        monkeypatch.setattr(torch.Tensor, "to", self.to)
        monkeypatch.setattr(cuda, "_run", lambda product, error, bits, n: product(error, bits, n, 1))
        monkeypatch.setattr(cuda, "load", cuda.Loader())
        self.kernel(monkeypatch, lambda error, bits, n, programs: reference(error, bits, n))

    @staticmethod
    def to(tensor: Tensor, to: Any, original: Any = torch.Tensor.to) -> Tensor:
        return tensor if isinstance(to, torch.device) else original(tensor, to)

    @staticmethod
    def kernel(monkeypatch: pytest.MonkeyPatch, function: Any) -> None:
        module = type(sys)("torchdfa.ops.sign_mm_triton")
        module.product = function
        monkeypatch.setitem(sys.modules, module.__name__, module)

    def test_a_kernel_that_works_is_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls = []
        self.kernel(monkeypatch, lambda *a: calls.append(a[0].shape) or reference(*a[:3]))
        for dtype in cuda.TOLERANCE:
            error, bits, n = case(6, 70, 90, dtype)
            found = _on_cuda(error.view(2, 3, 70), bits, n)
            assert calls.pop() == (6, 70)
            assert torch.equal(found, reference(error.view(2, 3, 70), bits, n))
        assert len(calls) == 6  # the self-test, once
        error, bits, n = case(6, 70, 90)
        assert cuda.sign_mm(error.double(), bits, n) is None
        on_gpu = kernels()[1]
        assert (on_gpu.runs, on_gpu.why) == ("triton", "compiled by Triton; agrees with float64 on Pretended 100")

    @pytest.mark.parametrize(
        "reason",
        [
            "TORCHDFA_KERNEL=off",
            "its compute capability is 7.5, and 8.0 is needed",
            "Triton cannot be imported (ModuleNotFoundError",
            "Triton cannot run its kernel (RuntimeError: Failed to find C compiler)",
            "its kernel fails the self-test on this GPU in torch.float16",
            "its kernel fails the self-test on this GPU in torch.float32",
        ],
    )
    def test_without_a_kernel_the_results_are_torchs_and_one_reason_is_logged(
        self, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fails(error: Tensor, bits: Tensor, n: int, programs: int) -> Tensor:
            if "C compiler" in reason:
                raise RuntimeError("Failed to find C compiler\nsecond line")
            wrong = torch.inf if "float32" in reason else 1.002 if error.dtype == torch.float16 else 1
            return reference(error, bits, n) * wrong

        self.kernel(monkeypatch, fails)
        if "=off" in reason:
            monkeypatch.setenv(cuda.VARIABLE, "off")
        if "capability" in reason:
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
        if "imported" in reason:
            monkeypatch.setitem(sys.modules, "torchdfa.ops.sign_mm_triton", None)
        with caplog.at_level("INFO", logger="torchdfa"):
            for _ in range(2):
                error, bits, n = case(4, 70, 90)
                assert torch.equal(_on_cuda(error, bits, n), reference(error, bits, n))
        assert len(caplog.messages) == 1
        assert reason in caplog.messages[0]
        assert kernels()[1].runs == "torch"
        assert reason in kernels()[1].why

    def test_paths_of_the_cpu_do_not_turn_it_off(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv(cuda.VARIABLE, "portable")
        assert callable(cuda.load(self.DEVICE))

    def test_the_reason_where_there_is_no_gpu(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert (kernels()[1].runs, kernels()[1].why) == ("torch", "torch sees no GPU")
        monkeypatch.setattr(torch.version, "cuda", None)
        assert (kernels()[1].runs, kernels()[1].why) == ("torch", "this torch is built without CUDA")


@needs_gpu
@pytest.mark.gpu
class TestOnAGPU:
    @pytest.fixture(autouse=True)
    def needs_the_kernel(self) -> None:
        on_gpu = torchdfa.kernels()[1]
        if on_gpu.runs != "triton":
            pytest.skip(f"no kernel on this GPU: {on_gpu.why}")

    @pytest.mark.parametrize("dtype", list(cuda.TOLERANCE))
    def test_equals_float64(self, dtype: torch.dtype) -> None:
        sizes = [*product((1, 3, 16, 17, 65), SIZES, SIZES), (1, 32000, 300), (33, 32000, 4096)]
        for error, bits, n in (*(case(*size, dtype) for size in sizes), *layouts(dtype)):
            error, bits = error.cuda(), bits.cuda()
            found = cuda.sign_mm(error, bits, n)
            assert found is not None
            assert torch.equal(sign_mm(error, bits, n), found)
            assert distance(found, error, bits, n) < cuda.TOLERANCE[dtype], (error.shape, n)

    @pytest.mark.parametrize("dtype", list(cuda.TOLERANCE))
    def test_infinities_and_nan(self, dtype: torch.dtype) -> None:
        error, bits, n = not_finite(dtype)
        assert_propagates(sign_mm(error.cuda(), bits.cuda(), n).cpu(), error, bits, n)

    @pytest.mark.parametrize("dtype", [*cuda.TOLERANCE, torch.float64])
    def test_opcheck_and_compile(self, dtype: torch.dtype) -> None:
        error, bits, n = case(4, 70, 90, dtype)
        error, bits = error.cuda(), bits.cuda()
        torch.library.opcheck(sign_mm, (error, bits, n))
        run = torch.compile(lambda e: sign_mm(e, bits, n) + 1, fullgraph=True, backend="aot_eager")
        assert torch.equal(run(error), sign_mm(error, bits, n) + 1)
