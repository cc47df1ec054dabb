"""What a machine is recorded as, and what precision it gets."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import torchdfa
from torchdfa.errors import UsageError
from torchdfa.train import machine

ZEN4 = "processor\t: 0\nmodel name\t: AMD EPYC 9354\nflags\t\t: fpu sse avx2 avx512f avx512_bf16\n"
SAPPHIRE = (
    "processor : 0\nmodel name : Intel Xeon\nflags : avx2 avx512f avx512_bf16 amx_bf16 amx_tile\n\nprocessor : 1\n"
)
HASWELL = "processor : 0\nmodel name : Intel Core i7-4770\nflags : avx avx2\n"


@pytest.mark.parametrize(
    "text, name, flags",
    [
        (ZEN4, "AMD EPYC 9354", ["avx512_bf16", "avx512f", "avx2"]),
        (SAPPHIRE, "Intel Xeon", ["amx_bf16", "avx512_bf16", "avx512f", "avx2"]),
        (HASWELL, "Intel Core i7-4770", ["avx2"]),
    ],
)
def test_the_processor_is_read(tmp_path: Path, text: str, name: str, flags: list[str]) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    assert machine.cpu_info(tmp_path / "cpuinfo") == {"cpu": name, "cpu_flags": flags}


def test_a_system_without_cpuinfo_has_no_flags(tmp_path: Path) -> None:
    assert machine.cpu_info(tmp_path / "none")["cpu_flags"] == []


@pytest.mark.parametrize(
    "flags, precision", [(["amx_bf16"], "bf16"), (["avx512_bf16"], "bf16"), (["avx512f", "avx2"], "fp32"), ([], "fp32")]
)
def test_bf16_is_taken_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch, flags: list[str], precision: str) -> None:
    monkeypatch.setattr(machine, "cpu_info", lambda: {"cpu": "x", "cpu_flags": flags})
    assert machine.choose_precision("auto", "cpu") == precision
    assert machine.choose_precision("fp32", "cpu") == "fp32"
    assert machine.choose_precision("bf16", "cpu") == "bf16"


@pytest.mark.parametrize(
    "flags, fp32, bf16",
    [
        (["avx2"], "winograd", "torch"), (["avx512f", "avx2"], "torch", "torch"), ([], "torch", "torch"),
        (["amx_bf16", "avx512f", "avx2"], "torch", "im2col"), (["avx512_bf16", "avx512f", "avx2"], "torch", "torch"),
    ],
)  # fmt: skip
def test_convolutions_are_those_that_were_measured_to_be_fastest(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], fp32: str, bf16: str
) -> None:
    monkeypatch.setattr(machine, "cpu_info", lambda: {"cpu": "x", "cpu_flags": flags})
    assert machine.choose_convolutions("auto", "cpu", "fp32") == fp32
    assert machine.choose_convolutions("auto", "cpu", "bf16") == bf16
    for precision in ("fp32", "bf16"):
        assert machine.choose_convolutions("auto", "cuda", precision) == "torch"
        assert machine.choose_convolutions("auto", "cpu", precision, compiled=True) == "torch"
        assert machine.choose_convolutions("im2col", "cpu", precision) == "im2col"
    assert machine.choose_convolutions("winograd", "cpu", "fp32") == "winograd"
    assert machine.choose_convolutions("torch", "cpu", "fp32") == "torch"


@pytest.mark.parametrize(
    "convolutions, device, precision, compiled, found",
    [
        ("winograd is for --precision fp32 on a CPU", "cpu", "bf16", False, "bf16 on cpu;"),
        ("winograd is for --precision fp32 on a CPU", "cuda", "fp32", False, "fp32 on cuda;"),
        ("winograd is for --precision fp32 on a CPU", "cpu", "fp32", True, "fp32 on cpu with --compile;"),
        ("im2col is for a CPU", "cuda", "bf16", False, "bf16 on cuda;"),
        ("im2col is for a CPU", "cpu", "bf16", True, "bf16 on cpu with --compile;"),
    ],
)
def test_convolutions_are_refused_where_they_do_not_run(
    convolutions: str, device: str, precision: str, compiled: bool, found: str
) -> None:
    with pytest.raises(UsageError, match=f"--convolutions {convolutions} without --compile; found {found}"):
        machine.choose_convolutions(convolutions.split(maxsplit=1)[0], device, precision, compiled=compiled)


def test_what_needs_a_gpu_is_refused_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--precision fp16 needs a GPU"):
        machine.choose_precision("fp16", "cpu")
    with pytest.raises(UsageError, match="--device cuda needs a GPU"):
        machine.choose_device("cuda")
    assert machine.choose_device("auto") == "cpu"


def test_threads() -> None:
    assert machine.choose_threads(None, 8 * 8) == 1
    assert machine.choose_threads(3, 8 * 8) == 3
    assert machine.choose_threads(None, 32 * 32) >= 1


def test_the_record_is_json_and_names_versions() -> None:
    found = json.loads(json.dumps(machine.describe()))
    assert found["torch"] == torch.__version__
    assert found["torchdfa"] == torchdfa.__version__
    assert found["threads"] == torch.get_num_threads()
    assert {"python", "system", "cpu", "cpu_flags", "cores", "gpu"} <= set(found)
