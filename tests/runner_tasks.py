"""Tasks for the tests of the runner; worker processes import them by name."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

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
    with StopSignals(deadline) as signals:
        (marks / name).touch()
        for step in range(1200):
            time.sleep(0.05)
            if signals.signum:
                raise Stopped(signals.signum, marks, step, 1200)
    return "ended"
