"""The command ``torchdfa bench``: choose benches, measure, append to a file, show."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from torchdfa.bench import heads, memory, products, table, updates
from torchdfa.bench.harness import record, surroundings
from torchdfa.errors import UsageError
from torchdfa.train import runs

BENCHES = ("sign_mm", "backward", "step", "update", "memory")
SIZES = ("small", "full")
_MEMORY = {"small": (8, 1000, 1024), "full": (32, 32000, 4096)}


def bench(
    names: list[str],
    *,
    size: str,
    only: str,
    rounds: int,
    threads: int,
    keep_memory: bool,
    out: Path | None,
    show: Path | None,
) -> None:
    """Measure the benches ``names`` (all, if none) and print a table; or print that of the file ``show``."""
    _check(names, size, only, rounds, threads)
    if show is not None:
        _show(show, names or list(BENCHES), only)
        return
    if out is not None and (out.is_dir() or not out.parent.is_dir()):
        raise UsageError(f"--out {out} must be a file in a folder that exists")
    torch.set_num_threads(threads)
    if keep_memory:
        memory.keep_freed()
    suffix = f", {threads} threads" * (threads > 1) + ", memory kept" * keep_memory
    found = []
    for value in _records(names or list(BENCHES), size, only, rounds, suffix):
        print(f"{value['bench']} {value['case']}", file=sys.stderr, flush=True)
        found.append(value)
        if out is not None:
            runs.append(out, value)
    if not found:
        raise UsageError(f"--only {only!r} matches no case of {', '.join(names or BENCHES)} at --size {size}")
    _print(found, None)


def _show(path: Path, names: list[str], only: str) -> None:
    found = [r for r in table.latest(path) if r["bench"] in names and re.search(only, f"{r['bench']} {r['case']}")]
    if not found:
        raise UsageError(f"--only {only!r} matches no result of {', '.join(names)} in {path}")
    _print(found, path.with_suffix(".png"))


def _check(names: list[str], size: str, only: str, rounds: int, threads: int) -> None:
    unknown = [name for name in names if name not in BENCHES]
    if unknown:
        raise UsageError(f"bench {unknown[0]!r} must be one of {', '.join(BENCHES)}")
    if size not in SIZES:
        raise UsageError(f"--size {size!r} must be one of {', '.join(SIZES)}")
    for flag, number in (("--rounds", rounds), ("--threads", threads)):
        if number < 1:
            raise UsageError(f"{flag} {number} must be at least 1")
    try:
        re.compile(only)
    except re.error as error:
        raise UsageError(f"--only {only!r} must be a regular expression: {error}") from None


def _records(names: list[str], size: str, only: str, rounds: int, suffix: str) -> Iterator[dict[str, Any]]:
    for plain in (*products.cases(size), *heads.cases(size), *updates.cases(size)):
        case = replace(plain, name=plain.name + suffix)
        if case.bench in names and re.search(only, f"{case.bench} {case.name}"):
            yield record(case, rounds)
    if "memory" in names:
        yield from _memory(size, only)


def _memory(size: str, only: str) -> Iterator[dict[str, Any]]:
    shape, heads = _MEMORY[size], updates.SIZES[size]
    measures: dict[str, Callable[[], Mapping[str, Any]]] = {
        f"({','.join(map(str, shape))})": lambda: dict(memory.measure(*shape)),
        **{f"step {head.name}": partial(updates.memory, head) for head in heads},
    }
    for name, measure in measures.items():
        if re.search(only, f"memory {name}"):
            if sys.platform != "linux":
                raise UsageError("the bench 'memory' reads /proc, which Linux alone has; name the others")
            before = os.getloadavg()
            yield {"bench": "memory", "case": name, "memory": measure(), **surroundings(before)}


def _print(records: list[dict[str, Any]], image: Path | None) -> None:
    wide = 110 if not sys.stdout.isatty() else None
    Console(width=wide, highlight=False).print(table.rendered(records))
    if image is not None:
        table.picture(records, image)
        print(f"picture: {image}")
