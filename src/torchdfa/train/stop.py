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


class _Worker:
    """Whether this process is a worker, and the SIGTERM it was sent."""

    serves = False
    signum = 0

    def note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum


_WORKER = _Worker()


def serve() -> None:
    """Make this process a worker, which its parent alone stops, with SIGTERM, once or often and at any moment.

    A terminal sends Ctrl-C to the parent and to its workers; the parent passes it on as SIGTERM, which must not meet
    the default handler: not between two runs, and not while a run that has heard a first signal saves.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _WORKER.note)
    _WORKER.serves = True


def asked() -> bool:
    """Whether this process is a worker that was told to stop."""
    return bool(_WORKER.signum)


class StopSignals:
    """While entered, the first SIGINT or SIGTERM sets `signum`; a second one acts as if this were not here.

    After `deadline` (Unix time), `signum` is ALARM. In a worker (`serve`) no handler changes: `signum` is its SIGTERM.
    """

    def __init__(self, deadline: float | None = None) -> None:
        self._signum, self._deadline = 0, deadline
        self._before: dict[int, object] = {}

    @property
    def signum(self) -> int:
        """The signal that came, or 0."""
        signum = self._signum or _WORKER.signum
        if not signum and self._deadline is not None and time.time() >= self._deadline:
            return ALARM
        return signum

    def __enter__(self) -> StopSignals:
        # Handlers can be set in no thread but the main one.
        if not _WORKER.serves and threading.current_thread() is threading.main_thread():
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
