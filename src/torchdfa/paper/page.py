"""One HTML page with every table and figure and the settings behind them, in a single file."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from jinja2 import Environment

from torchdfa.paper import figures
from torchdfa.paper.collection import Collection
from torchdfa.paper.recipes import learned
from torchdfa.paper.results import Result
from torchdfa.paper.tables import TABLES
from torchdfa.train import runs

_LEFT_OUT = ("data", "rule", "epochs", "lr")  # shown in columns of their own


@dataclass(frozen=True)
class Picture:
    """A figure as it stands in the page."""

    title: str
    address: str  # the PNG itself, as a data: address
    missing: tuple[str, ...]


def write(found: Collection, path: Path) -> None:
    """Write the page; RunError where it cannot be written."""
    template = (resources.files("torchdfa.paper") / "page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    text = environment.from_string(template).render(
        protocol=found.protocol, tables=[make(found) for make in TABLES.values()], pictures=_pictures(found),
        runs=[_row(result) for result in found.every()], notes=found.notes,
    )  # fmt: skip
    runs.write(path, text.encode())


def _pictures(found: Collection) -> list[Picture]:
    with tempfile.TemporaryDirectory() as folder:
        return [_picture(number, found, Path(folder) / f"{number}.png") for number in figures.TITLES]


def _picture(number: str, found: Collection, path: Path) -> Picture:
    missing = figures.draw(number, found, path)
    data = base64.b64encode(path.read_bytes()).decode()
    return Picture(f"Figure {number}", f"data:image/png;base64,{data}", missing)


def _row(result: Result) -> dict[str, Any]:
    """What a run was, in full."""
    config, machine = result.config, result.run.config["machine"]
    settings = {key: value for key, value in learned(config).items() if key not in _LEFT_OUT}
    return {
        "recipe": result.recipe, "seed": result.seed, "data": config.data, "rule": config.rule, "lr": config.base_lr,
        "epochs": config.epochs, "precision": result.precision, "torch": machine.get("torch"),
        "torchdfa": machine.get("torchdfa"), "machine": machine.get("gpu") or machine.get("cpu"),
        "minutes": _minutes(result.run.epochs), "outcome": _outcome(result),
        "settings": ", ".join(f"{key} {value}" for key, value in settings.items() if value is not None),
    }  # fmt: skip


def _minutes(epochs: Sequence[dict[str, Any]]) -> str:
    return f"{epochs[-1]['seconds'] / 60:.0f}" if epochs else "–"


def _outcome(result: Result) -> str:
    return result.diverged or f"{result.run.result['top1']:.2f} %"  # type: ignore[index]
