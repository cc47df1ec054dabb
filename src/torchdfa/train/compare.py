"""One table, one picture and one sentence over several runs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console, JustifyMethod
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from torchdfa.errors import UsageError
from torchdfa.train import outputs, plots, runs
from torchdfa.train.arms import Arm, arms
from torchdfa.train.csvfile import to_csv
from torchdfa.train.intervals import wilson
from torchdfa.train.verdict import notes, sentence

_MEASURED = ("top1", "top5", "balanced_accuracy", "seconds", "images_per_second")
_BYTES = ("feedback_bytes", "feedback_bytes_actual")


def table(folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """One JSON-able row an arm, figures of the last epoch: means over seeds, with `<figure>_std` from two on.

    Accuracies and `interval`, the 95 % interval of top1 on that many test images, are in percent.
    """
    return [_row(arm) for arm in arms(_read(folders))]


def compare(
    folders: Sequence[str | Path], out: Path | None = None, console: Console | None = None
) -> list[dict[str, Any]]:
    """Print the table, what it means and where the files are; return the rows.

    `out` is the path of the picture, or a folder that gets compare.png; the table goes beside it as .csv and
    .json. None writes no file. Raises UsageError where a folder is no run or `out` cannot be used.
    """
    console = console or _console()
    found = _read(folders)
    picture = None if out is None else _picture(out)
    rows = [_row(arm) for arm in arms(found)]
    view = rendered(rows)
    # Never narrower than the figures need: a cut figure is worse than a line that the terminal folds.
    needed = Measurement.get(console, console.options.update(width=1000), view).minimum
    console.print(view, width=max(needed, console.width), crop=False)
    for line in (*notes(rows), sentence(rows)):
        console.print(line, highlight=False, soft_wrap=not console.is_terminal, markup=False)
    if picture is not None:
        _write(picture, found, rows)
        console.print(f"curves: {picture}   table: {picture.with_suffix('.csv')}, {picture.with_suffix('.json')}",
                      highlight=False, soft_wrap=True, markup=False)  # fmt: skip
    return rows


def _console() -> Console:
    """Where the output is no terminal there is no width to keep to."""
    console = Console()
    return console if console.is_terminal else Console(width=160)


def _read(paths: Sequence[str | Path]) -> list[runs.Run]:
    """The runs; plain files are passed over, as runs/* also names the pictures and tables that lie there."""
    folders = [path for path in paths if not Path(path).is_file()]
    if not folders:
        raise UsageError("compare needs at least one run folder, such as runs/*")
    return [runs.read(folder) for folder in folders]


def _row(arm: Arm) -> dict[str, Any]:
    done, wanted = arm.epochs
    measured = {key: arm.mean(key) for key in (*_MEASURED, *_BYTES)}
    spread = {f"{key}_std": arm.std(key) for key in _MEASURED}
    settings = {key: arm.settings[key] for key in ("data", "model", "lr", "epochs")}
    tests, top1 = arm.settings["test images"], measured["top1"]
    interval = None if top1 is None else [100 * bound for bound in wilson(top1 / 100, tests)]
    return {
        "rule": arm.label, **settings, "seeds": arm.seeds, "n": len(arm.runs), **measured, **spread,
        "interval": interval, "test_images": tests, "finished": arm.finished, "epochs_done": done,
        "status": "finished" if arm.finished else f"{done} of {wanted} epochs",
        "folders": [str(run.folder) for run in arm.runs],
        "rule_settings": arm.rule, "settings": arm.settings, "machine": arm.machine,
    }  # fmt: skip


def rendered(rows: Sequence[dict[str, Any]]) -> Table:
    """The rows as a rich table; settings that all rows share stand above it instead of in columns."""
    shared = [name for name in _SETTINGS if len({_cell(row, name) for row in rows}) == 1]
    view = Table(
        title=Text(", ".join(f"{_COLUMNS[name]} {_cell(rows[0], name)}" for name in shared)),
        caption="figures of the last epoch, not of the best",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    columns = [name for name in _COLUMNS if name not in shared and _worth_a_column(rows, name)]
    for name in columns:
        cells = [_cell(row, name) for row in rows]
        parts = [part for cell in cells for part in (cell.split() if name in _FOLDED else [cell])]
        justify: JustifyMethod = "left" if name in ("rule", "status") else "right"
        view.add_column(_COLUMNS[name], justify=justify, min_width=max(map(len, [*parts, *_COLUMNS[name].split("\n")])))
    for row in rows:
        view.add_row(*(Text(_cell(row, name)) for name in columns))
    return view


_SETTINGS = ("data", "model", "epochs", "lr", "seeds")
_COLUMNS = {
    "rule": "rule",
    "data": "data",
    "model": "model",
    "top1": "top-1\n%",
    "interval": "95 %\ninterval",
    "top5": "top-5\n%",
    "balanced_accuracy": "balanced\n%",
    "seconds": "seconds",
    "images_per_second": "images\n/s",
    "feedback_bytes": "feedback\n(in memory)",
    "lr": "lr",
    "epochs": "epochs",
    "seeds": "seed",
    "status": "state",
}
_FOLDED = ("rule", "data", "feedback_bytes", "seeds", "status")  # may take several lines in a narrow terminal
_WITH_SPREAD = ("top1", "top5", "balanced_accuracy")


def _worth_a_column(rows: Sequence[dict[str, Any]], name: str) -> bool:
    """Leaves out what says nothing: top-5 of few classes, a balanced accuracy equal to top-1 in every row."""
    if name == "status":
        return not all(row["finished"] for row in rows)
    if name == "balanced_accuracy":
        return any(row[name] is not None and abs(row[name] - row["top1"]) > 0.05 for row in rows)
    return any(row[name] is not None for row in rows)


def _cell(row: dict[str, Any], name: str) -> str:
    value, spread = row[name], row[f"{name}_std"] if name in _WITH_SPREAD else None
    digits = {"seconds": 1, "images_per_second": 0}.get(name, 2 if row["test_images"] >= 1000 else 1)
    if value is None:
        return "–"
    if name == "seeds":
        return ", ".join(map(str, value)) + (f" (n={row['n']})" if row["n"] > 1 else "")
    if name == "interval":
        return f"{value[0]:.{digits}f}–{value[1]:.{digits}f}"
    if name == "feedback_bytes":
        return f"{_bytes(value)} ({_bytes(row['feedback_bytes_actual'] or 0)})" if value else "–"
    if name in _MEASURED:
        return f"{value:.{digits}f}" + ("" if spread is None else f" ± {spread:.{digits}f}")
    return f"{value:g}" if isinstance(value, float) else str(value)


def _bytes(n: float) -> str:
    for unit in ("B", "kB", "MB"):
        if n < 1000:
            return f"{n:.3g}{unit}"
        n /= 1000
    return f"{n:.3g}GB"


def _picture(out: Path) -> Path:
    return outputs.usable(out / "compare.png" if out.is_dir() or not out.suffix else out, ".png")


def _write(picture: Path, found: Sequence[runs.Run], rows: Sequence[dict[str, Any]]) -> None:
    plots.curves(found, picture)
    runs.write(picture.with_suffix(".json"), (json.dumps(rows, indent=2, allow_nan=False) + "\n").encode())
    names = [name for name in rows[0] if not isinstance(rows[0][name], (dict, list)) and name != "interval"]
    header = [*names, "interval_low", "interval_high", "seeds", "folders"]
    cells = (
        [*(row[name] for name in names), *(row["interval"] or (None, None)),
         " ".join(map(str, row["seeds"])), " ".join(row["folders"])]
        for row in rows
    )  # fmt: skip
    runs.write(picture.with_suffix(".csv"), to_csv(header, cells))
