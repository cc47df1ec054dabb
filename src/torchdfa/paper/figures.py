"""Figures 1, 4 and 5 of the paper with our curves: training and test accuracy over the epochs."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torchdfa.paper.collection import Collection
from torchdfa.paper.recipes import NAMES, Recipe
from torchdfa.paper.summary import Summary
from torchdfa.train import plots
from torchdfa.train.arms import Arm

TITLES = {
    "1": "BP and conventional DFA, feedback to every layer (cf. Figure 1)",
    "4": "random feedback, small learning rate (cf. Figure 4)",
    "5": "large learning rate (cf. Figure 5)",
}


def draw(number: str, found: Collection, path: Path) -> tuple[str, ...]:
    """Draw a figure as PNG, a panel for each data set; returns the names of the recipes whose curves are missing.

    A curve is the mean over the seeds whose runs finished, in a band of one standard deviation; runs that diverged are
    counted beside it. Raises RunError where it cannot be written.
    """
    wanted = [recipe for recipe in found.recipes.values() if recipe.name.startswith(f"figure{number}/")]
    panels = list(dict.fromkeys(str(recipe.settings["data"]) for recipe in wanted))
    arms = {recipe.name: arm for recipe in wanted if (arm := _arm(recipe, found.all(recipe))) is not None}
    entries = list({arm.label: arm for arm in arms.values()}.values())  # an arm stands in several panels
    markers = dict(zip((arm.label for arm in entries), plots.markers(entries), strict=True))
    with plots.drawn(path, (5.4 * len(panels), 4.2 + 0.22 * ((len(entries) + 3) // 2))) as figure:
        for axes, data in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
            recipes = [recipe for recipe in wanted if recipe.settings["data"] == data]
            for arm in (arms[recipe.name] for recipe in recipes if recipe.name in arms):
                plots.line(axes, arm, "train_top1", markers[arm.label], "--")
                plots.line(axes, arm, "test_top1", markers[arm.label], "-")
            plots.dress(axes, "top-1 accuracy (%)")
            axes.set(title=NAMES[data], ylim=(0, 100))
            lacking = _without_curve(found, recipes, arms)
            axes.text(0.98, 0.03, lacking, ha="right", va="bottom", fontsize=9, transform=axes.transAxes)
        figure.suptitle(f"{TITLES[number]}\n{found.protocol.text}", fontsize=9)
        plots.legend(figure, [_entry(arm, found, wanted) for arm in entries])
    return found.missing(wanted)


def _arm(recipe: Recipe, summary: Summary | None) -> Arm | None:
    """The runs of a recipe that finished; None where none did."""
    rule: dict[str, Any] = {key: recipe.settings[key] for key in ("rule", "init") if key in recipe.settings}
    runs = tuple(result.run for result in summary.results if result.run.result is not None) if summary else ()
    return Arm(recipe.title, rule, {"epochs": recipe.settings["epochs"]}, {}, runs) if runs else None


def _entry(arm: Arm, found: Collection, wanted: Sequence[Recipe]) -> Arm:
    """The arm as the legend has it: with the number of its runs in each panel, which need not be the same."""
    several = len({recipe.settings["data"] for recipe in wanted}) > 1
    alike = [(recipe, found.all(recipe)) for recipe in wanted if recipe.title == arm.label]
    counts = [
        f"{NAMES[recipe.settings['data']]}: {_count(summary)}" if several else _count(summary)
        for recipe, summary in alike
        if summary is not None
    ]
    return replace(arm, label=f"{arm.label} ({'; '.join(counts)})", runs=arm.runs[:1])


def _count(summary: Summary) -> str:
    """As in the tables."""
    finished = len(summary.results) - summary.diverged
    parts = (f"n={finished}" if finished else "", f"{summary.diverged} diverged" if summary.diverged else "")
    return ", ".join(part for part in parts if part)


def _without_curve(found: Collection, recipes: Sequence[Recipe], arms: Container[str]) -> str:
    """What a panel says of the arms of which no run finished."""
    summaries = [(recipe.title, found.all(recipe)) for recipe in recipes if recipe.name not in arms]
    lines = [f"{title}: {_count(summary)}" for title, summary in summaries if summary is not None]
    return "\n".join(lines) if lines or len(summaries) < len(recipes) else "not run yet"
