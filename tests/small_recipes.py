"""Recipes that train in seconds, and result files of the paper's recipes without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fake_runs import write_run
from small_runs import SMALL
from torchdfa.paper import results
from torchdfa.paper.recipes import PROTOCOLS, Recipe, recipes
from torchdfa.train import runs

SHORT = PROTOCOLS["short"]
ASIDE = ("device", "threads", "precision")


def tiny(name: str, **changes: Any) -> Recipe:
    settings = {key: value for key, value in (SMALL | {"epochs": 2, "lr": 0.01} | changes).items() if key not in ASIDE}
    return Recipe(name, f"tiny {name}", settings)


def tiny_recipes() -> dict[str, Recipe]:
    found = [tiny("tiny/bp", rule="bp"), tiny("tiny/bdfa"), tiny("tiny/frozen", rule="frozen")]
    return {recipe.name: recipe for recipe in found}


def write_result(folder: Path, name: str, seed: int = 0, *, top1: float = 70.0, right: str | None = None) -> Path:
    """A result file of a recipe of the paper, its curves made up."""
    recipe = recipes(SHORT)[name]
    working = folder / "made" / f"{name}-{seed}"
    settings = {key: value for key, value in recipe.config(seed).to_dict().items() if key != "tensorboard"}
    run = runs.read(write_run(working, top1=top1, tests=10_000, **settings))
    assert run.result is not None
    run.result.update(train_top1=99.5, right=right)
    for k, step in enumerate((100, 200, 300)):
        error = {"degrees": 70.0 + k, "norm_ratio": 2.0 + k, "reason": None}
        run.alignment.append({"kind": "alignment", "step": step, "boundary": {"classifier.0": error}})
    path = folder / "short" / results.file_name(name, seed)
    results.write(path, name, "short", run)
    return path
