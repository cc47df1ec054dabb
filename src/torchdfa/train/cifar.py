"""CIFAR-10 and CIFAR-100 (fine labels) from a local folder, the archive, or the data set's official address."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchdfa.errors import UsageError
from torchdfa.train import unpickle
from torchdfa.train.download import cache_folder, fetch, sha256

ADDRESS = "https://www.cs.toronto.edu/~kriz/"
PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """One data set as published: its files with their md5 (as its authors' archive has them), and their content."""

    name: str
    folder: str
    archive: str
    archive_sha256: str
    archive_bytes: int
    train: dict[str, str]
    test: dict[str, str]
    meta: dict[str, str]
    rows: dict[str, int]  # images of a file
    classes: int
    label_key: str
    names_key: str

    @property
    def files(self) -> dict[str, str]:
        return self.train | self.test | self.meta

    def most_bytes(self, file: str) -> int:
        """A file larger than this is not read: pixels, labels and file names take less."""
        return self.rows.get(file, 0) * (PIXELS + 200) + 2**20


_CIFAR10_BATCHES = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
}
LAYOUTS = {
    "cifar10": Layout(
        name="cifar10",
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        archive_sha256="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
        archive_bytes=170_498_071,
        train=_CIFAR10_BATCHES,
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        meta={"batches.meta": "5ff9c542aee3614f3951f8cda6e48888"},
        rows=dict.fromkeys((*_CIFAR10_BATCHES, "test_batch"), 10_000),
        classes=10,
        label_key="labels",
        names_key="label_names",
    ),
    "cifar100": Layout(
        name="cifar100",
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        archive_sha256="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
        archive_bytes=169_001_437,
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        meta={"meta": "7973b15100ade9c7d40fb424638fde48"},
        rows={"train": 50_000, "test": 10_000},
        classes=100,
        label_key="fine_labels",
        names_key="fine_label_names",
    ),
}


@dataclass(frozen=True)
class Cifar:
    """uint8 images (N, 3, 32, 32), int64 labels (N,), class names, and where they came from (JSON-able)."""

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    source: dict[str, Any]


def load(name: str, *, data_dir: Path | None, download: bool) -> Cifar:
    """Read ``name`` ("cifar10" or "cifar100"); without ``data_dir`` from ./data or the user's cache folder.

    Raises UsageError for missing, damaged or tampered files, RunError where the download fails.
    """
    layout = LAYOUTS[name]
    roots = [data_dir] if data_dir is not None else [Path("data"), cache_folder()]
    place = _find(layout, roots)
    if place is None and download:
        folder = data_dir if data_dir is not None else cache_folder()
        place = fetch(ADDRESS + layout.archive, layout.archive_sha256, layout.archive_bytes, folder)
    if place is None:
        raise UsageError(
            f"{name} was not found in {' or '.join(str(root.absolute()) for root in roots)}, which should hold "
            f"{layout.folder}/ or {layout.archive}; fetch it from {ADDRESS} "
            f"({layout.archive_bytes / 1e6:.0f} MB; torchdfa train and paper run do so with --download), or name its "
            "folder with --data-dir."
        )
    return _read(layout, place)


def _find(layout: Layout, roots: list[Path]) -> Path | None:
    """A complete folder comes before an archive, an archive before an incomplete folder."""
    bases = [base for root in roots for base in (root, root / layout.name)]
    folders = [place for base in bases for place in (base, base / layout.folder)]
    archives = [place for base in bases for place in (base, base / layout.archive)]
    complete = [f for f in folders if all((f / name).is_file() for name in layout.files)]
    archive = [a for a in archives if a.name == layout.archive and a.is_file()]
    partial = [f for f in folders if f.name == layout.folder and f.is_dir()]
    return next(iter(complete + archive + partial), None)


def _read(layout: Layout, place: Path) -> Cifar:
    images: dict[str, Tensor] = {}
    labels: dict[str, Tensor] = {}
    digests: dict[str, str] = {}
    official = True
    names: tuple[str, ...] = ()
    for file, content in _contents(layout, place):
        entry = _entry(unpickle.loads(content, f"{place} ({file})" if place.is_file() else str(place / file)), file)
        digests[file] = hashlib.sha256(content).hexdigest()
        official &= hashlib.md5(content, usedforsecurity=False).hexdigest() == layout.files[file]
        if file in layout.meta:
            names = _class_names(layout, entry)
        else:
            images[file], labels[file] = _images(layout, entry, file), _labels(layout, entry, file)
    missing = sorted(set(layout.files) - set(digests))
    if missing:
        raise UsageError(f"{place} lacks {', '.join(missing)}; unpack {layout.archive} there again.")
    return Cifar(
        train_x=torch.cat([images[file] for file in layout.train]),
        train_y=torch.cat([labels[file] for file in layout.train]),
        test_x=torch.cat([images[file] for file in layout.test]),
        test_y=torch.cat([labels[file] for file in layout.test]),
        classes=names,
        source={"path": str(place), "sha256": digests, "equals_published_files": official},
    )


def _contents(layout: Layout, place: Path) -> Iterator[tuple[str, bytes]]:
    """(name, bytes) of the expected files, no other one is opened; nothing is unpacked onto the disk."""
    try:
        yield from _archived(layout, place) if place.is_file() else _unpacked(layout, place)
    except (OSError, EOFError, zlib.error, tarfile.TarError) as error:
        raise UsageError(f"{place} cannot be read ({error}); check the path, or get the file again.") from error


def _unpacked(layout: Layout, place: Path) -> Iterator[tuple[str, bytes]]:
    for file in layout.files:
        path = place / file
        if path.is_file():
            _check_size(layout, file, path.stat().st_size)
            yield file, path.read_bytes()


def _archived(layout: Layout, place: Path) -> Iterator[tuple[str, bytes]]:
    if sha256(place) != layout.archive_sha256:
        raise UsageError(
            f"{place} is not the published archive (its sha256 differs), so it was not opened; "
            f"delete it and fetch it again with --download."
        )
    with tarfile.open(place, "r:gz") as archive:
        for member in archive:
            folder, _, file = member.name.partition("/")
            if folder == layout.folder and file in layout.files and member.isreg():
                _check_size(layout, file, member.size)
                stream = archive.extractfile(member)
                yield file, stream.read() if stream is not None else b""


def _check_size(layout: Layout, file: str, size: int) -> None:
    if size > layout.most_bytes(file):
        raise UsageError(f"{file} of {layout.name} has {size:,} bytes, more than it can need; get it again.")


def _entry(content: Any, file: str) -> dict[str, Any]:
    if type(content) is not dict:
        raise UsageError(f"{file} holds a {type(content).__name__} instead of CIFAR's dictionary; get it again.")
    return content


def _class_names(layout: Layout, entry: dict[str, Any]) -> tuple[str, ...]:
    names = entry.get(layout.names_key)
    # Names are printed: a control sequence in one would reach the terminal.
    good = isinstance(names, list) and all(isinstance(name, str) and name.isprintable() for name in names)
    if not isinstance(names, list) or not good or not len(set(names)) == len(names) == layout.classes:
        raise UsageError(f"The class list of {layout.name} has no {layout.classes} names under {layout.names_key}.")
    return tuple(names)


def _images(layout: Layout, entry: dict[str, Any], file: str) -> Tensor:
    data, rows = entry.get("data"), layout.rows[file]
    if not isinstance(data, np.ndarray) or data.shape != (rows, PIXELS):
        found = f"shape {data.shape}" if isinstance(data, np.ndarray) else f"a {type(data).__name__}"
        raise UsageError(f"{file} of {layout.name} should hold uint8 images ({rows}, {PIXELS}), but has {found}.")
    images: NDArray[np.uint8] = data.reshape(rows, 3, 32, 32)
    return torch.from_numpy(images.copy())


def _labels(layout: Layout, entry: dict[str, Any], file: str) -> Tensor:
    labels, rows = entry.get(layout.label_key), layout.rows[file]
    if type(labels) is not list or len(labels) != rows:
        raise UsageError(f"{file} of {layout.name} should hold a list of {rows} {layout.label_key}.")
    if not all(type(label) is int and 0 <= label < layout.classes for label in labels):
        raise UsageError(f"{file} of {layout.name} has labels outside 0 .. {layout.classes - 1}.")
    return torch.tensor(labels, dtype=torch.int64)
