"""Figures 1, 4 and 5 of the paper with our curves: training and test accuracy over the epochs."""

from __future__ import annotations

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

    A curve is the mean over the seeds in a band of one standard deviation. Raises RunError where it cannot be written.
    """
    wanted = [recipe for recipe in found.recipes.values() if recipe.name.startswith(f"figure{number}/")]
    panels = list(dict.fromkeys(str(recipe.settings["data"]) for recipe in wanted))
    shown = {data: _arms(found, [r for r in wanted if r.settings["data"] == data]) for data in panels}
    longest = max((arms for arms in shown.values()), key=len)
    with plots.drawn(path, (5.4 * len(panels), 4.2 + 0.22 * ((len(longest) + 3) // 2))) as figure:
        for axes, data in zip(figure.subplots(1, len(panels), squeeze=False).flat, panels, strict=True):
            for arm, marker in zip(shown[data], plots.markers(shown[data]), strict=True):
                plots.line(axes, arm, "train_top1", marker, "--")
                plots.line(axes, arm, "test_top1", marker, "-")
            plots.dress(axes, "top-1 accuracy (%)")
            axes.set(title=NAMES[data], ylim=(0, 100))
            if not shown[data]:
                axes.text(0.5, 0.5, "not run yet", ha="center", transform=axes.transAxes)
        figure.suptitle(f"{TITLES[number]}: {found.protocol.text}", fontsize=9)
        plots.legend(figure, longest)
    return found.missing(wanted)


def _arms(found: Collection, recipes: list[Recipe]) -> list[Arm]:
    summaries = [(recipe, found.all(recipe)) for recipe in recipes]
    return [_arm(recipe, summary) for recipe, summary in summaries if summary is not None]


def _arm(recipe: Recipe, summary: Summary) -> Arm:
    rule: dict[str, Any] = {key: recipe.settings[key] for key in ("rule", "init") if key in recipe.settings}
    runs = tuple(result.run for result in summary.results if result.run.epochs)
    return Arm(recipe.title, rule, {"epochs": recipe.settings["epochs"]}, {}, runs)
