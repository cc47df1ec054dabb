"""Files of released formats are read for ever; each format leaves a small run here when it is replaced."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from torchdfa.train import checkpoint, program, runs

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "run_format_1"


def test_a_run_of_format_1_is_read() -> None:
    run = runs.read(GOLDEN)
    assert (run.config["format"], run.config["label"]) == (1, "BDFA product")
    assert [line["step"] for line in run.epochs] == [7]
    assert [line["step"] for line in run.alignment] == [8]
    assert run.result is None


def test_a_checkpoint_of_format_1_is_read() -> None:
    state = checkpoint.load(GOLDEN / "checkpoint.pt")
    assert (state["format"], state["epoch"], state["done"], state["world_size"]) == (1, 1, 2, 1)
    assert state["model"]["classifier.0.weight"].shape == (4, 64)
    assert state["model"]["classifier.0.feedback.bits"].dtype == torch.uint8


def test_a_run_of_format_1_is_resumed(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "run")
    run = program.resume(tmp_path / "run")
    assert [line["step"] for line in run.epochs] == [7, 14, 21]
    assert run.epochs[0] == runs.read(GOLDEN).epochs[0]
    assert run.result is not None
    assert run.result["epochs"] == 3
