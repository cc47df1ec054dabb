"""What feedback takes: bytes held, and resident memory that a projection adds, each in a process of its own."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torchdfa.errors import UsageError

_SCRIPT = """
import json, sys
import torch
from torchdfa.bench.memory import resident
from torchdfa.ops import cpu, seed_mm, sign_mm
from torchdfa.ops.sign_mm import reference

torch.set_num_threads(1)
kind, m, k, n = sys.argv[1], *map(int, sys.argv[2:])
error = torch.randn(m, k)
matrix = torch.ones(k, n) if kind == "dense" else None
bits = torch.randint(256, (k, (n + 7) // 8), dtype=torch.uint8) if kind in ("kernel", "chunks") else None
run = {
    "dense": lambda e: e @ matrix,
    "kernel": lambda e: sign_mm(e, bits, n),
    "chunks": lambda e: reference(e, bits, n),
    "seed": lambda e: seed_mm(e, 1, 0, n, "sign", 1.0, torch.float32),
}[kind]
cpu.load()
run(error[:, :k])  # libraries and threads
before = resident("VmRSS")
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts anew
run(error)
held = sum(t.numel() * t.element_size() for t in (matrix, bits) if t is not None)
print(json.dumps({"held_bytes": held, "extra_peak_bytes": max(0, resident("VmHWM") - before)}))
"""
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # of malloc.h
# glibc's threshold stays what it is at first, so that each large block is returned when it is freed: the peak is what
# lives at a time, not what malloc happened to keep.
_MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**17)}
KINDS = ("dense", "kernel", "chunks", "seed")


def resident(field: str) -> int:
    """Bytes of this process's memory by the kernel's count: VmRSS now, VmHWM at most (Linux)."""
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {field}")


def keep_freed() -> None:
    """From now on this process keeps the memory that it frees, so that the next step need not have it mapped again.

    By default glibc returns large blocks to the system, which hands new ones out zeroed page by page.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        raise UsageError("--keep-memory sets options of glibc's malloc, which this system does not have; leave it out")
    for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1)):
        mallopt(option, value)


def measure(m: int, k: int, n: int, kinds: Sequence[str] = KINDS) -> Iterator[tuple[str, dict[str, int]]]:
    """For each way to keep (k, n) feedback, what it holds and what a projection of m errors adds at most."""
    for kind in kinds:
        yield kind, in_process(_SCRIPT, kind, m, k, n, environment=_MALLOC)


def in_process(script: str, *arguments: object, environment: Mapping[str, str] | None = None) -> dict[str, int]:
    """The JSON that a script prints in a process of its own."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    variables = os.environ | (environment or {})
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=variables)
    found: dict[str, int] = json.loads(done.stdout)
    return found
