"""Which files of an image folder are photos of which class; nothing is opened here, nothing changed."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from torchdfa.errors import UsageError
from torchdfa.train.photos import HEIC_ADVICE, HEIC_SUFFIXES, SUFFIXES

TRAIN_NAMES = ("train", "training")
TEST_NAMES = ("test", "testing", "val", "valid", "validation")  # the first that is there is tested on
HIDDEN = ("__MACOSX", "@eaDir", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini")


@dataclass
class Scan:
    """The photos of each class, sorted, and a count of what was passed over."""

    train: dict[str, list[Path]]
    test: dict[str, list[Path]] | None = None  # None: no ready-made test folder
    ignored: Counter[str] = field(default_factory=Counter)
    heic: list[Path] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def scan(root: Path) -> Scan:
    """Read ``root/class/**/photo`` or ``root/train/class/**/photo`` with ``test`` (or ``val``) beside it.

    Links to files and to class folders are followed, links to folders inside a class are not, so no loop is entered.
    Raises UsageError for a folder that cannot be read or has fewer than two classes.
    """
    found = Scan({})
    folders = _class_folders(root, found)
    parts = {name.lower(): path for name, path in folders.items()}
    train = next((parts[name] for name in TRAIN_NAMES if name in parts), None)
    tests = [parts[name] for name in TEST_NAMES if name in parts]
    if train is not None and tests:
        _check_ready_made(root, parts)
        found.train = _classes(_class_folders(train, found), found)
        found.test = _classes(_class_folders(tests[0], found), found)
        found.warnings += [f"{unused.name}/ was not used: {tests[0].name}/ is the test set." for unused in tests[1:]]
    else:
        _refuse_parts(root, folders)
        found.train = _classes(folders, found)
    if found.heic:
        first = readable(min(found.heic).relative_to(root))
        raise UsageError(f"{root} has {len(found.heic)} HEIC photo(s), such as {first}: {HEIC_ADVICE}.")
    _check_classes(root, found)
    return found


def readable(path: Path | str) -> str:
    """A name that can be printed and written as UTF-8, whatever bytes the file system holds."""
    text = path if isinstance(path, str) else path.as_posix()
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _class_folders(root: Path, found: Scan) -> dict[str, Path]:
    folders: dict[str, Path] = {}
    loose = 0
    for entry in _listed(root):
        if _hidden(entry.name):
            found.ignored["hidden"] += 1
        elif not entry.is_dir():
            loose += entry.suffix.lower() in SUFFIXES
            found.ignored["not in a class folder"] += 1
        elif entry.is_symlink() and entry.resolve() in (root.resolve(), *root.resolve().parents):
            found.ignored["linked folders"] += 1
        else:
            folders[entry.name] = entry
    if loose:
        where = readable(root.resolve().name)
        found.warnings.append(f"{loose} photo(s) directly in {where}/ have no class folder and were not used.")
    return folders


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise UsageError(f"{folder} cannot be read ({error.strerror}); check its permissions.") from error


def _classes(folders: dict[str, Path], found: Scan) -> dict[str, list[Path]]:
    return {readable(name): photos_in(folder, found) for name, folder in sorted(folders.items())}


def photos_in(folder: Path, found: Scan) -> list[Path]:
    """All photos under ``folder``, sorted; the rest is counted in ``found``."""
    photos: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=_refuse):
        hidden = [name for name in folders if _hidden(name)]
        linked = [name for name in folders if name not in hidden and Path(place, name).is_symlink()]
        found.ignored.update({"hidden": len(hidden), "linked folders": len(linked)})
        folders[:] = [name for name in folders if name not in hidden]  # os.walk follows no links by itself
        for path in (Path(place, name) for name in files):
            suffix = path.suffix.lower()
            if _hidden(path.name):
                found.ignored["hidden"] += 1
            elif suffix in HEIC_SUFFIXES:
                found.heic.append(path)
            elif suffix in SUFFIXES:
                photos.append(path)
            else:
                found.ignored["not photos"] += 1
    return sorted(photos)


def _refuse(error: OSError) -> None:
    raise UsageError(f"{error.filename} cannot be read ({error.strerror}); check its permissions.") from error


def _hidden(name: str) -> bool:
    return name.startswith(".") or name in HIDDEN


def _check_ready_made(root: Path, parts: dict[str, Path]) -> None:
    others = sorted(set(parts) - set(TRAIN_NAMES) - set(TEST_NAMES))
    if others:
        raise UsageError(
            f"{root} has train and test folders and {readable(others[0])}/ beside them, so it is not clear which are "
            f"classes; keep either class folders alone in it, or train/ and test/ alone."
        )


def _refuse_parts(root: Path, folders: dict[str, Path]) -> None:
    """Folders of folders that share names, with no photo of their own, are parts by other names, not classes."""
    inside = [{entry.name for entry in _listed(folder) if not _hidden(entry.name)} for folder in folders.values()]
    shared = set.intersection(*inside) if len(inside) > 1 else set()
    if len(shared) > 1 and all((folder / name).is_dir() for folder in folders.values() for name in shared):
        parts = " and ".join(f"{readable(name)}/" for name in sorted(folders))
        raise UsageError(
            f"{root} holds {parts}, each with folders of the same names, so they look like parts of the data, not "
            "classes; name them train/ and test/, or give a folder that holds the class folders themselves."
        )


def _check_classes(root: Path, found: Scan) -> None:
    names = list(found.train)
    if len(names) < 2:
        only = f"one, {names[0]}" if names else "none"
        raise UsageError(
            f"{root} must hold at least two class folders with photos in them (class/photo.jpg), or train/ and test/ "
            f"that do, but has {only}."
        )
    for part, classes in (("", found.train), ("test part: ", found.test)):
        for name, photos in (classes or {}).items():
            if not photos:
                raise UsageError(f"{root}, {part}class {name} has no photos; add some or remove its folder.")
    if found.test is not None and set(found.test) != set(found.train):
        odd = min(set(found.test) ^ set(found.train))
        raise UsageError(f"{root} needs the same classes in its train and test folders, but {odd} is in one alone.")
