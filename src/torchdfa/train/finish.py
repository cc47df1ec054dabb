"""What a run leaves, model, result, pictures and checksums, and what is shown of several at the end."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

import torchdfa
from torchdfa.train import runs
from torchdfa.train.config import TrainConfig
from torchdfa.train.datasets import Data
from torchdfa.train.loop import Trainer, model_args
from torchdfa.train.metrics import metrics, ranked
from torchdfa.train.stop import StopSignals


def finish(trainer: Trainer, folder: Path, signals: StopSignals, *, pictures: bool) -> None:
    """Complete the folder of a trained run; the manifest, by which a run counts as finished, comes last."""
    from torchdfa.train import export

    config, data = trainer.config, trainer.data
    export.save(
        folder, trainer.net, model_name=config.model, model_args=model_args(config, data), classes=data.classes,
        mean=data.mean, std=data.std, image_size=data.train_x.shape[-1], record={"rule": config.label},
    )  # fmt: skip
    if trainer.outputs is None:  # resumed after the last epoch
        trainer.evaluate(signals)
    assert trainer.outputs is not None
    runs.write_json(folder / runs.RESULT, result(trainer, trainer.outputs))
    if pictures:
        _draw(folder, data, trainer.outputs)
    runs.write_manifest(folder)


def _draw(folder: Path, data: Data, outputs: Tensor) -> None:
    from torchdfa.train import plots

    plots.curves([runs.read(folder)], folder / "curves.png")
    plots.of_test_set(folder, data.test_x, data.test_y, outputs, data.classes, data.source.get("test_files"))


def conclude(folders: Sequence[Path], out: str | Path | None) -> None:
    """Print the table of the finished runs, what it means and where the files lie; draw several together."""
    if int(os.environ.get("RANK", "0")) != 0:
        return  # the first process alone prints
    from torchdfa.train.compare import compare

    if len(folders) == 1:
        compare(folders)
        print(f"run folder: {folders[0]}")
        return
    config = TrainConfig.from_dict(runs.read(folders[0]).config["config"])
    name = "compare" if out is not None else config.run_name.replace(f"-{config.label.replace(' ', '-')}-", "-")
    compare(folders, folders[0].parent / f"{name}.png")
    print(f"run folders: {', '.join(map(str, folders))}")


def result(trainer: Trainer, outputs: Tensor) -> dict[str, Any]:
    """The figures of the last epoch and what the run cost; top1, top5, balanced accuracy in percent."""
    config, report = trainer.config, torchdfa.report(trainer.net)
    tested = metrics(outputs, trainer.data.test_y, trainer.data.classes)
    last = runs.read(trainer.folder).epochs[-1]
    return {
        "format": runs.FORMAT,
        "label": config.label,
        "rule": config.rule,
        "data": trainer.data.name,
        "model": config.model,
        "seed": config.seed,
        "epochs": last["epoch"],
        "steps": last["step"],
        "top1": last["test_top1"],
        "top5": last["test_top5"],
        "test_loss": last["test_loss"],
        "train_top1": last["train_top1"],
        "train_loss": last["train_loss"],
        "seconds": last["seconds"],
        "images_per_second": round(last["epoch"] * len(trainer.data.train_y) / last["seconds"], 2),
        "parameters": sum(p.numel() for p in trainer.net.parameters()),
        "feedback_bytes": report.feedback_bytes,
        "feedback_bytes_actual": report.actual_bytes,
        "confusion": tested["confusion"],
        "balanced_accuracy": tested["balanced_accuracy"],
        "right": bits_hex(ranked(outputs)[:, 0] == trainer.data.test_y),
    }


def bits_hex(flags: Tensor) -> str:
    """A bool tensor (N,) as hexadecimal text: flag i is bit i, the lowest of a byte first."""
    return np.packbits(flags.numpy(), bitorder="little").tobytes().hex()
