"""Time variants of one job in turns within one process, so that whatever else the machine does falls on all alike."""

from __future__ import annotations

import os
import random
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torchdfa
from torchdfa.train import machine

Job = tuple[Callable[[], Any], Callable[[Any], object]]  # prepare, not timed; run what that returned, timed


@dataclass(frozen=True)
class Case:
    """Variants of one job, and which pairs of them are compared: (name of the ratio, slower, faster).

    ``make`` builds the jobs when their turn comes, so that one case's memory is free before the next.
    """

    bench: str
    name: str
    make: Callable[[], Mapping[str, Job]]
    ratios: tuple[tuple[str, str, str], ...]


@dataclass(frozen=True)
class Sample:
    """Seconds of one run: of the wall clock, and of this process's CPU, which others' work does not add to."""

    wall: float
    cpu: float


def timed(job: Job) -> Sample:
    """One run of a job."""
    prepare, run = job
    prepared = prepare()
    wall, cpu = time.perf_counter(), time.process_time()
    run(prepared)
    return Sample(time.perf_counter() - wall, time.process_time() - cpu)


def in_turns(jobs: Mapping[str, Job], rounds: int, seed: int = 0) -> dict[str, list[Sample]]:
    """``rounds`` samples of every job, in an order that is shuffled each round, after one that is not counted."""
    for job in jobs.values():
        timed(job)
    samples: dict[str, list[Sample]] = {name: [] for name in jobs}
    order = random.Random(seed)
    for _ in range(rounds):
        for name in order.sample(list(jobs), len(jobs)):
            samples[name].append(timed(jobs[name]))
    return samples


def quantiles(values: list[float], digits: int) -> dict[str, float]:
    """Median, 20th and 80th percentile; of one value, that value."""
    cuts = statistics.quantiles(values, n=5, method="inclusive") if len(values) > 1 else values * 4
    return {
        "median": round(statistics.median(values), digits),
        "p20": round(cuts[0], digits),
        "p80": round(cuts[3], digits),
    }


def record(case: Case, rounds: int) -> dict[str, Any]:
    """Measure a case; a JSON-able record of its times, the ratios within each round, and the machine."""
    before = os.getloadavg()
    samples = in_turns(case.make(), rounds)
    return {
        "bench": case.bench,
        "case": case.name,
        "rounds": rounds,
        "cpu_ms": {name: quantiles([1000 * s.cpu for s in found], 3) for name, found in samples.items()},
        "wall_ms": {name: quantiles([1000 * s.wall for s in found], 3) for name, found in samples.items()},
        "cpu_ratio": dict(_ratios(case, samples, "cpu")),
        "wall_ratio": dict(_ratios(case, samples, "wall")),
        **surroundings(before),
    }


def _ratios(case: Case, samples: Mapping[str, list[Sample]], clock: str) -> Iterator[tuple[str, dict[str, float]]]:
    for name, slower, faster in case.ratios:
        if slower in samples and faster in samples:
            pairs = zip(samples[slower], samples[faster], strict=True)
            yield name, quantiles([getattr(s, clock) / max(getattr(f, clock), 1e-9) for s, f in pairs], 3)


def surroundings(load_before: tuple[float, float, float]) -> dict[str, Any]:
    """When and where something was measured, with what."""
    kernel = torchdfa.kernels()[0]
    return {
        "kernel": kernel.runs,
        "peers": {name: version(name) for name in ("biotorch",) if find_spec(name) is not None},
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "machine": machine.describe(),
        "measured": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
