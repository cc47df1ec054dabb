"""`torchdfa otb plot`: success and precision plots, attributes, and Figure 6; each with a CSV of what it shows."""

from __future__ import annotations

import itertools
import math
import textwrap
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from torchdfa.errors import UsageError
from torchdfa.track import table
from torchdfa.track.protocols import DISTANCES, OVERLAPS
from torchdfa.track.reporting import FORCED, Arm, arms, condition
from torchdfa.track.scoring import Scores
from torchdfa.train import runs
from torchdfa.train.csvfile import to_csv
from torchdfa.train.plots import drawn

_LINES = ("#000000", "#d55e00", "#0072b2", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#999999")
_RULES = {"bp": "#000000", "bdfa": "#d55e00", "dfa": "#0072b2", "fa": "#cc79a7", "frozen": "#8c8c8c"}
# What each plot is of: the curve, its abscissa, label, and the measure in the legend.
PLOTS = {
    "success": (OVERLAPS, "overlap threshold", "success rate", "auc"),
    "precision": (DISTANCES, "location error threshold (pixels)", "precision", "precision20"),
}


def one_pass(scores: Seq[Scores], out: Path) -> list[Path]:
    """success.png and precision.png of all trackers, best first in the legend, and their CSV files."""
    title = _title(scores)
    runs.make(out)
    written = []
    for kind in PLOTS:
        with drawn(out / f"{kind}.png", (6.4, 4.8)) as figure:
            _curves(figure.subplots(), kind, scores, textwrap.fill(title, 80))
        written += [out / f"{kind}.png", _csv(out / f"{kind}.csv", kind, scores)]
    return written


def _title(scores: Seq[Scores]) -> str:
    counts = "/".join(map(str, sorted({len(s.sequences) for s in scores})))
    what = condition(scores)
    one_pass = "" if FORCED in what else "one-pass evaluation, "
    return f"{one_pass}{what}, {counts} sequences, protocol {scores[0].protocol}"


def _curves(axes: Axes, kind: str, scores: Seq[Scores], title: str) -> None:
    x, x_label, y_label, measure = PLOTS[kind]
    places = {s.tracker: k for k, s in enumerate(scores)}  # one colour in every plot, whoever is first in it
    for s in sorted(scores, key=lambda s: -float(getattr(s, measure))):
        k = places[s.tracker]
        style = "-" if k < len(_LINES) else "--"
        label = f"{s.tracker} [{getattr(s, measure):.3f}]"
        axes.plot(x, getattr(s, kind), style, color=_LINES[k % len(_LINES)], linewidth=1.8, label=label)
    axes.set(xlabel=x_label, ylabel=y_label, xlim=(x[0], x[-1]), ylim=(0, 1.02))
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left" if kind == "success" else "lower right")


def _csv(path: Path, kind: str, scores: Seq[Scores]) -> Path:
    x = PLOTS[kind][0]
    rows = [[float(t), *(float(getattr(s, kind)[k]) for s in scores)] for k, t in enumerate(x)]
    runs.write(path, to_csv(["threshold", *(s.tracker for s in scores)], rows))
    return path


def attributes(scores: Seq[Scores], out: Path) -> list[Path]:
    """Success plots of the sequences with each attribute, in one picture, and a CSV of the AUCs."""
    runs.make(out)
    present = [a for a in table.ATTRIBUTES if any(s.with_attribute(a) for s in scores)]
    if not present:
        return []
    columns = min(4, len(present))
    with drawn(out / "attributes.png", (4 * columns, 3.3 * math.ceil(len(present) / columns)), dpi=100) as figure:
        grid = figure.subplots(math.ceil(len(present) / columns), columns, squeeze=False).flat
        for axes, attribute in zip(grid, present, strict=False):
            chosen = [w for s in scores if (w := s.with_attribute(attribute))]
            count = max(len(w.sequences) for w in chosen)
            _curves(axes, "success", chosen, f"{table.ATTRIBUTES[attribute]} ({count})")
        for axes in list(grid)[len(present) :]:
            axes.set_axis_off()
    rows = [[s.tracker, *(w.auc if (w := s.with_attribute(a)) else None for a in present)] for s in scores]
    runs.write(out / "attributes.csv", to_csv(["tracker", *present], rows))
    return [out / "attributes.png", out / "attributes.csv"]


def figure6(scores: Seq[Scores], out: Path) -> list[Path]:
    """Figure 6 of the paper: precision and success of each rule, a column for each batch size.

    Lines are the mean over seeds, bands one standard deviation; without several seeds there are no bands.
    UsageError where no two trackers have names such as bp-b128-s0 and bdfa-b128-s0.
    """
    found = [arm for arm in arms(scores) if arm.batch is not None]
    batches = sorted({arm.batch for arm in found if arm.batch is not None}, reverse=True)
    if not any(sum(arm.batch == b for arm in found) > 1 for b in batches):
        raise UsageError(
            "Figure 6 needs two rules at one batch size: results named such as bp-b128-s0 and bdfa-b128-s0"
        )
    title, colours = _title([s for arm in found for s in arm.scores]), _colours(found)
    runs.make(out)
    with drawn(out / "figure6.png", (3.6 * len(batches) + 0.6, 6.6)) as figure:
        grid = figure.subplots(2, len(batches), squeeze=False, sharey="row")
        for row, kind in enumerate(("precision", "success")):
            for axes, batch in zip(grid[row], batches, strict=True):
                _arms(axes, kind, [arm for arm in found if arm.batch == batch], f"batch {batch}", colours)
        title = f"Online learning of MDNet's head by rule (cf. Figure 6); {title}"
        figure.suptitle(textwrap.fill(title, 50 * len(batches)), fontsize=9)
    runs.write(out / "figure6.csv", to_csv(_HEADER, _rows(found)))
    return [out / "figure6.png", out / "figure6.csv"]


def _colours(found: Seq[Arm]) -> dict[str, str]:
    """One for each rule with its options, the same at every batch size; plain rules have their own."""
    rules = sorted({arm.rule for arm in found})
    free = itertools.cycle([c for c in _LINES if c not in {_RULES.get(rule) for rule in rules}])
    return {rule: _RULES.get(rule) or next(free) for rule in rules}


def _arms(axes: Axes, kind: str, found: Seq[Arm], title: str, colours: dict[str, str]) -> None:
    x, x_label, y_label, measure = PLOTS[kind]
    for arm in found:
        curve, band = _mean(arm, kind)
        mean, std = arm.mean_and_std(measure)
        spread = f" ± {std:.3f}, {len(arm.scores)} seeds" if std is not None else ""
        spread += f", {len(arm.by_sequence())} sequences" if arm.left_out else ""
        colour = colours[arm.rule]
        axes.plot(x, curve, color=colour, linewidth=1.8, label=f"{arm.rule} [{mean:.3f}{spread}]")
        if len(arm.scores) > 1:
            axes.fill_between(x, curve - band, curve + band, color=colour, alpha=0.18, linewidth=0)
    axes.set(xlabel=x_label, ylabel=y_label, xlim=(x[0], x[-1]), ylim=(0, 1.02), title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left" if kind == "success" else "lower right")


def _mean(arm: Arm, kind: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    curves = np.array([getattr(s, kind) for s in arm.scores])
    return curves.mean(axis=0), curves.std(axis=0, ddof=1) if len(curves) > 1 else np.zeros(curves.shape[1])


_HEADER = ("batch", "rule", "plot", "threshold", "mean", "std", "seeds", "sequences")


def _rows(found: Seq[Arm]) -> list[list[Any]]:
    rows: list[list[Any]] = []
    for arm in found:
        for kind in PLOTS:
            curve, band = _mean(arm, kind)
            for t, mean, std in zip(PLOTS[kind][0], curve, band, strict=True):
                spread = float(std) if len(arm.scores) > 1 else None
                n = len(arm.by_sequence())
                rows.append([arm.batch, arm.rule, kind, float(t), float(mean), spread, len(arm.scores), n])
    return rows
