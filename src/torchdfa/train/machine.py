"""What a run ran on: versions, processor, threads; and the device, precision and convolutions chosen for it."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import torchdfa
from torchdfa.errors import UsageError
from torchdfa.train.config import TrainConfig

# Flags that decide how fast bf16 is on a CPU.
_CPU_FLAGS = ("amx_bf16", "avx512_bf16", "avx512f", "avx2")
_ALL_THREADS = torch.get_num_threads()  # torch's own choice: all cores, or OMP_NUM_THREADS
SMALL_IMAGE = 16 * 16  # pixels


def cpu_info(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, Any]:
    """Model name of the processor and those of its flags that matter here (none where the system tells none)."""
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return {"cpu": platform.processor() or platform.machine(), "cpu_flags": []}
    pairs = dict(line.split(":", 1) for line in reversed(lines) if ":" in line)
    values = {key.strip(): value.strip() for key, value in pairs.items()}
    flags = values.get("flags", "").split()
    return {
        "cpu": values.get("model name") or platform.machine(),
        "cpu_flags": [flag for flag in _CPU_FLAGS if flag in flags],
    }


def describe() -> dict[str, Any]:
    """JSON-able record of the machine and versions."""
    return {
        "torchdfa": torchdfa.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        **cpu_info(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def choose_device(device: str) -> str:
    """ "cpu" or "cuda"; "auto" takes the GPU where there is one."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda needs a GPU that torch can use, and torch sees none; take --device cpu")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def choose_threads(threads: int | None, pixels: int) -> int:
    """CPU threads: as given, or one for images of up to 16 x 16 pixels, or else as many as torch takes by itself.

    Small work gains nothing from a second thread, and on a busy machine the threads wait for each other so long that
    it takes twenty times as long.
    """
    return threads or (1 if pixels <= SMALL_IMAGE else _ALL_THREADS)


def choose_precision(precision: str, device: str) -> str:
    """ "fp32", "bf16" or "fp16". "auto" takes bf16 where it is fast: a GPU that has it, a CPU with AMX or AVX512_BF16.

    Elsewhere on a CPU bf16 is emulated and slower than fp32. fp16 needs a GPU.
    """
    if precision == "fp16" and device == "cpu":
        raise UsageError("--precision fp16 needs a GPU; take --precision bf16, fp32 or auto")
    if precision != "auto":
        return precision
    if device == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    return "bf16" if {"amx_bf16", "avx512_bf16"} & set(cpu_info()["cpu_flags"]) else "fp32"


@dataclass(frozen=True)
class Resolved:
    """What "auto" became."""

    device: str
    precision: str
    convolutions: str


def resolve(config: TrainConfig) -> Resolved:
    """What the settings come to on this machine; UsageError where it cannot do what they ask for."""
    device = choose_device(config.device)
    precision = choose_precision(config.precision, device)
    convolutions = choose_convolutions(config.convolutions, device, precision, compiled=config.compile)
    return Resolved(device, precision, convolutions)


def choose_convolutions(convolutions: str, device: str, precision: str, *, compiled: bool = False) -> str:
    """ "torch", "winograd" or "im2col"; "auto" takes the one that was measured to be the fastest.

    On a CPU with AVX2 and without AVX-512 that is Winograd's algorithm in fp32, a third of the time of a VGG-16 step;
    on one with AMX it is im2col in bf16, about half (docs, decisions). Elsewhere it is torch.
    """
    on_cpu = device == "cpu" and not compiled
    possible = {"winograd": on_cpu and precision == "fp32", "im2col": on_cpu and precision != "fp16"}
    if not possible.get(convolutions, True):
        where = "for --precision fp32 on a CPU" if convolutions == "winograd" else "for a CPU"
        raise UsageError(
            f"--convolutions {convolutions} is {where} without --compile; found "
            f"{precision} on {device}{' with --compile' if compiled else ''}; take --convolutions auto"
        )
    if convolutions != "auto":
        return convolutions
    flags = cpu_info()["cpu_flags"]
    if possible["winograd"] and "avx2" in flags and "avx512f" not in flags:
        return "winograd"
    return "im2col" if possible["im2col"] and precision == "bf16" and "amx_bf16" in flags else "torch"
