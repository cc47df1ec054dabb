"""The run folder: settings, one JSON line of figures an epoch, result, checksums; written so that a crash loses none.

config.json     format, settings, what they were resolved to, machine and versions
metrics.jsonl   one line an epoch; lines with "kind": "alignment" in between where they were asked for
checkpoint.pt   what `--resume` continues from
result.json     figures of the last epoch; there once the run has finished
manifest.json   sha256 of every other file of the finished run
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchdfa.errors import RunError, UsageError

FORMAT = 1
CONFIG, METRICS, CHECKPOINT, RESULT, MANIFEST = (
    "config.json",
    "metrics.jsonl",
    "checkpoint.pt",
    "result.json",
    "manifest.json",
)
_LOCK = ".lock"
_TEMPORARY = ".torchdfa-tmp"


@dataclass(frozen=True)
class Run:
    """A run as read from its folder; `result` is None until it has finished."""

    folder: Path
    config: dict[str, Any]
    epochs: list[dict[str, Any]]
    result: dict[str, Any] | None
    alignment: list[dict[str, Any]] = field(default_factory=list)


def read(folder: str | Path) -> Run:
    """Read a run folder; UsageError where it is none, is damaged, or was written in a newer format."""
    folder = Path(folder)
    if not (folder / CONFIG).is_file():
        raise UsageError(f"{folder} is not a run folder: it holds no {CONFIG}")
    config = read_json(folder / CONFIG)
    _check_format(config, folder / CONFIG)
    lines = read_lines(folder / METRICS)
    result = read_json(folder / RESULT) if (folder / RESULT).exists() else None
    return Run(
        folder,
        config,
        [line for line in lines if "kind" not in line],
        result,
        [line for line in lines if line.get("kind") == "alignment"],
    )


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; UsageError naming the file where there is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is damaged: it is not valid JSON") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path} is damaged: it should hold a JSON object, not a {type(value).__name__}")
    return value


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The JSON objects of a file of lines ([] without the file). A last line cut short by a crash is left out."""
    if not path.exists():
        return []
    try:
        *whole, _cut = path.read_text(encoding="utf-8").split("\n")
        values = [json.loads(line) for line in whole]
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        raise UsageError(f"{path} is damaged: it holds a line that is not valid JSON") from None
    if not all(isinstance(value, dict) for value in values):
        raise UsageError(f"{path} is damaged: it holds a line that is not a JSON object")
    return values


def write_json(path: Path, value: dict[str, Any]) -> None:
    write(path, (json.dumps(value, indent=2) + "\n").encode())


def write_lines(path: Path, values: list[dict[str, Any]]) -> None:
    write(path, "".join(json.dumps(value) + "\n" for value in values).encode())


def append(path: Path, value: dict[str, Any]) -> None:
    """Add a line and have it on the disk when this returns; RunError naming the path where it cannot be."""
    with writing(path), path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(value) + "\n")
        file.flush()
        os.fsync(file.fileno())


def forget_after(folder: Path, step: int, epoch: int) -> None:
    """Drop the lines of metrics.jsonl that a run wrote after its checkpoint at this step, `epoch` epochs finished."""
    path = folder / METRICS
    lines = read_lines(path)
    if any(not isinstance(line.get(key, 0), int) for line in lines for key in ("step", "epoch")):
        raise UsageError(f"{path} is damaged: it holds a line whose step or epoch is not a number")
    write_lines(path, [line for line in lines if line.get("step", 0) <= step and line.get("epoch", 0) <= epoch])


def write(path: Path, data: bytes, check: Callable[[Path], None] = lambda _: None) -> None:
    """Replace a file whole or not at all: temporary file beside it, fsync, `check`, rename, fsync of the folder.

    A reader sees the old content or the new one at any moment, and the old one stays until `check` has passed the
    new. RunError naming the path where it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    with writing(path):
        try:
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            check(temporary)
            temporary.replace(path)
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """RunError naming the path where what is done meanwhile fails in the file system."""
    try:
        yield
    except OSError as error:
        raise RunError(
            f"{path} cannot be written: {error.strerror or error}; free space or give access, or take another --out "
            "(what was written before is kept)"
        ) from error


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return  # only POSIX systems can fsync a folder
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def hold(folder: Path, *, wanted: bool = True) -> Iterator[None]:
    """Keep other processes from training in the same folder; freed by the system even after kill -9.

    Clears what dead processes left there. UsageError where another process holds the folder.
    """
    if not wanted:
        yield
        return
    try:
        import fcntl
    except ImportError:  # not POSIX: no such lock, so one must not start two runs in one folder
        yield
        return
    with writing(folder), (folder / _LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"{folder} is in use by another process that trains there; wait, or stop it") from None
        for leftover in folder.glob(f".*{_TEMPORARY}"):
            leftover.unlink(missing_ok=True)
        yield


def make(folder: Path) -> list[str]:
    """Make a folder where it was missing and see that files can be written there; names of what it holds.

    UsageError where that cannot be.
    """
    probe = folder / f".probe.{os.getpid()}{_TEMPORARY}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found = [path.name for path in folder.iterdir() if not path.name.endswith(_TEMPORARY)]
        probe.write_bytes(b"probe")
        probe.unlink()
    except OSError as error:
        raise UsageError(f"{folder} cannot be written: {error.strerror}; take another --out") from None
    return found


def create(folder: Path) -> None:
    """Make the folder of a new run; UsageError where it holds something already or cannot be written."""
    found = set(make(folder)) - {_LOCK}
    if RESULT in found:
        seen = f", or see it with 'torchdfa compare {folder}'" if CONFIG in found else ""
        raise UsageError(f"{folder} holds a finished run, which is never overwritten; take another --out{seen}")
    if CHECKPOINT in found:
        raise UsageError(
            f"{folder} holds a run that has begun; continue it with 'torchdfa train --resume {folder}', "
            "or take another --out"
        )
    foreign = found - {CONFIG, METRICS}  # these two alone: a run that died before its first checkpoint
    if foreign:
        raise UsageError(f"{folder} holds files that are not a run's ({min(foreign)}); take an empty or new --out")


def absent(folder: Path) -> list[Path]:
    """Of a folder and those that it lies in, what is not there."""
    return [path for path in (folder, *folder.parents) if not os.path.exists(path)]  # noqa: PTH110 - raises nothing


def discard(folders: Iterable[Path]) -> None:
    """Take away the folders that were made for a run that could not begin; one that holds anything stays."""
    for folder in sorted(set(folders), key=lambda path: -len(path.parts)):
        with contextlib.suppress(OSError):
            folder.rmdir()


def write_manifest(folder: Path) -> None:
    """sha256 of every file of a finished run."""
    write_json(folder / MANIFEST, {"format": FORMAT, "sha256": _hashes(folder)})


def verify(folder: str | Path) -> int:
    """Compare every file of a finished run with its manifest and return their number.

    RunError names the files that were changed, are missing or were added.
    """
    folder = Path(folder)
    if not (folder / MANIFEST).is_file():
        raise UsageError(f"{folder} holds no {MANIFEST}: it is not the folder of a finished run")
    manifest = read_json(folder / MANIFEST)
    _check_format(manifest, folder / MANIFEST)
    recorded, found = manifest.get("sha256"), _hashes(folder)
    if not isinstance(recorded, dict):
        raise UsageError(f"{folder / MANIFEST} is damaged: it holds no checksums")
    changed = [name for name in recorded if found.get(name) not in (None, recorded[name])]
    missing, added = sorted(set(recorded) - set(found)), sorted(set(found) - set(recorded))
    faults = [f"{what}: {', '.join(names)}" for what, names in
              (("changed", changed), ("missing", missing), ("added", added)) if names]  # fmt: skip
    if faults:
        raise RunError(f"{folder} is not as its run left it ({'; '.join(faults)})")
    return len(recorded)


def _hashes(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {
        name: hashlib.sha256(path.read_bytes()).hexdigest()
        for name, path in names.items()
        if name not in (MANIFEST, _LOCK) and not name.endswith(_TEMPORARY)
    }


def _check_format(value: dict[str, Any], path: Path) -> None:
    if not isinstance(value.get("format"), int):
        raise UsageError(f"{path} is damaged: it names no format")
    if value["format"] > FORMAT:
        raise UsageError(
            f"{path} has format {value['format']}, and this version of torchdfa reads up to {FORMAT}; "
            "install a newer one"
        )
