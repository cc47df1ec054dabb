"""Runs sorted into the arms of a comparison: one arm for each recipe, its runs differing in the seed alone."""

from __future__ import annotations

import math
import sys
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from torchdfa.errors import UsageError
from torchdfa.train.config import TrainConfig
from torchdfa.train.runs import Run

RULE_SETTINGS = ("rule", "init", "distribution", "scale", "boundary", "layers")
# Settings that change how a run is carried out or watched, not what is learned.
ASIDE = (
    *("seed", "data_dir", "download", "device", "convolutions", "threads", "compile"),
    *("test_every", "log_alignment", "tensorboard"),
)
_LARGEST = sys.float_info.max
_PERCENT = ("top1", "top5", "balanced_accuracy")
EPOCH_FIGURES = ("train_loss", "train_top1", "test_loss", "test_top1")


@dataclass(frozen=True)
class Arm:
    """Runs of one recipe over seeds. Runs that have not finished stand alone, so that no mean mixes them in."""

    label: str  # of the rule, with what tells it from other arms of the same rule
    rule: dict[str, Any]  # settings of the rule
    settings: dict[str, Any]  # all others that decide what is learned
    machine: dict[str, Any]  # what decides the speed
    runs: tuple[Run, ...]

    @property
    def seeds(self) -> list[int]:
        return [run.config["config"]["seed"] for run in self.runs]

    @property
    def finished(self) -> bool:
        return self.runs[0].result is not None

    @property
    def epochs(self) -> tuple[int, int]:
        """How many epochs are done, and how many were asked for."""
        lines = self.runs[0].epochs
        return lines[-1]["epoch"] if lines else 0, self.settings["epochs"]

    def values(self, key: str) -> list[float]:
        """A figure of each run: of its result, or of the last epoch of a run that has not finished."""
        found = [_figure(run, key) for run in self.runs]
        return [value for value in found if value is not None]

    def mean(self, key: str) -> float | None:
        values = self.values(key)
        return mean(values) if values else None

    def std(self, key: str) -> float | None:
        """Sample standard deviation over the seeds; None with fewer than two."""
        values = self.values(key)
        return stdev(values) if len(values) > 1 else None

    def curve(self, key: str) -> list[tuple[int, float, float]]:
        """(epoch, mean, sample standard deviation or 0) of a figure, after each epoch that all runs tested."""
        by_epoch = [{line["epoch"]: line[key] for line in run.epochs} for run in self.runs]
        common = [epoch for epoch in by_epoch[0] if all(epoch in found for found in by_epoch)]
        columns = [(epoch, [found[epoch] for found in by_epoch]) for epoch in common]
        return [(epoch, mean(c), stdev(c) if len(c) > 1 else 0.0) for epoch, c in columns]


def arms(runs: Sequence[Run]) -> list[Arm]:
    """The arms in the order in which they first appear; UsageError where a run's files are damaged."""
    groups: dict[str, Arm] = {}
    for run in _distinct(runs):
        arm = _arm(run)
        key = repr((arm.rule, arm.settings)) if arm.finished else str(run.folder)
        groups[key] = replace(groups[key], runs=(*groups[key].runs, run)) if key in groups else arm
    return _told_apart(list(groups.values()))


def differing(values: Sequence[dict[str, Any]]) -> dict[str, list[Any]]:
    """The keys on which the dicts do not all agree, with the value of each dict."""
    keys = dict.fromkeys(key for value in values for key in value)
    found = {key: [value.get(key) for value in values] for key in keys}
    return {key: column for key, column in found.items() if any(value != column[0] for value in column)}


def short(value: Any) -> str:
    """A setting as a reader wants it."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _distinct(runs: Sequence[Run]) -> list[Run]:
    """Without repetitions of the same folder, which would count one run twice."""
    return list({run.folder.resolve(): run for run in runs}.values())


def _arm(run: Run) -> Arm:
    config, resolved, data, machine = _parts(run)
    values = config.to_dict() | {"data": _data_name(config), "lr": number(run, resolved, "lr")}
    values["precision"] = resolved.get("precision", config.precision)
    rule = {key: values[key] for key in RULE_SETTINGS}
    if config.rule in ("bp", "frozen"):  # they have no feedback, whatever the settings say of it
        rule = {"rule": config.rule}
    settings = {key: value for key, value in values.items() if key not in (*RULE_SETTINGS, *ASIDE)}
    settings |= {"images": str(data.get("sha256"))[:8], "test images": number(run, data, "test_images", 1)}
    # Batch norm takes the mean over a process's own images.
    settings["processes"] = resolved.get("world_size", 1)
    speed = {key: resolved.get(key) for key in ("device", "threads", "world_size")}
    speed |= {key: machine.get(key) for key in ("cpu", "gpu", "torch")} | {"compile": config.compile}
    _check_epochs(run)
    return Arm(config.label, rule, settings, speed, (run,))


def _parts(run: Run) -> tuple[TrainConfig, dict[str, Any], dict[str, Any], dict[str, Any]]:
    where = run.folder / "config.json"
    try:
        config = TrainConfig.from_dict(run.config.get("config"))
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    parts = [run.config.get(name) for name in ("resolved", "data", "machine")]
    if not all(isinstance(part, dict) for part in parts):
        raise UsageError(f"{where} is damaged: it lacks resolved settings, data or machine")
    resolved, data, machine = parts
    return config, resolved, data, machine  # type: ignore[return-value]


def _data_name(config: TrainConfig) -> str:
    return Path(config.data).name or config.data


def _check_epochs(run: Run) -> None:
    for line in run.epochs:
        for key in ("epoch", *EPOCH_FIGURES):
            number(run, line, key)
    if run.result is not None:
        number(run, run.result, "top1", 0, 100)


def _figure(run: Run, key: str) -> float | None:
    source = run.result or (run.epochs[-1] if run.epochs else {})
    name = key if key in source else f"test_{key}"
    if source.get(name) is None:
        return None
    return number(run, source, name, 0, 100 if key in _PERCENT else math.inf)


def number(run: Run, source: dict[str, Any], key: str, low: float = -math.inf, high: float = math.inf) -> float:
    """A figure from a run's files; UsageError naming the run where it is no number from `low` to `high`."""
    value = source.get(key)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{run.folder} is damaged: its {key!r} must be a number, but is {value!r}")
    if not max(low, -_LARGEST) <= value <= min(high, _LARGEST):  # NaN lies nowhere
        raise UsageError(f"{run.folder} is damaged: its {key!r} must lie in {low:g}..{high:g}, but is {value!s:.20}")
    return value


def _told_apart(found: list[Arm]) -> list[Arm]:
    """Finished arms of the same label get what differs among them appended: "CBDFA product (lr 0.01)"."""
    named = []
    for arm in found:
        alike = [other for other in found if other.label == arm.label and other.finished and arm.finished]
        values = arm.rule | arm.settings
        shown = [f"{key} {short(values.get(key))}" for key in _telling(differing([o.rule | o.settings for o in alike]))]
        named.append(replace(arm, label=f"{arm.label} ({', '.join(shown)})" if shown else arm.label))
    return named


def _telling(keys: Collection[str]) -> list[str]:
    """The checksum of the images is named only where nothing else explains it."""
    return [key for key in keys if key not in ("images", "test images")] or list(keys)
