"""Tables and the picture of learning from a stream, drawn from the results' files alone."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from torchdfa.online.pictures import curves
from torchdfa.train import runs
from torchdfa.train.csvfile import to_csv

SHOWN = ("nearest class mean", "streaming LDA", "head bp", "head bdfa", "head bdfa, replay", "head frozen",
         "MLPClassifier", "SGDClassifier")  # fmt: skip


def spread(values: Iterable[float], digits: int = 1) -> str:
    found = list(values)
    return f"{mean(found):.{digits}f}" + (f" ± {stdev(found):.{digits}f}" if len(found) > 1 else "")


def write(folder: Path) -> None:
    lines = runs.read_lines(folder / "compare.jsonl")
    for data in dict.fromkeys(line["data"] for line in lines):
        of_data = [line for line in lines if line["data"] == data]
        runs.write(folder / f"{data}.csv", to_csv(*table(of_data)))
        found: dict[str, dict[str, list[Any]]] = defaultdict(lambda: defaultdict(list))
        for line in of_data:
            if line["method"] in SHOWN:
                found[line["order"]][line["method"]].append(line["points"])
        curves(found, len(of_data[0]["points"]) and of_data[0]["points"][0][0], folder / f"{data}.png")
    runs.write(folder / "speed.csv", to_csv(*speed(runs.read_lines(folder / "speed.jsonl"))))
    runs.write(folder / "memory.csv", to_csv(*memory(runs.read_lines(folder / "memory.jsonl"))))


def table(lines: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """A row for each method: accuracy on the test images after each kind of stream, and before learning along it."""
    header, rows = ["method", "n", "rate"], []
    orders = list(dict.fromkeys(line["order"] for line in lines))
    header += [f"test after {order} (%)" for order in orders] + [f"before learning, {order} (%)" for order in orders]
    header += ["µs an update", "state (bytes)", "updates undone"]
    for method in dict.fromkeys(line["method"] for line in lines):
        own = [line for line in lines if line["method"] == method]
        by_order = [[line for line in own if line["order"] == order] for order in orders]
        row: list[Any] = [method, min(map(len, by_order)), own[0]["rate"] or ""]
        row += [
            spread(line[key] for line in part) if part else "" for key in ("final", "accuracy") for part in by_order
        ]
        row += [spread((line["microseconds_an_update"] for line in own), 0), max(line["state_bytes"] for line in own)]
        rows.append([*row, sum(line["undone"] for line in own)])
    return header, rows


def speed(records: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """Of the last record."""
    header = ["one sample, 512-512-10", "CPU time, median (µs)", "ratio to the bare products, median", "p20", "p80"]
    rows = records[-1]["rows"].items() if records else ()
    return header, [[name, row["microseconds"], row["median_ratio"], *row["p20_p80_ratio"]] for name, row in rows]


def memory(records: list[dict[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    parts = ("weights", "gradients", "optimizer", "activations", "feedback", "feedback_stored", "scaler", "replay")
    header = [
        "arm",
        "width",
        "updates",
        *parts,
        "stated in all",
        "measured peak of updates",
        "of making it",
        "first and last peak along",
        "files",
    ]
    rows = []
    for record in records:
        stated, along, files = record.get("stated", {}), record["peaks_along"], record["file_sizes_along"]
        row = [record["arm"], record["width"], record["updates"], *(stated.get(part) for part in parts)]
        row += [record.get("stated_total"), record["measured"], record["making"]]
        rows.append(
            [*row, f"{along[0]} {along[-1]}" if along else None, f"{min(files)} {max(files)}" if files else None]
        )
    return header, rows
