"""How a kernel comes to a user, and that nothing breaks where it cannot."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import torchdfa
from torchdfa.bits import pack
from torchdfa.ops import build, cpu, sign_mm
from torchdfa.ops.build import NoKernelError, library
from torchdfa.ops.sign_mm import reference

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="kernels are built on Linux alone")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a compiler that does not spend its time on speed."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TORCHDFA_CACHE", str(folder))
    monkeypatch.delenv("TORCHDFA_KERNEL", raising=False)
    monkeypatch.setattr(build, "_FLAGS", tuple(flag.replace("-O3", "-O0") for flag in build._FLAGS))
    return folder


@pytest.fixture
def fresh(forget: Callable[[Any], None], cache: Path) -> None:
    forget(cpu)


def small() -> tuple[torch.Tensor, torch.Tensor, int]:
    return torch.randn(4, 70), pack(torch.randn(70, 900)), 900


def compiler_script(folder: Path, body: str) -> str:
    path = folder / "fake-cc"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


@pytest.fixture
def has_compiler() -> None:
    try:
        build._compiler()
    except NoKernelError as error:
        pytest.skip(str(error))


def test_is_built_once_for_this_user_alone(cache: Path, has_compiler: None, monkeypatch: pytest.MonkeyPatch) -> None:
    path = library(*cpu.SOURCES)
    assert path.parent == cache
    assert stat.S_IMODE(cache.stat().st_mode) == 0o700
    assert [p.name for p in cache.iterdir()] == [path.name]
    monkeypatch.setattr(build, "_compile", lambda *_: pytest.fail("built twice"))
    assert library(*cpu.SOURCES) == path


def test_another_compiler_has_another_library(
    cache: Path, tmp_path: Path, has_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = library(*cpu.SOURCES)
    monkeypatch.setenv("CC", compiler_script(tmp_path, 'exec cc "$@"'))
    assert library(*cpu.SOURCES) != first


def test_without_openmp_it_is_built_for_one_thread(
    cache: Path, tmp_path: Path, has_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuse = 'for a in "$@"; do [ "$a" = -fopenmp ] && exit 1; done; exec cc "$@"'
    monkeypatch.setenv("CC", compiler_script(tmp_path, refuse))
    kernel = cpu._choose(cpu._open(library(*cpu.SOURCES)), "auto")
    assert not kernel.openmp
    error, bits, n = small()
    torch.testing.assert_close(kernel.product(error, bits, n, 2), reference(error, bits, n), rtol=1e-4, atol=1e-4)


def test_an_assembler_without_the_latest_instructions_builds_the_others(
    cache: Path, tmp_path: Path, has_compiler: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = 'for a in "$@"; do case "$a" in --version|-DTORCHDFA_PLAIN) exec cc "$@";; esac; done; exit 1'
    monkeypatch.setenv("CC", compiler_script(tmp_path, old))
    opened = cpu._open(library(*cpu.SOURCES))
    assert {kernel.path for kernel in cpu.paths(opened)} <= {"avx2", "portable"}
    assert opened.torchdfa_openmp() == 1


@pytest.mark.parametrize(
    "setting, value, reason",
    [
        ("PATH", "/nonexistent", "no C compiler was found"),
        ("CC", "cc 'unclosed", "cannot be read (No closing quotation)"),
        ("CC", "no-such-compiler --flag", "CC='no-such-compiler' names none"),
        ("CC", "FAKE:echo no; echo broken >&2; exit 1", "could not compile it (broken)"),
        ("CC", "FAKE:echo fine", "could not compile it ()"),
        ("CC", "FAKE:[ $1 = --version ] || for a; do o=$a; done; echo no > $o", "cannot be loaded"),
        ("TORCHDFA_KERNEL", "avx1024", "TORCHDFA_KERNEL='avx1024' is none of auto, off"),
        ("TORCHDFA_KERNEL", "off", "TORCHDFA_KERNEL=off"),
        ("TORCHDFA_CACHE", "/proc/nowhere", "cache folder cannot be made"),
        ("TORCHDFA_CACHE", "OPEN", "others can write to its cache folder"),
    ],
)
def test_without_a_kernel_the_results_are_torchs_and_one_reason_is_logged(
    setting: str, value: str, reason: str, tmp_path: Path, fresh: None, has_compiler: None,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    if value.startswith("FAKE:"):
        value = compiler_script(tmp_path, value.removeprefix("FAKE:"))
    if value == "OPEN":
        (tmp_path / "open").mkdir()
        (tmp_path / "open").chmod(0o777)
        value = str(tmp_path / "open")
    monkeypatch.setenv(setting, value)
    error, bits, n = small()
    with caplog.at_level("INFO", logger="torchdfa"):
        for _ in range(2):
            assert torch.equal(sign_mm(error, bits, n), reference(error, bits, n))
    assert len(caplog.messages) == 1
    assert reason in caplog.messages[0]
    assert torchdfa.kernels()[0].runs == "torch"
    assert reason in torchdfa.kernels()[0].why
    assert not list(tmp_path.glob("cache/build-*"))


def test_a_wrong_library_fails_its_self_test(
    fresh: None, has_compiler: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(cpu.Kernel, "product", lambda self, error, bits, n, threads: error.new_zeros(len(error), n))
    assert "fails its self-test" in str(cpu.load())
    assert "fails its self-test" in caplog.messages[0]


def test_processes_that_start_together_all_get_it(cache: Path, has_compiler: None) -> None:
    code = "from torchdfa.ops import build, cpu; build._FLAGS = (*build._FLAGS, '-O0'); print(cpu.load().path)"
    workers = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ.copy())
        for _ in range(2)
    ]
    found = {worker.communicate()[0] for worker in workers}
    assert found in ({"avx512\n"}, {"avx2\n"}, {"portable\n"})
    assert len(list(cache.iterdir())) == 1


def test_kernels_says_what_runs() -> None:
    on_cpu, on_gpu = torchdfa.kernels()
    assert (on_cpu.op, on_cpu.device) == ("sign_mm", "cpu")
    assert on_cpu.runs in ("torch", "portable", "avx2", "avx512")
    assert (on_gpu.device, on_gpu.runs) == ("cuda", "torch")


def test_importing_builds_nothing(cache: Path) -> None:
    subprocess.run([sys.executable, "-c", "import torchdfa"], check=True, env=os.environ.copy())
    assert not cache.exists()
