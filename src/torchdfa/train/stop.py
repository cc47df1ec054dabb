"""Ctrl-C, SIGTERM and the end of a run's time as a flag that the training loop reads between two steps."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from types import FrameType, TracebackType

ALARM = 14  # POSIX's number of SIGALRM, which other systems lack


class Stopped(Exception):
    """Training stopped at a signal after `step` of `steps`, with its checkpoint written in `folder`."""

    def __init__(self, signum: int, folder: Path, step: int, steps: int) -> None:
        super().__init__(f"stopped at step {step} of {steps}; continue with 'torchdfa train --resume {folder}'")
        self.signum, self.folder, self.step = signum, folder, step


class StopSignals:
    """While entered, the first SIGINT or SIGTERM sets `signum`; a second one acts as if this were not here.

    After `deadline` (Unix time), `signum` is ALARM.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self._signum, self._deadline = 0, deadline
        self._before: dict[int, object] = {}

    @property
    def signum(self) -> int:
        """The signal that came, or 0."""
        if not self._signum and self._deadline is not None and time.time() >= self._deadline:
            return ALARM
        return self._signum

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # handlers can be set in no other thread
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._before[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._signum = signum
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signum, handler = self._before.popitem()
            signal.signal(signum, handler)  # type: ignore[arg-type]
