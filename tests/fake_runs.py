"""Run folders as `torchdfa train` leaves them, without training."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from torchdfa.train.config import TrainConfig


def write_run(folder: Path, *, top1: float = 90.0, tests: int = 360, done: int | None = None, **settings: Any) -> Path:
    """A run of `settings` whose test accuracy rises to `top1`; unfinished where `done` epochs are given."""
    config = TrainConfig(**({"epochs": 5} | settings))
    folder.mkdir(parents=True)
    lr, data = config.base_lr, Path(config.data).name
    images = hashlib.sha256(repr((data, config.subset, config.validate)).encode()).hexdigest()
    write(folder / "config.json", {
        "format": 1, "config": config.to_dict(), "label": config.label,
        "resolved": {"lr": lr, "device": "cpu", "precision": "fp32", "threads": 1, "world_size": 1},
        "machine": {"cpu": "some cpu", "gpu": None, "torch": "2.10"},
        "data": {"source": {}, "sha256": images, "classes": list("abcdefghij"),
                 "train_images": 1437, "test_images": tests},
    })  # fmt: skip
    epochs = [epoch(k + 1, config.epochs, top1) for k in range(config.epochs if done is None else done)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in epochs))
    if done is None:
        write(folder / "result.json", {
            "format": 1, "label": config.label, "data": data, "top1": top1, "top5": 99.5, "test_loss": 0.3,
            "balanced_accuracy": top1 - 1, "seconds": 12.5, "images_per_second": 1500.0,
            "feedback_bytes": 0 if config.rule in ("bp", "frozen") else 1284,
            "feedback_bytes_actual": 0 if config.rule in ("bp", "frozen") else 42244,
        })  # fmt: skip
    return folder


def epoch(k: int, epochs: int, top1: float) -> dict[str, Any]:
    rise = 1 - 0.5 ** (8 * k / epochs)
    return {
        "epoch": k, "step": 15 * k, "train_loss": 2.3 * (1 - 0.98 * rise), "train_top1": 10 + 89 * rise,
        "test_loss": 2.3 * (1 - 0.9 * rise), "test_top1": 10 + (top1 - 10) * rise if k < epochs else top1,
        "test_top5": 99.5, "seconds": 2.5 * k, "images_per_second": 1500.0, "learning_rate": 0.01,
    }  # fmt: skip


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
