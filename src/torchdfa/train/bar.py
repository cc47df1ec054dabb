"""The bar that a long command shows in a terminal; elsewhere there is none, and the command prints lines."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from typing_extensions import Self


class Bar:
    """`move(completed, figures)` moves it, where `visible`; `total` None where the end is not known."""

    def __init__(self, label: str, total: int | None, *, start: int = 0, shown: bool = True) -> None:
        self.console = Console(quiet=not shown)
        self._progress: Progress | None = None
        if self.console.is_terminal and shown:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=None),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._progress.add_task(label, total=total, completed=start, figures="")

    @property
    def visible(self) -> bool:
        return self._progress is not None

    def __enter__(self) -> Self:
        if self._progress:
            self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._progress:
            self._progress.stop()

    def move(self, completed: int, figures: str) -> None:
        """Show `completed` steps and the `figures` beside them."""
        if self._progress:
            self._progress.update(self._task, completed=completed, figures=figures)

    def line(self, text: str) -> None:
        """Print one line, not wrapped: whoever reads a log wants to search it."""
        self.console.print(text, soft_wrap=True, highlight=False)
