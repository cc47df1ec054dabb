"""The orders in which samples come, and samples read from files."""

from __future__ import annotations

import csv
import math
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchdfa.errors import UsageError

ORDERS = ("random", "class", "bursts", "given")
# Of "bursts": a class comes around a moment of its own, so long before and after (a part of the stream, one sigma).
SPREAD = 0.25
BURST = 10  # samples of one class in a row, about

Sample = tuple[NDArray[np.floating[Any]] | None, Any]


def order(labels: NDArray[Any], kind: str, seed: int) -> NDArray[np.int64]:
    """The samples' indices in the order they come, (samples,).

    "random" mixes all; "class" brings one class after the other; "bursts" brings about ten of a class in a row from a
    set of classes that drifts: some come early in the stream and no more, some late. "given" leaves them as they are.
    UsageError for another kind.
    """
    random, codes = np.random.default_rng(seed), np.unique(labels, return_inverse=True)[1]
    mixed = random.permutation(len(labels))
    if kind == "given":
        return np.arange(len(labels))
    if kind == "random":
        return mixed
    moments = random.permutation(codes.max() + 1)[codes[mixed]] / (codes.max() + 1)
    if kind == "class":
        return mixed[np.argsort(moments, kind="stable")]
    if kind == "bursts":
        drifting = mixed[np.argsort(moments + SPREAD * random.standard_normal(len(mixed)), kind="stable")]
        pieces = [drifting[i : i + BURST * (codes.max() + 1)] for i in range(0, len(mixed), BURST * (codes.max() + 1))]
        turns = [random.permutation(codes.max() + 1)[codes[piece]] for piece in pieces]
        return np.concatenate([p[np.argsort(t, kind="stable")] for p, t in zip(pieces, turns, strict=True)])
    raise UsageError(f"order must be one of {', '.join(ORDERS)}; got {kind!r}")


def samples(x: NDArray[Any], y: NDArray[Any], indices: Iterable[int]) -> Iterator[Sample]:
    """((1, features), label) of each index."""
    for i in indices:
        yield x[i : i + 1], y[i].item()


def read_npz(path: Path) -> dict[str, NDArray[Any]]:
    """X (rows, features) float32 and y (rows,), with X_test and y_test where they are there.

    UsageError where the file is missing, damaged, holds code or lacks an array.
    """
    try:
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            found = {name: file[name] for name in ("X", "y", "X_test", "y_test") if name in file}
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except (ValueError, TypeError, EOFError, MemoryError, OverflowError, zipfile.BadZipFile, SyntaxError):
        raise UsageError(f"{path} is damaged or no NPZ of plain arrays, as numpy.savez writes them") from None
    for x, y in (("X", "y"), ("X_test", "y_test")):
        if x in found or y in found or x == "X":
            _check_pair(path, found.get(x), found.get(y), x, y)
    if "X_test" in found and found["X_test"].shape[1] != found["X"].shape[1]:
        widths = f"{found['X_test'].shape[1]} and {found['X'].shape[1]}"
        raise UsageError(f"{path}: X_test must have as many features as X; found {widths}")
    with np.errstate(over="ignore"):  # what is too large for float32 becomes infinity, and is refused as a sample
        return found | {name: found[name].astype(np.float32) for name in ("X", "X_test") if name in found}


def _check_pair(path: Path, x: NDArray[Any] | None, y: NDArray[Any] | None, x_name: str, y_name: str) -> None:
    if x is None or y is None:
        raise UsageError(f"{path} must hold the arrays {x_name} (rows, features) and {y_name} (rows,); it lacks one")
    if x.ndim != 2 or x.dtype.kind not in "biuf" or y.shape != x.shape[:1] or not x.size:
        raise UsageError(
            f"{path}: {x_name} must be numbers (rows, features) and {y_name} a label for each row; found {x_name} "
            f"{x.dtype} {x.shape} and {y_name} {y.shape}"
        )
    if y.dtype.kind not in "biuU":
        raise UsageError(f"{path}: {y_name} must hold labels (whole numbers or text); found {y.dtype}")


def read_lines(lines: Iterable[str]) -> Iterator[Sample]:
    """Samples of a CSV stream, `label,number,number,...` a line, as they come; (None, reason) for a line that is none.

    A first line without numbers is a header. Nothing is kept, so a stream may go on for ever.
    """
    rows = csv.reader(lines)
    for number in range(2**62):
        try:
            label, *values = next(rows)
            with np.errstate(over="ignore"):
                x = np.array([[float(value) for value in values]]).astype(np.float32)
        except StopIteration:
            return
        except (ValueError, csv.Error, OverflowError):
            if number:
                yield None, f"line {number + 1} is not a label and numbers"
            continue
        yield (
            (x, label) if values and math.isfinite(np.vdot(x, x)) else (None, f"line {number + 1} lacks finite numbers")
        )
