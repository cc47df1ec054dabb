"""Result files: one small JSON file a run, with recipe, seed, versions, machine, curves and wall time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchdfa.errors import UsageError
from torchdfa.paper.recipes import Recipe, learned
from torchdfa.train import runs
from torchdfa.train.arms import arms, number
from torchdfa.train.config import TrainConfig

FORMAT = 1
_CONFIG_PARTS = ("format", "config", "label", "resolved", "machine", "data")


@dataclass(frozen=True)
class Result:
    """One run of a recipe, as read from its file."""

    path: Path
    recipe: str
    protocol: str
    seed: int
    run: runs.Run  # of a run that diverged: without a result
    diverged: str | None = None

    @property
    def config(self) -> TrainConfig:
        return TrainConfig.from_dict(self.run.config["config"])

    @property
    def precision(self) -> str:
        return str(self.run.config["resolved"]["precision"])

    @property
    def right(self) -> NDArray[np.bool_] | None:
        """(N,) which test images were right; None of runs that did not keep it."""
        text, images = (self.run.result or {}).get("right"), self.run.config["data"]["test_images"]
        if text is None:
            return None
        try:
            bits = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
        except (TypeError, ValueError):
            raise UsageError(f"{self.path} is damaged: its 'right' must be hexadecimal") from None
        if len(bits) != -(-images // 8):
            raise UsageError(f"{self.path} is damaged: its 'right' must hold a bit for each of {images} test images")
        return np.unpackbits(bits, bitorder="little")[:images].astype(np.bool_)


def file_name(recipe: str, seed: int) -> str:
    return f"{recipe.replace('/', '.')}.s{seed}.json"


def shipped() -> Path:
    """Folder of the result files that come with the package."""
    return Path(str(resources.files("torchdfa.paper") / "results"))


def write(path: Path, recipe: str, protocol: str, run: runs.Run, diverged: str | None = None) -> None:
    """Keep of a run what tables and figures need; the file is whole or absent."""
    result = None if run.result is None else {k: v for k, v in run.result.items() if k != "confusion"}
    config = _without_paths({name: run.config[name] for name in _CONFIG_PARTS})
    boundary = [{key: line[key] for key in ("step", "boundary")} for line in run.alignment]
    value = {
        "format": FORMAT, "recipe": recipe, "protocol": protocol, "seed": run.config["config"]["seed"],
        "run": config, "epochs": run.epochs, "alignment": boundary, "result": result, "diverged": diverged,
    }  # fmt: skip
    make_folder(path.parent)
    lines = ",\n ".join(f"{json.dumps(key)}: {json.dumps(part)}" for key, part in value.items())
    runs.write(path, f"{{{lines}}}\n".encode())


def make_folder(folder: Path) -> None:
    """UsageError where there is none and none can be made."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--results {folder} cannot be written: {error.strerror}; take another folder") from None


def _without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """Where the data lay says nothing to others; their checksums do."""
    source = {key: value for key, value in config["data"]["source"].items() if key != "path"}
    return config | {"config": config["config"] | {"data_dir": None}, "data": config["data"] | {"source": source}}


def read(path: Path) -> Result:
    """UsageError, naming the file, where it is no whole result file of this format."""
    value = runs.read_json(path)
    if not isinstance(value.get("format"), int) or "recipe" not in value:
        raise UsageError(f"{path} is not a result file of torchdfa paper")
    if value["format"] > FORMAT:
        raise UsageError(
            f"{path} has format {value['format']}, and this version reads up to {FORMAT}; install a newer one"
        )
    kinds = {"recipe": str, "protocol": str, "seed": int, "run": dict, "epochs": list, "alignment": list}
    for key, kind in kinds.items():
        _require_kind(path, key, kind, [value.get(key)])
    missing = [name for name in _CONFIG_PARTS if name not in value["run"]]
    if missing or not (value.get("diverged") or isinstance(value.get("result"), dict)):
        raise UsageError(f"{path} is damaged: it lacks {repr(missing[0]) if missing else 'a result'}")
    run = runs.Run(path, value["run"], value["epochs"], value.get("result"), value["alignment"])
    found = Result(path, value["recipe"], value["protocol"], value["seed"], run, value.get("diverged"))
    _check(found)
    return found


def _check(result: Result) -> None:
    """Read all that tables, figures and the page show, so that damage is found here and not in one of them."""
    run, path = result.run, result.path
    _require_kind(path, "diverged", str, [result.diverged] if result.diverged else [])
    _require_kind(path, "epochs", dict, run.epochs)
    arms([run])
    _require_kind(path, "precision", str, [run.config["resolved"].get("precision")])
    _require_kind(path, "test_images", int, [run.config["data"]["test_images"]])
    for line in run.epochs:
        number(run, line, "seconds")
    if run.result is not None:
        if not run.epochs:
            raise UsageError(f"{path} is damaged: it has a result but no epochs")
        number(run, run.result, "train_top1", 0, 100)
        if run.result.get("top5", 0) is not None:  # of few classes there is none
            number(run, run.result, "top5", 0, 100)
    _ = result.right
    _check_alignment(run)


def _check_alignment(run: runs.Run) -> None:
    _require_kind(run.folder, "alignment", dict, run.alignment)
    boundaries: list[Any] = [line.get("boundary") for line in run.alignment]
    _require_kind(run.folder, "boundary", dict, boundaries)
    angles = [angle for boundary in boundaries for angle in boundary.values()]
    _require_kind(run.folder, "boundary", dict, angles)
    for angle in angles:
        for key in ("norm_ratio", "degrees"):
            if angle.get(key, 0) is not None:  # where the gradient vanishes there is a reason instead
                number(run, angle, key)


def _require_kind(path: Path, key: str, kind: type, values: Sequence[Any]) -> None:
    if not all(isinstance(value, kind) for value in values):
        raise UsageError(f"{path} is damaged: its {key!r} must be of type {kind.__name__}")


def read_folder(folder: Path, protocol: str) -> tuple[list[Result], list[str]]:
    """The result files of a protocol in `folder`, and a note for each file that is none. No folder: no results."""
    found, notes = [], []
    for path in sorted((folder / protocol).glob("*")):
        if path.name.startswith(".") or path.is_dir():
            continue
        try:
            result = read(path)
        except UsageError as error:
            notes.append(f"passed over: {error}; move it away")
            continue
        if path.name != file_name(result.recipe, result.seed) or result.protocol != protocol:
            notes.append(f"passed over: {path} holds {result.recipe}, seed {result.seed}, {result.protocol}")
            continue
        found.append(result)
    return found, notes


def matching(found: list[Result], recipes: dict[str, Recipe]) -> dict[str, list[Result]]:
    """Results by recipe; UsageError naming those whose recipe has changed, or is gone, since they were made."""
    by_recipe: dict[str, list[Result]] = {}
    for result in found:
        recipe = recipes.get(result.recipe)
        if recipe is None:
            raise UsageError(f"{result.path} is of recipe {result.recipe!r}, which no longer exists; move it away")
        require_unchanged(result.config, recipe, result.path)
        by_recipe.setdefault(result.recipe, []).append(result)
    return by_recipe


def require_unchanged(config: TrainConfig, recipe: Recipe, path: Path) -> None:
    """UsageError where a run's settings are not those of the recipe now."""
    then, now = learned(config), learned(recipe.config(config.seed))
    changed = [f"{key} {then[key]} there, {now[key]} now" for key in now if then[key] != now[key]]
    if changed:
        raise UsageError(
            f"{path} was made by another {recipe.name} ({'; '.join(changed)}); results of two recipes are not mixed: "
            "move it away, or name another folder with --results"
        )
