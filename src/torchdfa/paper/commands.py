"""`torchdfa paper`: list and run the recipes, and draw tables, figures and the page from their results."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from torchdfa.errors import UsageError

if TYPE_CHECKING:
    from torchdfa.paper.tables import Table

app = typer.Typer(help="The paper's tables and figures on CIFAR: run them, and draw them from result files.")
Flag = typer.Option
Protocol = Annotated[str, Flag(help="short (10,000 images) or full (50,000)")]
Results = Annotated[Path, Flag(help="folder of your result files")]
_RESULTS = Path("runs/paper")


@app.command("list")
def list_recipes(
    pattern: Annotated[str, typer.Argument(help="a recipe, the beginning of its name, or with * and ?")] = "*",
    protocol: Protocol = "short",
    results: Results = _RESULTS,
) -> None:
    """Name the recipes, what the paper says, and how many runs there are."""
    from torchdfa.paper import collection, tables
    from torchdfa.paper.recipes import select

    found = collection.collect(protocol, results)
    rows = []
    for recipe in select(found.recipes, [pattern]):
        counts = [len(s.results) if s else 0 for s in (found.shipped(recipe), found.own(recipe))]
        published = f"{recipe.published[0]:.2f}" if recipe.published else "–"
        rows.append((recipe.name, recipe.title, published, *(str(n or "–") for n in counts), recipe.same_as or ""))
    header = ("recipe", "arm", "paper: top-1 %", "runs that come with it", "your runs", "same as")
    _show(tables.Table("list", f"{protocol}: {found.protocol.text}", header, tuple(rows)), found.notes)


@app.command("run")
def run(
    pattern: Annotated[list[str] | None, typer.Argument(help="recipes: names, beginnings, or with * and ?")] = None,
    protocol: Protocol = "short",
    seeds: Annotated[int, Flag(help="of each recipe: seeds 0, 1, ...")] = 1,
    hours: Annotated[float | None, Flag(help="stop cleanly after so long")] = None,
    workers: Annotated[int, Flag(help="runs at once, each with its share of the cores")] = 1,
    scheduler: Annotated[str | None, Flag(help="address of a Dask scheduler whose workers do the runs")] = None,
    results: Results = _RESULTS,
    data_dir: Annotated[str | None, Flag(help="where CIFAR lies")] = None,
    download: Annotated[bool, Flag("--download", help="fetch CIFAR from its official address")] = False,
    device: Annotated[str, Flag(help="auto, cpu or cuda")] = "auto",
    precision: Annotated[str, Flag(help="auto, fp32, bf16 or fp16")] = "auto",
    threads: Annotated[int | None, Flag(help="CPU threads of each run")] = None,
    keep: Annotated[bool, Flag("--keep", help="keep the run folders, with models and pictures")] = False,
) -> int:
    """Train recipes; what is finished is skipped, what was interrupted goes on."""
    from torchdfa.paper import campaign

    aside: dict[str, Any] = {"data_dir": data_dir, "download": download, "device": device, "precision": precision}
    plan = campaign.Campaign(protocol, pattern or ["*"], seeds, results, keep, aside | {"threads": threads})
    return campaign.run(plan, workers=workers, hours=hours, scheduler=scheduler)


@app.command("table")
def table(
    name: Annotated[str, typer.Argument(help="1, 2, controls, small-data, sweep, small-sweep or duplicates")],
    protocol: Protocol = "short",
    results: Results = _RESULTS,
    out: Annotated[Path | None, Flag(help="write it as CSV too")] = None,
) -> None:
    """Print a table with our figures beside the paper's."""
    from torchdfa.paper import collection, tables
    from torchdfa.train import outputs, runs
    from torchdfa.train.csvfile import to_csv

    if name not in tables.TABLES:
        raise UsageError(f"there is no table {name!r}; take one of {', '.join(tables.TABLES)}")
    target = None if out is None else outputs.usable(out, ".csv")
    found = collection.collect(protocol, results)
    drawn = tables.TABLES[name](found)
    _show(drawn, found.notes)
    if target is not None:
        runs.write(target, to_csv(drawn.header, drawn.rows))
        print(f"table: {target}")


@app.command("figure")
def figure(
    number: Annotated[str, typer.Argument(help="1, 4 or 5")],
    protocol: Protocol = "short",
    results: Results = _RESULTS,
    out: Annotated[Path | None, Flag(help="the picture; figure<number>.png by default")] = None,
) -> None:
    """Draw a figure of the paper with our curves."""
    from torchdfa.paper import collection, figures
    from torchdfa.train import outputs

    if number not in figures.TITLES:
        raise UsageError(f"there is no figure {number!r}; take one of {', '.join(figures.TITLES)}")
    path = outputs.usable(out or Path(f"figure{number}.png"), ".png")
    found = collection.collect(protocol, results)
    _say(found.notes, figures.draw(number, found, path))
    print(f"figure: {path}")


@app.command("page")
def write_page(
    protocol: Protocol = "short",
    results: Results = _RESULTS,
    out: Annotated[Path, Flag(help="the page")] = Path("paper.html"),
) -> None:
    """Write one HTML page with all tables, figures and settings."""
    from torchdfa.paper import collection, page
    from torchdfa.train import outputs

    path = outputs.usable(out, ".html")
    page.write(collection.collect(protocol, results), path)
    print(f"page: {path}")


@app.command("add")
def add(
    folders: Annotated[list[Path], typer.Argument(help="folders of finished runs of 'torchdfa train'")],
    protocol: Protocol = "short",
    results: Results = _RESULTS,
) -> None:
    """Make result files of runs that were trained with 'torchdfa train' at the settings of a recipe."""
    from torchdfa.paper import campaign

    for folder in folders:
        print(f"{folder}: {campaign.add(folder, protocol, results)}")


@app.command("duplicates")
def duplicates(
    data: Annotated[str, typer.Argument(help="cifar10 or cifar100")],
    data_dir: Annotated[Path | None, Flag(help="where CIFAR lies")] = None,
    listed: Annotated[Path | None, Flag("--list", help="a CSV file with their numbers as TestID, not a search")] = None,
    results: Results = _RESULTS,
) -> None:
    """Find the test images that have a near copy among the training images; 'table duplicates' leaves them out."""
    from torchdfa.paper import near_duplicates
    from torchdfa.paper.results import make_folder

    if data not in ("cifar10", "cifar100"):
        raise UsageError(f"data must be cifar10 or cifar100; got {data!r}")
    make_folder(results)
    found = near_duplicates.listed(data, listed) if listed else near_duplicates.find(data, data_dir)
    path = near_duplicates.path(results, data)
    near_duplicates.write(path, found)
    print(f"{len(found['found'])} of {found['test_images']:,} test images have a near copy; list: {path}")


def _show(table: Table, notes: tuple[str, ...]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table as RichTable
    from rich.text import Text

    console = Console() if sys.stdout.isatty() else Console(width=200)
    view = RichTable(title=Text(table.title), box=box.SIMPLE_HEAD, pad_edge=False)
    for column in table.header:
        view.add_column(column)
    for row in table.rows:
        view.add_row(*(Text(cell) for cell in row))
    console.print(view)
    if table.note:
        print(table.note)
    _say(notes, table.missing)


def _say(notes: tuple[str, ...], missing: tuple[str, ...]) -> None:
    for note in notes:
        print(note, file=sys.stderr)
    if missing:
        shown = ", ".join(missing[:6]) + (f" and {len(missing) - 6} more" if len(missing) > 6 else "")
        print(f"not run: {shown}; 'torchdfa paper run {missing[0]}' does")
