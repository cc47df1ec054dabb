"""Boxes of a tracker over a set: the layouts of got10k, pysot, pytracking and the benchmark's authors.

got10k      <tracker>/<Sequence>.txt, commas; times/<Sequence>_time.txt
pysot       <tracker>/<Sequence>.txt, commas
pytracking  <tracker>/<sequence>.txt, tabs; <sequence>_time.txt beside it; Jogging_1
otb         <tracker>/<Sequence>.json (or, read only, .mat), with fps; PyMDNet's result.json in a folder of that name
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchdfa.errors import UsageError
from torchdfa.track import table
from torchdfa.track.boxes import Boxes, as_boxes
from torchdfa.track.boxfile import read_boxes, read_times, write_boxes, write_times
from torchdfa.train import runs

LAYOUTS = ("got10k", "pysot", "pytracking", "otb")
_READS = {".txt", ".json", ".mat"}
_NO_RESULTS = {"performance", "config", "report", "machine", "cost", "summary"}  # names that reports bear


@dataclass
class Results:
    """Boxes of each sequence, and seconds of each frame (or none)."""

    tracker: str
    boxes: dict[str, Boxes]
    times: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)  # files of no sequence of OTB


def read(folder: str | Path, tracker: str | None = None) -> Results:
    """Results in any of the layouts, which the files themselves tell.

    UsageError where the folder holds none, or two files of one sequence, and where a file is no result.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder} is not a folder of results")
    found = Results(tracker or folder.name, {})
    files: dict[str, Path] = {}
    for path in _files(folder):
        name = table.known(_sequence(path, folder))
        if name is None:
            found.unknown.append(path.name)
            continue
        if name in files:
            raise UsageError(f"{files[name]} and {path} are both results of {name}; keep one")
        files[name] = path
    if not files:
        seen = f"; it holds {', '.join(found.unknown[:3])}" if found.unknown else ""
        raise UsageError(f"{folder} holds no result of an OTB sequence (such as Basketball.txt){seen}")
    for name, path in sorted(files.items()):
        found.boxes[name], times = _read_one(path)
        if times is not None:
            found.times[name] = times
    return found


def _files(folder: Path) -> list[Path]:
    own = [p for p in sorted(folder.iterdir()) if p.suffix in _READS and not p.stem.endswith("_time")]
    own = [p for p in own if p.stem not in _NO_RESULTS]
    return own + sorted(folder.glob("*/result.json"))  # PyMDNet


def _sequence(path: Path, folder: Path) -> str:
    if path.name == "result.json" and path.parent != folder:
        return path.parent.name
    suffix = f"_{folder.name}"  # the authors' .mat files are <sequence>_<tracker>.mat
    return path.stem.removesuffix(suffix) if path.suffix == ".mat" else path.stem


def _read_one(path: Path) -> tuple[Boxes, NDArray[np.float64] | None]:
    if path.suffix == ".txt":
        return read_boxes(path, finite=False), _times(path)
    entry = _mat(path) if path.suffix == ".mat" else _json(path)
    kind = entry.get("resType", entry.get("type", "rect"))
    if kind != "rect":
        raise UsageError(f"{path} holds results of type {kind!r}; only boxes ('rect') can be read")
    try:
        boxes = as_boxes(entry["res"])
    except (KeyError, TypeError, ValueError):
        raise UsageError(f"{path} is damaged: it has no list 'res' of boxes x,y,w,h") from None
    fps = entry.get("fps")
    known = isinstance(fps, (int, float)) and fps > 0
    return boxes, np.full(len(boxes), 1 / fps) if known and fps is not None else None


def _times(path: Path) -> NDArray[np.float64] | None:
    for place in (path.parent / "times" / f"{path.stem}_time.txt", path.with_name(f"{path.stem}_time.txt")):
        if place.is_file():
            return read_times(place)
    return None


def _json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        raise UsageError(f"{path} is damaged: it is not valid JSON") from None
    value = value[0] if isinstance(value, list) and value else value
    if not isinstance(value, dict):
        raise UsageError(f"{path} is damaged: it should hold a result with 'res'")
    return value


def _mat(path: Path) -> dict[str, Any]:
    from scipy.io import loadmat

    try:
        entry = loadmat(path, simplify_cells=True)["results"]
    except Exception:  # a damaged file can fail in any way within scipy's reader
        raise UsageError(f"{path} is no MATLAB file with a variable 'results'") from None
    entry = entry[0] if isinstance(entry, (list, np.ndarray)) else entry
    if not isinstance(entry, dict):
        raise UsageError(f"{path} is damaged: 'results' should hold a struct with 'res'")
    return entry


def write(root: Path, found: Results, layout: str = "got10k") -> Path:
    """Write results in a layout under ``root``; returns the tracker's folder."""
    if layout not in LAYOUTS:
        raise UsageError(f"the layout {layout!r} must be one of {', '.join(LAYOUTS)}")
    folder = root / found.tracker
    runs.make(folder)
    for name, boxes in found.boxes.items():
        write_one(folder, name, boxes, found.times.get(name), layout)
    return folder


def convert(folder: Path, root: Path, layout: str) -> Path:
    """A tracker's results in another layout, with its config.json: reports have the condition of the run from there."""
    if (root / folder.name).resolve() == folder.resolve():
        raise UsageError(f"{root / folder.name} holds the results themselves; take another --out")
    place = write(root, read(folder), layout)
    if (folder / runs.CONFIG).is_file():
        runs.write(place / runs.CONFIG, (folder / runs.CONFIG).read_bytes())
    return place


def write_one(
    folder: Path, name: str, boxes: Boxes, times: NDArray[np.float64] | None = None, layout: str = "got10k"
) -> None:
    """One sequence's result into the tracker's folder; times first, so that the boxes mark it as done."""
    if layout == "otb":
        runs.write(folder / f"{name}.json", _authors(folder.name, name, boxes, times))
        return
    spelled = name.replace("-", "_") if layout == "pytracking" else name
    if times is not None and layout != "pysot":
        place = folder / "times" if layout == "got10k" else folder
        place.mkdir(exist_ok=True)
        write_times(place / f"{spelled}_time.txt", times)
    write_boxes(folder / f"{spelled}.txt", boxes, delimiter="\t" if layout == "pytracking" else ",")


def _authors(tracker: str, name: str, boxes: Boxes, times: NDArray[np.float64] | None) -> bytes:
    fps = None if times is None else round(float(1 / np.mean(times)), 4)
    entry = {
        "tracker": tracker, "seqName": name, "startFrame": 1, "endFrame": len(boxes), "evalType": "OPE",
        "fps": fps, "shiftType": None, "resType": "rect", "len": len(boxes), "res": boxes.tolist(),
    }  # fmt: skip
    return (json.dumps([entry]) + "\n").encode()


def warn_of_unknown(found: Results) -> None:
    """Say which files were left out because their names are no sequence's."""
    if found.unknown:
        warnings.warn(
            f"{found.tracker}: {len(found.unknown)} files are no results of OTB and are left out "
            f"({', '.join(found.unknown[:3])}).",
            stacklevel=3,
        )
