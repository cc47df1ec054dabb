"""Run many recipes: which are to do, how far they are, and what became of them."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from torchdfa import runner
from torchdfa.errors import RunError, UsageError
from torchdfa.paper import results, work
from torchdfa.paper.recipes import Recipe, learned, owners, protocol_named, recipes, select
from torchdfa.runner import Outcome
from torchdfa.train import checkpoint, program, runs
from torchdfa.train.config import TrainConfig


@dataclass(frozen=True)
class Campaign:
    """Recipes by their patterns, seeds 0 to `seeds` - 1, where results go; `aside` are settings of how to run."""

    protocol: str
    patterns: Sequence[str]
    seeds: int
    folder: Path
    keep: bool
    aside: dict[str, Any]


def run(plan: Campaign, *, workers: int, hours: float | None, scheduler: str | None) -> int:
    """Train what is not finished; returns the exit code: 0, 1 where a run failed, 130 after Ctrl-C.

    Raises UsageError before anything is trained where an argument, the data or the results folder are wrong, and
    RunError where `hours` were too few for one epoch of any run.
    """
    runner.check(workers, hours, scheduler=scheduler)
    todo = _todo(plan)
    if not todo:
        print(f"nothing to do: every run of {', '.join(plan.patterns)} is finished in {plan.folder / plan.protocol}")
        return 0
    alone = workers == 1 and scheduler is None
    threads = plan.aside["threads"] or (None if alone else 1 if scheduler else max(1, runner.cores() // workers))
    aside = plan.aside | {"threads": threads}
    _require_data(todo, aside)
    tasks = [work.task(r, plan.protocol, s, plan.folder, keep=plan.keep, quiet=not alone, **aside) for r, s in todo]
    watched = _Watched(plan, todo)
    began, before = time.time(), watched.trained() if hours is not None else 0
    with watched.shown(hidden=alone) as watch:
        outcomes = runner.run(tasks, workers=workers, threads=threads, scheduler=scheduler, hours=hours, watch=watch)
        counts = _told(outcomes, len(tasks), watched)
    ended_early = hours is not None and time.time() >= began + 3600 * hours
    if ended_early and not counts["done"] + counts["failed"] and watched.trained() <= before:
        raise RunError(
            f"--hours {hours:g} ended before one epoch of any run (checkpoints are kept, so the same command goes on "
            "from them); take a larger budget, or more --threads"
        )
    if counts["failed"]:
        return 1
    return 130 if counts["stopped"] + counts["left"] and not ended_early else 0


def _told(outcomes: Iterator[Outcome], total: int, watched: _Watched) -> Counter[str]:
    """Say of each run what became of it as it ends, and how many there were of each kind."""
    counts: Counter[str] = Counter()
    for outcome in outcomes:
        counts[outcome.status] += 1
        if outcome.status != "left":
            watched.say(f"[{counts.total()}/{total}] {outcome.name}: {outcome.value or outcome.message}")
    watched.say(runner.tally(counts))
    return counts


def _todo(plan: Campaign) -> list[tuple[Recipe, int]]:
    """Seed 0 of all recipes first, then seed 1: where the time ends, seeds are what is missing."""
    available = recipes(protocol_named(plan.protocol))
    if plan.seeds < 1:
        raise UsageError(f"--seeds must be at least 1; got {plan.seeds}")
    chosen = owners(available, select(available, plan.patterns))
    results.make_folder(plan.folder / plan.protocol)
    found, notes = results.read_folder(plan.folder, plan.protocol)
    for note in notes:
        print(note)
    finished = {(name, r.seed) for name, rs in results.matching(found, available).items() for r in rs}
    return [(r, seed) for seed in range(plan.seeds) for r in chosen if (r.name, seed) not in finished]


def _require_data(todo: Sequence[tuple[Recipe, int]], aside: dict[str, Any]) -> None:
    """Read each data set once: what is wrong with it is said once, and it is fetched by one process."""
    names = dict.fromkeys(str(recipe.settings["data"]) for recipe, _ in todo)
    for name in names:
        program.load(TrainConfig(data=name, data_dir=aside["data_dir"], download=aside["download"]))


class _Watched:
    """How far runs are, read off their folders, which works for workers on any machine."""

    def __init__(self, plan: Campaign, todo: Sequence[tuple[Recipe, int]]) -> None:
        self._runs = [
            (
                plan.folder / plan.protocol / results.file_name(recipe.name, seed),
                work.working_folder(plan.folder, plan.protocol, recipe.name, seed) / runs.METRICS,
                recipe.settings["epochs"],
            )
            for recipe, seed in todo
        ]
        self._console = Console(soft_wrap=True, highlight=False, markup=False)

    def epochs(self) -> int:
        """Epochs that are trained and tested, of all runs together."""
        return sum(total if result.exists() else _last_epoch(metrics) for result, metrics, total in self._runs)

    def trained(self) -> int:
        """Epochs in the checkpoints of runs that have not ended, tested or not."""
        return sum(_saved_epochs(metrics.with_name(runs.CHECKPOINT)) for _, metrics, _ in self._runs)

    @contextmanager
    def shown(self, *, hidden: bool) -> Iterator[Any]:
        """A bar over all runs, in a terminal; yields what moves it."""
        if hidden or not self._console.is_terminal:
            yield lambda: None
            return
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("epochs"), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self._console) as bar:
            task = bar.add_task("", total=sum(total for _, _, total in self._runs), completed=self.epochs())
            yield lambda: bar.update(task, completed=self.epochs())

    def say(self, line: str) -> None:
        self._console.print(line)


def _last_epoch(metrics: Path) -> int:
    """0 where there is nothing yet, or nothing readable at this moment."""
    try:
        lines = [line for line in runs.read_lines(metrics) if isinstance(line.get("epoch"), int)]
    except UsageError:
        return 0
    return lines[-1]["epoch"] if lines else 0


def _saved_epochs(path: Path) -> int:
    """0 where there is no checkpoint, or none that can be read: its own run says what is wrong with it."""
    try:
        return int(checkpoint.load(path)["epoch"])
    except UsageError:
        return 0


def add(folder: Path, protocol: str, target: Path) -> str:
    """Write the result file of a finished run of `torchdfa train`; returns its path as text.

    UsageError where the run has not finished, has the settings of no recipe, or its result is there already.
    """
    available = recipes(protocol_named(protocol))
    run = runs.read(folder)
    config = TrainConfig.from_dict(run.config.get("config"))
    if run.config.get("resolved", {}).get("world_size", 1) != 1:
        raise UsageError(f"{folder} was trained by several processes, each with a batch norm of its own; use one")
    if run.result is None:
        raise UsageError(f"{folder} has not finished; continue it with 'torchdfa train --resume {folder}'")
    for recipe in available.values():
        if learned(recipe.config(config.seed)) == learned(config):
            path = target / protocol / results.file_name(recipe.source, config.seed)
            if path.exists():
                raise UsageError(f"{path} exists already; move it away to take this run in its place")
            results.write(path, recipe.source, protocol, run)
            return str(path)
    raise UsageError(f"{folder} has the settings of no recipe of --protocol {protocol}; see 'torchdfa paper list'")
