"""Resume files: everything that decides how a run goes on, written whole or not at all, read without running code."""

from __future__ import annotations

import io
import warnings
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from torchdfa.errors import RunError, UsageError
from torchdfa.train import runs

if TYPE_CHECKING:
    from torchdfa.train.loop import Trainer

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


def load(path: Path, keys: Collection[str] = KEYS) -> dict[str, Any]:
    """Read a resume file on the CPU; UsageError where it is missing, damaged, holds code or is of a newer format."""
    if not path.is_file():
        raise UsageError(f"{path} is missing, so there is nothing to resume from")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # a damaged file can fail in any way within torch's reader
        raise UsageError(f"{path} is damaged or holds more than tensors and numbers, and is not loaded") from None
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise UsageError(f"{path} is not a resume file of torchdfa")
    if state["format"] > FORMAT:
        raise UsageError(
            f"{path} has format {state['format']}, and this version of torchdfa reads up to {FORMAT}; "
            "install a newer one"
        )
    missing = sorted(set(keys) - set(state))
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


def capture(trainer: Trainer) -> dict[str, Any]:
    """All that decides how a run goes on; every process must call it.

    Python's and numpy's generators are not in it: nothing in a run draws from them.
    """
    fabric = trainer.fabric
    rng = torch.get_rng_state()
    cuda = torch.cuda.get_rng_state(fabric.device) if fabric.device.type == "cuda" else rng[:0]
    return {
        "config": trainer.config.to_dict(),
        "data": trainer.data_digest,
        "world_size": fabric.world_size,
        "model": trainer.net.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "scaler": fabric.strategy.precision.state_dict(),
        "epoch": trainer.epoch,
        "done": trainer.done,
        "epoch_rng": trainer.epoch_rng,
        "rng": {"cpu": _of_all(trainer, rng), "cuda": _of_all(trainer, cuda)},
        "sums": _of_all(trainer, trainer.sums),
        "seconds": [trainer.clock.seconds, trainer.epoch_began],
    }


def _of_all(trainer: Trainer, vector: Tensor) -> Tensor:
    """(processes, n): the vector of each process."""
    gathered = trainer.fabric.all_gather(vector)
    assert isinstance(gathered, Tensor)
    return gathered.reshape(trainer.fabric.world_size, -1).cpu()


def restore(trainer: Trainer, state: dict[str, Any]) -> None:
    """Put a new trainer of the same settings where `state` was captured; UsageError where it does not fit."""
    try:
        _restore(trainer, state)
    except Exception as error:  # any part may have been changed to anything
        raise UsageError(f"the checkpoint in {trainer.folder} does not fit its run and is not used ({error})") from None


def _restore(trainer: Trainer, state: dict[str, Any]) -> None:
    device, rank = trainer.fabric.device, trainer.fabric.global_rank
    trainer.net.load_state_dict(state["model"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.fabric.strategy.precision.load_state_dict(state["scaler"])
    trainer.epoch, trainer.done, trainer.epoch_rng = state["epoch"], state["done"], state["epoch_rng"]
    trainer.generator.set_state(trainer.epoch_rng)
    trainer.sums.copy_(state["sums"][rank])
    trainer.clock.seconds, trainer.epoch_began = state["seconds"]
    torch.set_rng_state(state["rng"]["cpu"][rank].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["rng"]["cuda"][rank].clone(), device)
