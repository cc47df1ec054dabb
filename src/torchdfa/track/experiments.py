"""`torchdfa otb run`: trackers x sequences x seeds x batch sizes, each a task that goes on where it was stopped.

results/<set>/<tracker>/<Sequence>.txt and times/<Sequence>_time.txt as got10k has them; config.json says what the
tracker is, records/<Sequence>.json how it went; partial/ holds the state of a sequence that was stopped.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import time
import warnings
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from torchdfa import runner
from torchdfa.errors import UsageError
from torchdfa.track import cost, forced, state
from torchdfa.track import weights as weights_file
from torchdfa.track.options import TrackerConfig, preset
from torchdfa.track.ranges import each_once
from torchdfa.track.results import write_one
from torchdfa.track.sequences import OTB, Sequence
from torchdfa.track.stopping import TrackingStopped
from torchdfa.track.tracker import Tracker
from torchdfa.train import machine, runs
from torchdfa.train.stop import StopSignals

SECONDS_BETWEEN_STATES = 300.0


@dataclass(frozen=True)
class Experiment:
    """What to run: every rule with every batch size and seed, over the sequences of a set.

    ``frames``: so many first frames of each sequence, None for all. ``options`` are those of ``TrackerConfig``.
    ``forced``: compare what is learnt on the same crops around the truth (``torchdfa.track.forced``); no tracking.
    """

    data: Path
    out: Path
    weights: Path | None = None
    version: str = "OTB-100"
    sequences: tuple[str, ...] | None = None
    rules: tuple[str, ...] = ("bp", "bdfa")
    batches: tuple[int, ...] = (128,)
    seeds: int = 1  # how many, from `first_seed` on
    preset: str = "pymdnet"
    options: tuple[tuple[str, Any], ...] = ()
    frames: int | None = None
    missing: str = "error"
    forced: bool = False
    truncate: bool = False
    first_seed: int = 0

    def __post_init__(self) -> None:
        if self.frames is not None and self.frames < 2:
            raise UsageError(f"--frames must be at least 2, the first being given; got {self.frames}")
        if self.seeds < 1:
            raise UsageError(f"--seeds must be at least 1; got {self.seeds}")
        if self.first_seed < 0:
            raise UsageError(f"--first-seed must be at least 0; got {self.first_seed}")
        for flag, values in (("rule", self.rules), ("batch", self.batches)):
            each_once(flag, values)
        for name, _ in self.options:
            if name in ("rule", "batch", "seed", "preset"):
                raise UsageError(f"the option {name!r} is said by the experiment's own fields; leave it out")

    @property
    def folder(self) -> Path:
        return self.out / (f"{self.version}-forced" if self.forced else self.version)

    def configs(self) -> dict[str, TrackerConfig]:
        """Settings of each tracker by its name; a seed of all first: where the time ends, seeds are missing."""
        found = {}
        seeds = range(self.first_seed, self.first_seed + self.seeds)
        for seed, batch, rule in itertools.product(seeds, self.batches, self.rules):
            config = preset(self.preset, batch=batch, **dict(self.options) | {"rule": rule, "seed": seed})
            found[name_of(config)] = config
        return found


def name_of(config: TrackerConfig) -> str:
    """Such as bdfa-b128-s0; what differs from the defaults of the rule stands in between."""
    parts = [config.rule]
    if config.rule in ("fa", "dfa", "bdfa"):
        parts += ["random"] if config.feedback == "random" else []
        parts += [f"{config.feedback_scale}"] if config.feedback_scale != "unit" else []
        parts += ["after"] if config.moment != "start" else []
    parts += [config.preset] if config.preset != "pymdnet" else []
    return "-".join([*parts, f"b{config.batch}", f"s{config.seed}"])


def run(
    experiment: Experiment, *, workers: int = 1, threads: int | None = None, scheduler: str | None = None,
    hours: float | None = None,
) -> Iterator[runner.Outcome]:  # fmt: skip
    """Run what is not done yet; yields an outcome for each tracker and sequence."""
    data = OTB(
        experiment.data, experiment.version, sequences=experiment.sequences, missing=experiment.missing,
        truncate=experiment.truncate,
    )  # fmt: skip
    origin = _weights_record(experiment.weights)
    configs = {experiment.folder / name: config for name, config in experiment.configs().items()}
    sequences = [sequence.head(experiment.frames) for sequence in data]
    if experiment.forced:
        tasks = [_forced_task(configs, cut, experiment) for cut in sequences]
    else:
        tasks = [_task(folder, config, cut, experiment) for folder, config in configs.items() for cut in sequences]
    outcomes = runner.run(tasks, workers=workers, threads=threads, scheduler=scheduler, hours=hours)
    with contextlib.ExitStack() as held:
        for folder, config in configs.items():  # only now: its arguments are right, and nothing has begun
            runs.make(folder)
            held.enter_context(runs.hold(folder))
            _describe(folder, experiment, config, origin)
        return _until_done(outcomes, held.pop_all())


def _until_done(outcomes: Iterator[runner.Outcome], held: contextlib.ExitStack) -> Iterator[runner.Outcome]:
    with held:
        yield from outcomes


def _task(folder: Path, config: TrackerConfig, cut: Sequence, experiment: Experiment) -> runner.Task:
    images, box = tuple(map(str, cut.images)), cut.boxes[0].tolist()
    arguments = (str(folder), cut.name, images, box, _weights_path(experiment), config.to_dict())
    return runner.Task(f"{folder.name}/{cut.name}", track_sequence, arguments)


def _forced_task(configs: dict[Path, TrackerConfig], cut: Sequence, experiment: Experiment) -> runner.Task:
    place, images = str(experiment.folder), tuple(map(str, cut.images))
    settings = {folder.name: config.to_dict() for folder, config in configs.items()}
    arguments = (place, cut.name, images, cut.boxes.tolist(), _weights_path(experiment), settings)
    return runner.Task(f"{cut.name} ({len(configs)} heads)", forced.run_sequence, arguments)


def _weights_path(experiment: Experiment) -> str | None:
    return None if experiment.weights is None else str(experiment.weights)


def _weights_record(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {"origin": "untrained"}
    found = weights_file.load(path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"origin": found.origin, "norm": found.norm.to_dict(), "sha256": digest}


def _describe(folder: Path, experiment: Experiment, config: TrackerConfig, weights: dict[str, Any]) -> None:
    """Write config.json, or see that the one there is of the same tracker."""
    settings = json.loads(json.dumps(config.to_dict()))
    what = {"tracker": settings, "weights": weights, "frames": experiment.frames, "forced": experiment.forced}
    path = folder / runs.CONFIG
    if path.is_file():
        found = runs.read_json(path)
        for key, value in what.items():
            if found.get(key, False) != value:
                raise UsageError(f"{folder} holds results of another tracker (its {key} differ); take another --out")
        return
    runs.write_json(path, {"format": runs.FORMAT, "set": experiment.version, **what, "machine": machine.describe()})


def track_sequence(
    folder: str, name: str, images: Seq[str], box: list[float], weights: str | None, config: dict[str, Any],
    *, deadline: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Track one sequence into a tracker's folder; does nothing where its boxes stand.

    Goes on from the state in partial/; raises TrackingStopped at a signal or ``deadline``, with the state saved.
    """
    place = Path(folder)
    if (place / f"{name}.txt").is_file():
        return runs.read_json(place / "records" / f"{name}.json")
    for inside in ("records", "times", "partial"):
        (place / inside).mkdir(parents=True, exist_ok=True)
    going = _Going(place, name, list(images), TrackerConfig.from_dict(config), weights)
    with StopSignals(deadline) as signals:
        going.on(box, signals)
    return going.finish()


class _Going:
    """One tracker in the middle of one sequence."""

    def __init__(self, place: Path, name: str, images: list[str], config: TrackerConfig, weights: str | None) -> None:
        self.place, self.name, self.images = place, name, images
        self.state, self.notes = (place / "partial" / f"{name}{end}" for end in (".safetensors", ".json"))
        self.rows: list[list[float]] = []  # x, y, w, h, seconds, score
        self.tracker = self._restored(config) or Tracker(weights, config)

    def _restored(self, config: TrackerConfig) -> Tracker | None:
        """The tracker that was stopped; None without one, and, with a warning, where what was saved is damaged."""
        if not (self.notes.is_file() and self.state.is_file()):
            return None
        try:
            rows = np.array(runs.read_json(self.notes).get("rows"), dtype=np.float64).reshape(-1, 6).tolist()
            tracker = state.load(self.state, device=config.device, precision=config.precision)
            if len(rows) < tracker.frame:
                raise UsageError(f"{self.notes} has {len(rows)} rows of {tracker.frame} frames")
        except (TypeError, ValueError) as error:  # UsageError is one
            warnings.warn(f"{self.name} starts over: {str(error).rstrip('.')}.", stacklevel=2)
            return None
        self.rows = rows[: tracker.frame]
        return tracker

    def on(self, box: list[float], signals: StopSignals) -> None:
        saved = time.monotonic()
        for k in range(len(self.rows), len(self.images)):
            began = time.perf_counter()
            if k == 0:
                self.tracker.init(self.images[0], box)
            else:
                self.tracker.update(self.images[k])
            t = self.tracker
            self.rows.append([*t.box.tolist(), time.perf_counter() - began, t.score])
            if signals.signum and k + 1 < len(self.images):
                self._save()
                sentence = f"stopped at frame {k + 1} of {len(self.images)} of {self.name}; the same command goes on"
                raise TrackingStopped(signals.signum, self.place, sentence)
            if time.monotonic() - saved > SECONDS_BETWEEN_STATES:
                self._save()
                saved = time.monotonic()

    def _save(self) -> None:
        # The rows first: a state that is older than they are cuts them to its own frame.
        runs.write_json(self.notes, {"rows": self.rows})
        state.save(self.state, self.tracker)

    def finish(self) -> dict[str, Any]:
        t, rows = self.tracker, np.array(self.rows)
        record = {
            "frames": len(rows), "frames_per_second": round(len(rows) / float(rows[:, 4].sum()), 4),
            "lost_frames": int((rows[1:, 5] <= 0).sum()), "updates": dict(t.counts), "steps": t.learner.steps,
            "restored_updates": t.learner.restored, "seconds": {k: round(v, 3) for k, v in t.seconds.items()},
            "time_shares": cost.shares(t.seconds), "error_path": cost.error_path(t.learner),
        }  # fmt: skip
        runs.write_json(self.place / "records" / f"{self.name}.json", record)
        write_one(self.place, self.name, rows[:, :4], rows[:, 4])
        for left in (self.state, self.notes):
            left.unlink(missing_ok=True)
        return record
