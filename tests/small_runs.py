"""Small trainings on the embedded digits, for tests of the training program."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from torchdfa.train.config import TrainConfig

SMALL: dict[str, Any] = {
    "data": "digits",
    "subset": 200,
    "model": "cnn",
    "fc_width": 16,
    "rule": "bdfa",
    "batch_size": 32,
    "augment": True,
    "epochs": 4,
    "precision": "fp32",
    "device": "cpu",
    "threads": 1,
}
STEPS_AN_EPOCH = 7  # the last with 8 images


def small(**changes: Any) -> TrainConfig:
    return TrainConfig(**SMALL | changes)


def flags(**changes: Any) -> list[str]:
    """The same settings as arguments of `torchdfa train`."""
    values = SMALL | changes
    named = {name.replace("_", "-"): value for name, value in values.items()}
    return [
        part
        for name, value in named.items()
        for part in ([f"--{name}"] if value is True else [] if value is False else [f"--{name}", str(value)])
    ]


def weights(folder: Path) -> bytes:
    """The exported weights; two runs that trained alike have the same bytes."""
    return (folder / "model.safetensors").read_bytes()


def figures(folder: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl without what the clock says."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "images_per_second")} for line in lines]
