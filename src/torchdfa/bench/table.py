"""What a file of results says: one table, and one picture of the ratios."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from rich import box
from rich.table import Table

from torchdfa.errors import UsageError
from torchdfa.train import plots, runs

Record = dict[str, Any]


def latest(path: Path) -> list[Record]:
    """The last record of every case, in the order of the file."""
    found = {(r.get("bench"), r.get("case")): r for r in runs.read_lines(path)}
    if not found:
        raise UsageError(f"{path} holds no results; measure some with 'torchdfa bench --out {path}'")
    return list(found.values())


def rendered(records: Sequence[Record]) -> Table:
    """Median times in ms and the ratios (median, p20 to p80), a row a case; memory in MiB."""
    table = Table(box=box.SIMPLE)
    for column in ("bench", "case", "ms, or MiB held + peak", "ratio of times (p20 to p80)"):
        table.add_column(column, overflow="fold")
    for record in records:
        table.add_row(record["bench"], record["case"], _amounts(record), "\n".join(map(_ratio, ratios(record))))
    return table


def _clock(record: Record) -> str:
    """Others' work does not add to CPU time; but of several threads it counts the waiting, so there it says little."""
    return "cpu" if record["machine"]["threads"] == 1 else "wall"


def _amounts(record: Record) -> str:
    if "memory" in record:
        mib = {k: (v["held_bytes"] / 2**20, v["extra_peak_bytes"] / 2**20) for k, v in record["memory"].items()}
        return "\n".join(f"{kind} {held:.1f} + {extra:.1f}" for kind, (held, extra) in mib.items())
    return "\n".join(f"{name} {time['median']:.3g}" for name, time in record[f"{_clock(record)}_ms"].items())


def ratios(record: Record) -> list[tuple[str, dict[str, float]]]:
    """Of CPU times with one thread, of wall times with more."""
    return list(record.get(f"{_clock(record)}_ratio", {}).items())


def _ratio(ratio: tuple[str, dict[str, float]]) -> str:
    name, value = ratio
    return f"{name} {value['median']:.2f} ({value['p20']:.2f} to {value['p80']:.2f})"


def picture(records: Sequence[Record], path: Path) -> None:
    """A point for every ratio in its 20th to 80th percentile; right of 1 the second of the pair is quicker."""
    points = [(f"{r['bench']} {r['case']}: {name}", value) for r in records for name, value in ratios(r)]
    with plots.drawn(path, (9, 1 + 0.22 * len(points))) as figure:
        axes = figure.add_subplot()
        for place, (_, value) in enumerate(points):
            axes.plot((value["p20"], value["p80"]), (place, place), color="#0072b2", linewidth=2)
            axes.plot(value["median"], place, "o", color="#0072b2", markersize=4)
        axes.axvline(1, color="black", linewidth=1)
        axes.grid(alpha=0.3)
        axes.set_yticks(range(len(points)), [name for name, _ in points], fontsize=7)
        axes.set_ylim(len(points) - 0.5, -0.5)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(f"ratio of times\n{_where(records[-1])}", fontsize=8)


def _where(record: Record) -> str:
    machine = record["machine"]
    return f"CPU time of one thread, wall time of several; {machine['cpu']}, kernel {record['kernel']}"
