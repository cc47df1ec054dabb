"""Files of boxes, one line a frame: numbers between commas, semicolons, tabs or spaces."""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np

from torchdfa.errors import UsageError
from torchdfa.track.boxes import Boxes, enclosing
from torchdfa.train import runs

_BETWEEN = re.compile(r"[,;\t ]+")


def read_boxes(path: Path, *, finite: bool = True) -> Boxes:
    """The boxes (n, 4) of a file; lines of 8 numbers, a polygon, become the box around it, which is said once.

    Results may hold NaN or infinity (``finite=False``): what they count for is the protocol's matter.
    UsageError names the file and the line that does not hold 4 or 8 numbers, or where the file holds none.
    """
    columns = {4: "x,y,w,h", 8: "a polygon"}
    rows = read_rows(path, columns, gaps=() if finite else columns)
    if rows.shape[1] == 8:
        warnings.warn(f"{path} holds polygons; the upright boxes around them are used.", stacklevel=2)
        return enclosing(rows)
    return rows


def read_rows(path: Path, columns: Mapping[int, str], *, gaps: Collection[int] = ()) -> Boxes:
    """The numbers (n, k) of a file whose lines all hold k of them, k one of ``columns``, which says what they are.

    Lines of a k in ``gaps`` may hold NaN or infinity. Blank lines are passed over, but count in the errors.
    """
    lines = [(number, line) for number, line in enumerate(_lines(path), 1) if line.strip()]
    if not lines:
        raise UsageError(f"{path} is empty: it should hold a line x,y,w,h for each frame")
    rows = [_numbers(path, number, line, columns) for number, line in lines]
    first = lines[0][0]
    for (number, _), row in zip(lines, rows, strict=True):
        if len(row) != len(rows[0]):
            raise UsageError(f"{path}, line {number}: {len(row)} numbers, but line {first} has {len(rows[0])}")
        if len(row) not in gaps and not np.isfinite(row).all():
            raise UsageError(f"{path}, line {number}: NaN or infinity where a number of pixels should stand")
    return np.array(rows, dtype=np.float64)


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UsageError(f"{path} is no text file; it should hold a line x,y,w,h for each frame") from None


def _numbers(path: Path, number: int, line: str, columns: Mapping[int, str]) -> list[float]:
    parts = [part for part in _BETWEEN.split(line.strip()) if part]
    try:
        values = [float(part) for part in parts]
    except ValueError:
        raise UsageError(f"{path}, line {number}: {line.strip()[:60]!r} is not a line of numbers x,y,w,h") from None
    if len(values) not in columns:
        allowed = " or ".join(f"{count} ({what})" for count, what in columns.items())
        raise UsageError(
            f"{path}, line {number}: {len(values)} numbers, should be {allowed}; found {line.strip()[:60]!r}"
        )
    return values


def read_times(path: Path) -> np.ndarray:
    """Seconds of each frame, from a file with one number a line (or several: the first counts)."""
    try:
        return np.array([float(_BETWEEN.split(line.strip())[0]) for line in _lines(path) if line.strip()])
    except ValueError:
        raise UsageError(f"{path} holds a line that is not a number of seconds") from None


def write_boxes(path: Path, boxes: Boxes, *, delimiter: str = ",", digits: int = 3) -> None:
    """Write boxes (n, 4) with so many digits after the point; whole or not at all."""
    lines = (delimiter.join(f"{value:.{digits}f}" for value in row) for row in boxes)
    runs.write(path, "".join(f"{line}\n" for line in lines).encode())


def write_times(path: Path, seconds: np.ndarray) -> None:
    runs.write(path, "".join(f"{value:.6f}\n" for value in seconds).encode())
