"""What a long command shows: a bar in a terminal, and elsewhere a line now and then."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 15.0


class Watch:
    """``step(done, figures)`` after each step; ``total`` None where the end is not known."""

    def __init__(self, label: str, total: int | None) -> None:
        self.console = Console()
        self._label, self._total, self._last = label, total, time.monotonic()
        self._bar: Progress | None = None
        if self.console.is_terminal:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
                       TextColumn("{task.fields[figures]}"), TimeRemainingColumn())  # fmt: skip
            self._bar = Progress(*columns, console=self.console)
            self._task = self._bar.add_task(label, total=total, figures="")

    def __enter__(self) -> Watch:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def step(self, done: int, figures: str) -> None:
        if self._bar:
            self._bar.update(self._task, completed=done, figures=figures)
        elif time.monotonic() - self._last > SECONDS_BETWEEN_LINES:
            self._last = time.monotonic()
            of = f"/{self._total}" if self._total else ""
            self.console.print(f"{self._label}  {done}{of}  {figures}", soft_wrap=True, highlight=False)
