"""The paper's tables, and ours of the controls, with our figures beside the paper's; drawn from result files alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torchdfa.paper.collection import Collection
from torchdfa.paper.recipes import (
    ARMS,
    MAIN,
    NAMES,
    SEARCHED,
    SMALL_ARMS,
    SMALL_SIZES,
    SWEEP_DECAYS,
    SWEPT,
    Recipe,
    small_sweep_name,
    small_sweep_points,
    sweep_name,
    sweep_rates,
)
from torchdfa.paper.summary import Figure, Summary, cell
from torchdfa.paper.tuned import SMALL_TUNED


@dataclass(frozen=True)
class Table:
    """Rows of text; `missing` names the recipes that have no result."""

    name: str
    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    missing: tuple[str, ...] = ()
    note: str = ""


def table_1(found: Collection) -> Table:
    """Table 1: both data sets, eight arms."""
    recipes = [r for r in found.recipes.values() if r.name.startswith("table1/")]
    return _beside_the_paper(found, "table 1", f"Table 1, {found.protocol.name}: {found.protocol.text}", recipes)


def table_2(found: Collection) -> Table:
    """Table 2: CIFAR-10 with and without augmentation, at the large learning rate."""
    recipes = [r for r in found.recipes.values() if r.name.startswith("table2/")]
    return _beside_the_paper(found, "table 2", f"Table 2, {found.protocol.name}: {found.protocol.text}", recipes)


def _beside_the_paper(found: Collection, name: str, title: str, recipes: Sequence[Recipe]) -> Table:
    own = ("yours: top-1 %", "yours: top-5 %") if found.has_own else ()
    header = ("data", "arm", "paper: top-1 %", "ours: top-1 %", "paper: top-5 %", "ours: top-5 %", *own, "recipe")
    rows = []
    for recipe in recipes:
        top1, top5 = (f"{value:.2f}" for value in recipe.published or ())
        ours, yours = found.shipped(recipe), found.own(recipe)
        cells = [top1, _top(ours, "top1"), top5, _top(ours, "top5")]
        cells += [_top(yours, "top1"), _top(yours, "top5")] if own else []
        rows.append((NAMES[recipe.settings["data"]], recipe.title, *cells, recipe.name))
    return Table(name, title, header, tuple(rows), found.missing(recipes))


def controls(found: Collection) -> Table:
    """What a claim "better than back-propagation" has to be held against; all on CIFAR-10."""
    names = [f"table1/cifar10/{arm}" for arm in MAIN]
    recipes = [found.recipes[n] for n in names] + [r for r in found.recipes.values() if r.name.startswith("control/")]
    level = equal_level(found, recipes)
    reach = "at equal training" if level is None else f"top-1 % once training reached {level:g} %"
    header = ("arm", "top-1 %", "training top-1 %", reach, "error: × BP's", "error: angle to BP's", "recipe")
    rows = [(r.title, *_control_cells(found.all(r), level), r.name) for r in recipes]
    note = (
        "The error is that at the convolutions' output, against back-propagation's at the same weights, median along "
        "the runs. Training accuracy is that of the epoch as it went."
    )
    return Table("controls", f"Controls, {found.protocol.name}", header, tuple(rows), found.missing(recipes), note)


def _control_cells(summary: Summary | None, level: float | None) -> tuple[str, ...]:
    if summary is None:
        return ("–",) * 5
    ratio, degrees = summary.boundary("norm_ratio"), summary.boundary("degrees")
    reached = "–" if level is None else cell(summary, lambda s: s.at_training_accuracy(level))
    return (
        _top(summary, "top1"), _top(summary, "train_top1"), reached,
        "–" if ratio is None else f"{ratio:.2f}", "–" if degrees is None else f"{degrees:.0f}°",
    )  # fmt: skip


def equal_level(found: Collection, recipes: Sequence[Recipe]) -> float | None:
    """The highest training accuracy, in whole percent and at most 99, that every run which ended has reached."""
    summaries = [summary for recipe in recipes if (summary := found.all(recipe)) is not None]
    ends = [max(line["train_top1"] for line in r.run.epochs) for s in summaries for r in s.results if r.run.result]
    return float(min(99, int(min(ends)))) if ends else None


def small_data(found: Collection) -> Table:
    """Equal steps on fewer images."""
    names = {f"{size:,}": f"small/{size}" for size in SMALL_SIZES}
    names |= {f"{size:,}, tuned for them": f"small-tuned/{size}" for size in SMALL_TUNED}
    rows = [[found.recipes.get(f"{name}/{arm}") for arm in SMALL_ARMS] for name in names.values()]
    cells = [["–" if recipe is None else _top(found.all(recipe), "top1") for recipe in row] for row in rows]
    header = ("training images", *(f"{SWEPT[arm][0]}: top-1 %" for arm in SMALL_ARMS))
    title = f"Small data, {found.protocol.name}, equal steps"
    missing = found.missing([recipe for row in rows for recipe in row if recipe is not None])
    note = "Tuned for them: batch, rate and weight decay of 'table small-sweep'."
    table = tuple((words, *row) for words, row in zip(names, cells, strict=True))
    return Table("small-data", title, header, table, missing, note)


def sweep(found: Collection) -> Table:
    """Every choice of rate and weight decay, on held-out training images; a single row for an arm without any run."""
    recipes = [r for r in found.recipes.values() if r.name.startswith("sweep/")]
    arms = dict.fromkeys(r.name.split("/")[1] for r in recipes)
    rows = [row for arm in arms for row in _swept(found, arm)]
    header = ("arm", "learning rate", *(f"weight decay {decay:g}" for decay in SWEEP_DECAYS))
    title = f"Sweep, {found.protocol.name}, half as long: top-1 % on held-out training images"
    return Table("sweep", title, header, tuple(rows), found.missing(recipes))


def _swept(found: Collection, arm: str) -> list[tuple[str, ...]]:
    title = SWEPT[arm][0]
    rows = []
    for rate in sweep_rates(arm):
        own = [found.recipes[sweep_name(arm, rate, decay)] for decay in SWEEP_DECAYS]
        if any(found.all(recipe) for recipe in own):
            rows.append((title, f"{rate:g}", *(_top(found.all(recipe), "top1") for recipe in own)))
    return rows or [(title, *["–"] * (1 + len(SWEEP_DECAYS)))]


def small_sweep(found: Collection) -> Table:
    """The search of batch, rate and weight decay for few images, on held-out training images."""
    recipes = [r for r in found.recipes.values() if r.name.startswith("small-sweep/")]
    columns = [(size, arm) for size in SMALL_TUNED for arm in SEARCHED]
    rows = []
    for point in small_sweep_points():
        own = [found.recipes[small_sweep_name(size, arm, *point)] for size, arm in columns]
        rows.append((*(f"{value:g}" for value in point), *(_top(found.all(recipe), "top1") for recipe in own)))
    titles = (f"{ARMS[arm][0]}, {size:,} images" for size, arm in columns)
    header = ("batch", "learning rate", "weight decay", *titles)
    title = f"Sweep of small data, {found.protocol.name}: top-1 % on held-out training images"
    return Table("small-sweep", title, header, tuple(rows), found.missing(recipes))


def near_duplicates(found: Collection) -> Table:
    """Accuracy on the test images that have no near copy among the training images."""
    header = ("data", "arm", "all: top-1 %", "without near-duplicates: top-1 %", "near-duplicates: top-1 %", "recipe")
    recipes = [found.recipes[f"table1/{data}/{arm}"] for data in ("cifar10", "cifar100") for arm in MAIN]
    rows = [(NAMES[r.settings["data"]], r.title, *found.without_duplicates(r), r.name) for r in recipes]
    return Table(
        "duplicates", "Near-duplicates left out", header, tuple(rows), found.missing(recipes), found.duplicate_note
    )


def _top(summary: Summary | None, key: str) -> str:
    def of(summary: Summary) -> Figure | None:
        return summary.of(key)

    return cell(summary, of)


TABLES: dict[str, Callable[[Collection], Table]] = {
    "1": table_1,
    "2": table_2,
    "controls": controls,
    "small-data": small_data,
    "sweep": sweep,
    "small-sweep": small_sweep,
    "duplicates": near_duplicates,
}
