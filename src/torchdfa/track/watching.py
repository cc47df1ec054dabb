"""What a long command of tracking shows: a bar in a terminal, and elsewhere a line now and then."""

from __future__ import annotations

import time

from torchdfa.train.bar import Bar

SECONDS_BETWEEN_LINES = 15.0


class Watch(Bar):
    """``step(done, figures)`` after each step; ``total`` None where the end is not known."""

    def __init__(self, label: str, total: int | None) -> None:
        super().__init__(label, total)
        self._label, self._of = label, f"/{total}" if total else ""
        self._last = time.monotonic()

    def step(self, done: int, figures: str) -> None:
        self.move(done, figures)
        if not self.visible and time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            self.line(f"{self._label}  {done}{self._of}  {figures}")
