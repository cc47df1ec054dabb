"""How quickly this processor can look sums up, which bounds ``sign_mm`` with one error.

    python benchmarks/lookup_limit.py > benchmarks/results/lookup_limit.jsonl

Prints one JSON line: cycles a lookup (median of the rounds, taken in turns) for loading a number and adding it, for
taking index bytes out of a word, and for both; cycles are those of additions that wait for each other. x86_64 and gcc.
"""

from __future__ import annotations

import ctypes
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from torchdfa.bench.harness import surroundings

ROUNDS, REPEATS = 31, 20_000
_SOURCE = r"""
#define FOUR(x) x x x x
#define LOOP(name, body) void name(const float *table, const unsigned long *word, long repeats) { \
    for (long i = 0; i < repeats; i++) __asm__ volatile(FOUR(body) : : "D"(table), "S"(word) : "xmm0", "xmm1", \
        "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "rax", "rcx", "rdx"); }
#define BYTES "movzbl %%al, %%ecx; movzbl %%ah, %%edx; shr $16, %%rax;"
#define ADD(x, y) "addss (%%rdi,%%rcx,4), %%xmm" #x "; addss (%%rdi,%%rdx,4), %%xmm" #y ";"
LOOP(cycles, FOUR("add %%rcx, %%rcx; add %%rcx, %%rcx;"))
LOOP(load_and_add, "mov $8, %%ecx; mov $16, %%edx;" ADD(0, 1) ADD(2, 3) ADD(4, 5) ADD(6, 7))
LOOP(take_bytes, "mov (%%rsi), %%rax;" BYTES BYTES BYTES BYTES)
LOOP(both, "mov (%%rsi), %%rax;" BYTES ADD(0, 1) BYTES ADD(2, 3) BYTES ADD(4, 5) BYTES ADD(6, 7))
"""
NAMES = ("cycles", "load_and_add", "take_bytes", "both")


def build(folder: Path) -> ctypes.CDLL:
    path = folder / "limit.so"
    command = ["gcc", "-x", "c", "-", "-O2", "-shared", "-fPIC", "-o", str(path)]
    subprocess.run(command, input=_SOURCE, text=True, check=True)
    return ctypes.CDLL(str(path))


def measure(library: ctypes.CDLL) -> dict[str, list[float]]:
    """CPU seconds of every loop, each round in turn; each loop has 32 steps."""
    table, word = (ctypes.c_float * 256)(), ctypes.c_ulong(0x0706050403020100)
    seconds: dict[str, list[float]] = {name: [] for name in NAMES}
    for _ in range(ROUNDS):
        for name in NAMES:
            start = time.process_time()
            getattr(library, name)(table, ctypes.byref(word), ctypes.c_long(REPEATS))
            seconds[name].append(time.process_time() - start)
    return seconds


def main() -> None:
    before = os.getloadavg()
    with tempfile.TemporaryDirectory() as folder:
        seconds = measure(build(Path(folder)))
    cycles = {
        n: statistics.median(a / c for a, c in zip(seconds[n], seconds["cycles"], strict=True)) for n in NAMES[1:]
    }
    gigahertz = 32 * REPEATS / statistics.median(seconds["cycles"]) / 1e9
    found = {"gigahertz": round(gigahertz, 2), "rounds": ROUNDS, **{n: round(c, 2) for n, c in cycles.items()}}
    print(json.dumps(found | surroundings(before)))


if __name__ == "__main__":
    main()
