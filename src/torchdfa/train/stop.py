"""Ctrl-C and SIGTERM as a flag that the training loop reads between two steps."""

from __future__ import annotations

import signal
import threading
from pathlib import Path
from types import FrameType, TracebackType


class Stopped(Exception):
    """Training stopped at a signal after `step` of `steps`, with its checkpoint written in `folder`."""

    def __init__(self, signum: int, folder: Path, step: int, steps: int) -> None:
        super().__init__(f"stopped at step {step} of {steps}; continue with 'torchdfa train --resume {folder}'")
        self.signum, self.folder = signum, folder


class StopSignals:
    """While entered, the first SIGINT or SIGTERM sets `signum`; a second one acts as if this were not here."""

    def __init__(self) -> None:
        self.signum = 0
        self._before: dict[int, object] = {}

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
        self.signum = signum
        self._restore()

    def _restore(self) -> None:
        while self._before:
            signum, handler = self._before.popitem()
            signal.signal(signum, handler)  # type: ignore[arg-type]
