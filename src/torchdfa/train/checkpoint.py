"""Resume files: everything that decides how a run goes on, written whole or not at all, read without running code."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from torchdfa.errors import RunError, UsageError
from torchdfa.train import runs

FORMAT = 1
KEYS = (
    *("format", "config", "data", "world_size"),
    *("model", "optimizer", "scaler"),
    *("epoch", "done", "epoch_rng", "rng", "sums", "seconds"),
)


def save(path: Path, state: dict[str, Any]) -> None:
    """Write `state` (tensors, numbers, strings and containers of them); the last good file stays until this is whole.

    RunError names the path where the disk is full or the folder cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    runs.write(path, buffer.getvalue(), check=_check_archive)


def load(path: Path) -> dict[str, Any]:
    """Read a resume file on the CPU; UsageError where it is missing, damaged, holds code or is of a newer format."""
    if not path.is_file():
        raise UsageError(f"{path} is missing, so there is nothing to resume from")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, KeyError, EOFError, pickle.UnpicklingError, zipfile.BadZipFile):
        raise UsageError(f"{path} is damaged or holds more than tensors and numbers, and is not loaded") from None
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise UsageError(f"{path} is not a resume file of torchdfa")
    if state["format"] > FORMAT:
        raise UsageError(
            f"{path} has format {state['format']}, and this version of torchdfa reads up to {FORMAT}; "
            "install a newer one"
        )
    missing = sorted(set(KEYS) - set(state))
    if missing:
        raise UsageError(f"{path} is damaged: it lacks {missing[0]!r}")
    return state


def _check_archive(path: Path) -> None:
    """Read the new file back and compare its checksums before it takes the place of the old."""
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
    except zipfile.BadZipFile:
        damaged = "its directory"
    if damaged:
        raise RunError(f"{path.parent} does not keep what is written to it ({damaged} read back differently)")
