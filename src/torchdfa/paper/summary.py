"""What the runs of one recipe came to: mean and sample standard deviation over n seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any

from torchdfa.paper.results import Result


@dataclass(frozen=True)
class Figure:
    """A mean over `n` runs, with the sample standard deviation from two on."""

    mean: float
    std: float | None
    n: int

    def __str__(self) -> str:
        spread = "" if self.std is None else f" ± {self.std:.2f}"
        return f"{self.mean:.2f}{spread} (n={self.n})"


def figure(values: Sequence[float]) -> Figure | None:
    """None without values."""
    return Figure(mean(values), stdev(values) if len(values) > 1 else None, len(values)) if values else None


@dataclass(frozen=True)
class Summary:
    """The runs of one recipe; figures are of the last epoch, in percent."""

    results: tuple[Result, ...]

    def of(self, key: str) -> Figure | None:
        """A figure of the runs that ended: "top1", "top5", "train_top1"."""
        found = [r.run.result[key] for r in self.results if r.run.result is not None]
        return figure([value for value in found if value is not None])

    @property
    def diverged(self) -> int:
        return sum(r.diverged is not None for r in self.results)

    def at_training_accuracy(self, level: float) -> Figure | None:
        """Test top-1 after the first epoch whose training accuracy reached `level`; None unless all runs did."""
        found = [_first(r.run.epochs, level) for r in self.results]
        reached = [value for value in found if value is not None]
        return figure(reached) if len(reached) == len(found) else None

    def boundary(self, key: str) -> float | None:
        """Median over steps and runs of the error at the convolutions' output beside back-propagation's.

        `key` is "norm_ratio" (times its size) or "degrees" (the angle to it). None where it was not measured, as for
        back-propagation itself.
        """
        found = [angle[key] for r in self.results for line in r.run.alignment for angle in line["boundary"].values()]
        measured = [value for value in found if value is not None]
        return median(measured) if measured else None


def _first(epochs: Sequence[dict[str, Any]], level: float) -> float | None:
    return next((line["test_top1"] for line in epochs if line["train_top1"] >= level), None)


def cell(summary: Summary | None, figure_of: Callable[[Summary], Figure | None]) -> str:
    """A table's cell: the figure, what kept a run from having one, or a dash where nothing was run."""
    if summary is None or not summary.results:
        return "–"
    found = figure_of(summary)
    diverged = f"{summary.diverged} diverged" if summary.diverged else ""
    return ", ".join(part for part in (str(found) if found else "", diverged) if part) or "–"
