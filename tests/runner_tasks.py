"""Tasks for the tests of the runner; worker processes import them by name."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from torchdfa import runner
from torchdfa.errors import RunError
from torchdfa.train.stop import Stopped, StopSignals


def square(x: int, *, deadline: float | None) -> int:
    return x * x


def fail(*, deadline: float | None) -> None:
    raise RunError("the disk is full")


def bug(*, deadline: float | None) -> None:
    raise ZeroDivisionError("a bug")


def threads(*, deadline: float | None) -> int:
    return torch.get_num_threads()


def die(marks: Path, times: int, *, deadline: float | None) -> str:
    """Be killed in the first `times` calls; each call leaves a mark."""
    number = len(list(marks.iterdir()))
    (marks / str(number)).touch()
    if number < times:
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def work(marks: Path, name: str, *, deadline: float | None) -> Any:
    """Work until a signal or the deadline comes, 60 seconds at most."""
    return _work(marks, name, deadline, save=lambda: None)


def save_slowly(marks: Path, name: str, *, deadline: float | None) -> None:
    """Work as a training does, whose stop takes longer than the parent takes to pass a signal on."""

    def save() -> None:
        time.sleep(4 * runner.SECONDS_BETWEEN_LOOKS)
        (marks / f"{name}.saved").touch()

    _work(marks, name, deadline, save=save)


def _work(marks: Path, name: str, deadline: float | None, save: Callable[[], None]) -> str:
    with StopSignals(deadline) as signals:
        (marks / name).touch()
        for step in range(1200):
            time.sleep(0.05)
            if signals.signum:
                save()
                raise Stopped(signals.signum, marks, step, 1200)
    return "ended"


def touch(mark: Path, *, deadline: float | None) -> None:
    mark.touch()


def two_at_work_and_one_idle(marks: str) -> None:
    """A program to send signals to; prints the statuses of its tasks as JSON."""
    tasks = [runner.Task(name, save_slowly, (Path(marks), name)) for name in ("a", "b")]
    tasks.append(runner.Task("quick", touch, (Path(marks) / "quick",)))
    outcomes = list(runner.run(tasks, workers=3, threads=1))
    print(json.dumps({outcome.name: outcome.status for outcome in outcomes}))


def die_beside(marks: Path, name: str, *, deadline: float | None) -> None:
    """Be killed in every call, once task `name` has begun."""
    while not list(marks.glob(f"{name}.*")):
        time.sleep(0.05)
    (marks / f"die.{len(list(marks.iterdir()))}").touch()
    os.kill(os.getpid(), signal.SIGKILL)


def outlive(marks: Path, name: str, *, deadline: float | None) -> int:
    """Work until another task has died `runner.TRIES` times; returns how often this one was begun."""
    begun = len(list(marks.glob(f"{name}.*"))) + 1
    (marks / f"{name}.{begun}").touch()
    while len(list(marks.glob("die.*"))) < runner.TRIES:
        time.sleep(0.05)
    return begun
