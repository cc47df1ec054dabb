"""Train one recipe with one seed, from wherever it stands to its result file: the task that workers do."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torchdfa.errors import UsageError
from torchdfa.paper import results
from torchdfa.paper.recipes import Recipe
from torchdfa.runner import Task
from torchdfa.train import program, runs
from torchdfa.train.config import TrainConfig
from torchdfa.train.loop import Diverged
from torchdfa.train.stop import Stopped


def task(
    recipe: Recipe, protocol: str, seed: int, folder: Path, *, keep: bool = False, quiet: bool = False, **aside: Any
) -> Task:
    """The task of one run; its result goes to `folder`, its checkpoints below `folder`/working."""
    name = results.file_name(recipe.name, seed)
    arguments = (recipe, protocol, recipe.config(seed, **aside), folder, keep, quiet)
    return Task(f"{protocol}/{name.removesuffix('.json')}", train_recipe, arguments)


def working_folder(folder: Path, protocol: str, recipe: str, seed: int) -> Path:
    return folder / "working" / protocol / results.file_name(recipe, seed).removesuffix(".json")


def train_recipe(
    recipe: Recipe, protocol: str, config: TrainConfig, folder: Path, keep: bool, quiet: bool, *, deadline: float | None
) -> str:
    """Leave the result file of one run and say in a few words what came out.

    Does nothing where the file stands. A run that diverges has that as its result. Raises Stopped with a checkpoint
    kept, and UsageError where the run's folder was begun with another recipe or is in use.
    """
    path = folder / protocol / results.file_name(recipe.name, config.seed)
    if path.exists():
        with _way_out(f"move {path} away, and the same command trains it again"):
            kept = results.read(path)
        results.require_unchanged(kept.config, recipe, path)
        return "finished before"
    working = working_folder(folder, protocol, recipe.name, config.seed)
    diverged = None
    try:
        run = _train(recipe, config, working, deadline=deadline, quiet=quiet, pictures=keep)
    except Diverged as error:
        diverged, run = str(error).partition("; take")[0], runs.read(working)
    except Stopped as stop:
        stop.args = (f"stopped at step {stop.step}; the same command goes on from there",)
        raise
    results.write(path, recipe.name, protocol, run, diverged)
    if not keep:
        with contextlib.suppress(OSError):  # a leftover is harmless
            shutil.rmtree(working)
    return diverged or f"top-1 {(run.result or {})['top1']:.2f} %"


@contextlib.contextmanager
def _way_out(advice: str) -> Iterator[None]:
    """What to do about a file that is in the way, in place of flags that 'torchdfa paper' has not."""
    try:
        yield
    except UsageError as error:
        raise UsageError(f"{str(error).partition('; ')[0]}; {advice}") from None


def _train(recipe: Recipe, config: TrainConfig, working: Path, **how: Any) -> runs.Run:
    """`how` are the ways of `program.train` to carry a run out."""
    if not (working / runs.CHECKPOINT).exists():
        with _way_out(f"move {working} away, and the same command begins anew"):
            runs.create(working)
        return program.train(config, working, **how)
    begun = runs.read(working)
    results.require_unchanged(TrainConfig.from_dict(begun.config.get("config")), recipe, working)
    where = {"data_dir": config.data_dir, "download": config.download}
    return program.resume(working, where, **how)
