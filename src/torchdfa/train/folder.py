"""Image folders as data sets: decode each photo once, keep copies on one side of the split, say what was left out."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track
from torch import Tensor

from torchdfa.errors import UsageError
from torchdfa.train import duplicates, photos, splits
from torchdfa.train.photos import decode
from torchdfa.train.scan import Scan, readable, scan

__all__ = ["DEFAULT_SIZE", "MAX_SIZE", "Folder", "decode", "load"]

DEFAULT_SIZE = 64  # VGG-16 halves it five times to 2; a photo shows little at CIFAR's 32
MAX_SIZE = 1024
TEST_FRACTION = 0.2
EXAMPLES = 5  # names in a warning; the record has them all


@dataclass(frozen=True)
class Folder:
    """uint8 images (N, 3, S, S), int64 labels (N,), class names, and where they came from (JSON-able)."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    source: dict[str, Any]
    train_groups: NDArray[
        np.int64
    ]  # (N,) equal numbers are copies or near-copies, which a further split keeps together


@dataclass(frozen=True)
class _Photos:
    """What could be read, in the order of the scan."""

    x: Tensor  # uint8 (N, 3, S, S)
    y: NDArray[np.int64]
    held_out: NDArray[np.bool_]  # from a ready-made test folder
    names: list[str]  # relative to the folder
    digests: list[str]
    skipped: list[dict[str, str]]


def load(path: Path, *, image_size: int, seed: int) -> Folder:
    """Read ``path/class/photo.jpg``, or ``path/train/class/...`` with ``test`` (or ``val``) beside it.

    Without a ready-made test folder a fifth of each class is held out, by ``seed``; copies and near-copies of a photo
    stay on one side. ``source`` lists both parts, the photos that were left out, and warnings to show. Files are only
    read. Raises UsageError where the folder cannot serve.
    """
    found = scan(path)
    classes = tuple(found.train)
    read = _read(path, found, image_size)
    _check_counts(path, read, classes, ready_made=found.test is not None)
    alike = duplicates.find(read.x, read.digests)
    held_out, notes = (read.held_out, []) if found.test is not None else _split(path, read, alike, seed, classes)
    across = _named_pairs(read, alike.pairs, held_out)
    record = _record(path, found, read, held_out, seed) | {
        "duplicates": {"pairs": len(alike.pairs), "across": across, "near_copies_looked_for": alike.complete},
        "warnings": [*found.warnings, *notes, *_warnings(read, alike, across)],
    }
    train, test = (torch.from_numpy(np.flatnonzero(mask)) for mask in (~held_out, held_out))
    y = torch.from_numpy(read.y)
    return Folder(read.x[train], y[train], read.x[test], y[test], classes, record, alike.near[~held_out])


def _read(path: Path, found: Scan, size: int) -> _Photos:
    listed = [
        (file, label, held_out)
        for held_out, part in ((False, found.train), (True, found.test or {}))
        for label, name in enumerate(found.train)
        for file in part.get(name, [])
    ]
    _check_memory(len(listed), size)
    x = torch.empty(len(listed), 3, size, size, dtype=torch.uint8)
    kept: list[int] = []
    digests: list[str] = []
    skipped: list[dict[str, str]] = []
    for k, result in enumerate(_decoded([file for file, _, _ in listed], size)):
        if isinstance(result, str):
            skipped.append({"file": _name(listed[k][0], path), "reason": result})
        else:
            x[len(kept)] = result[0]
            digests.append(result[1])
            kept.append(k)
    return _Photos(
        x[: len(kept)],
        np.array([listed[k][1] for k in kept], dtype=np.int64),
        np.array([listed[k][2] for k in kept], dtype=np.bool_),
        [_name(listed[k][0], path) for k in kept],
        digests,
        skipped,
    )


def _name(file: Path, root: Path) -> str:
    return readable(file.relative_to(root))


def _decoded(files: list[Path], size: int) -> Iterator[tuple[Tensor, str] | str]:
    """(pixels, sha256 of the file) or the reason why not, in order; Pillow decodes outside Python's lock."""

    def one(file: Path) -> tuple[Tensor, str] | str:
        try:
            content = photos.read(file)
            pixels = photos.decode_bytes(content, size, name=str(file))
        except photos.PhotoError as error:
            return error.reason
        return pixels, hashlib.sha256(content).hexdigest()

    pool = ThreadPoolExecutor(min(4, os.cpu_count() or 1))
    try:
        with photos.pillow_warnings():
            console = Console(stderr=True)
            yield from track(pool.map(one, files), "Reading photos", len(files), console=console, transient=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _check_memory(images: int, size: int) -> None:
    if not hasattr(os, "sysconf"):
        return
    needed, there = images * 3 * size * size, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > there / 2:
        raise UsageError(
            f"{images} photos of {size} x {size} pixels take {needed / 2**30:.1f} GiB and the machine has "
            f"{there / 2**30:.1f}; choose a smaller image_size."
        )


def _check_counts(path: Path, read: _Photos, classes: tuple[str, ...], *, ready_made: bool) -> None:
    left_out = f" ({len(read.skipped)} could not be read)" if read.skipped else ""
    for part in (False, True) if ready_made else (False,):
        counts = np.bincount(read.y[read.held_out == part], minlength=len(classes))
        need = 1 if ready_made else 2
        if counts.min() < need:
            where = (" in the test folder" if part else " in the train folder") if ready_made else ""
            raise UsageError(
                f"{path}, class {classes[int(counts.argmin())]} has {counts.min()} usable photo(s){where}{left_out}; "
                f"it needs at least {need}{'' if ready_made else ', one to train on and one to test on'}."
            )


def _split(
    path: Path, read: _Photos, alike: duplicates.Duplicates, seed: int, classes: tuple[str, ...]
) -> tuple[NDArray[np.bool_], list[str]]:
    """Hold out a fifth with groups of near-copies together, or, where they make up a class, groups of copies."""
    try:
        return splits.stratified(read.y, TEST_FRACTION, seed, classes, groups=alike.near), []
    except UsageError:
        note = "A class consists of near-copies of one photo, so near-copies were not kept together."
    try:
        return splits.stratified(read.y, TEST_FRACTION, seed, classes, groups=alike.exact), [note]
    except UsageError as error:
        raise UsageError(f"{path} cannot be split: {error} Copies of one photo count once.") from None


def _named_pairs(read: _Photos, pairs: NDArray[np.int64], part: NDArray[Any]) -> list[list[str]]:
    """The names of the pairs whose two photos are in different parts."""
    return [[read.names[i], read.names[j]] for i, j in pairs[part[pairs[:, 0]] != part[pairs[:, 1]]].tolist()]


def _warnings(read: _Photos, alike: duplicates.Duplicates, across: list[list[str]]) -> list[str]:
    left_out = [f"{item['file']} ({item['reason']})" for item in read.skipped]
    torn = [" ~ ".join(pair) for pair in _named_pairs(read, alike.pairs, read.y)]
    crossing = [" ~ ".join(pair) for pair in across]
    told = [
        (left_out, "photo(s) were left out"),
        (crossing, "pair(s) of copies or near-copies lie across training and test, which flatters the test figures"),
        (torn, "pair(s) of copies or near-copies are of two classes"),
    ]
    sentences = [f"{len(items)} {what}: {_some(items)}." for items, what in told if items]
    if not alike.complete:
        sentences.append(
            f"Near-copies were not looked for: more than {duplicates.MAX_PHOTOS:,} photos or "
            f"{duplicates.MAX_PAIRS:,} pairs, as frames of a video have; split such photos yourself, by scene."
        )
    return sentences


def _some(items: list[str]) -> str:
    more = [f"and {len(items) - EXAMPLES} more"] if len(items) > EXAMPLES else []
    return "; ".join(items[:EXAMPLES] + more)


def _record(path: Path, found: Scan, read: _Photos, held_out: NDArray[np.bool_], seed: int) -> dict[str, Any]:
    lines = "".join(f"{digest}  {name}\n" for digest, name in zip(read.digests, read.names, strict=True))
    made = {"by": "class, copies together", "test_fraction": TEST_FRACTION, "seed": seed}
    return {
        "path": readable(path.absolute()),
        "sha256": hashlib.sha256(lines.encode()).hexdigest(),  # of the lines that sha256sum would print
        "split": made if found.test is None else {"by": "ready-made folders"},
        "preparation": photos.PREPARATION,
        "train_files": [name for name, out in zip(read.names, held_out, strict=True) if not out],
        "test_files": [name for name, out in zip(read.names, held_out, strict=True) if out],
        "skipped": read.skipped,
        "ignored": dict(found.ignored),
    }
