"""The curious: the first command of the README, from an empty folder, with nothing but defaults."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from torchdfa.train import load_model, program, runs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, float]:
    folder = tmp_path_factory.mktemp("curious")
    began = computed_by_children()
    done = first_command(folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder, done.stdout, computed_by_children() - began


def first_command(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torchdfa", "train"]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=280)


def computed_by_children() -> float:
    """Seconds of one core: what a clock on the wall says depends on who else uses the machine."""
    times = os.times()
    return times.children_user + times.children_system


def test_it_takes_less_than_a_minute_of_one_core(trained: tuple[Path, str, float]) -> None:
    assert trained[2] < 60


@pytest.mark.parametrize("label", ["BP", "CDFA-product", "CBDFA-product"])
def test_every_rule_lands_in_its_band(trained: tuple[Path, str, float], label: str) -> None:
    """95 to 99.5 % of the 359 test digits, 97.5 to 98.5 where it was measured."""
    run = runs.read(trained[0] / "runs" / f"digits-cnn-{label}-s0")
    assert run.result is not None
    assert 95 < run.result["top1"] < 99.5
    assert 99 < run.result["top5"] <= 100
    assert run.epochs[-1]["test_top1"] == run.result["top1"], "the last epoch, not the best"
    assert runs.verify(run.folder) == 9


def test_it_ends_with_a_table_a_picture_a_sentence_and_where_they_lie(trained: tuple[Path, str, float]) -> None:
    folder, out, _ = trained
    table = out[out.index("data digits") :]
    for label in ("BP", "CDFA product", "CBDFA product"):
        assert label in table
    assert "top-1" in table
    assert "On the 359 test images of digits" in table
    assert "runs/digits-cnn-s0.png" in table
    assert (folder / "runs" / "digits-cnn-s0.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads((folder / "runs" / "digits-cnn-s0.json").read_text())
    assert "runs/digits-cnn-CBDFA-product-s0" in json.dumps(rows)


def test_feedback_costs_what_the_table_says(trained: tuple[Path, str, float]) -> None:
    """Feedback lands on the inputs of the three layers, 256, 512 and 512 wide, from 10 classes: a float an element
    in CDFA, a bit an element and one scale a layer in CBDFA."""
    folders = [trained[0] / "runs" / f"digits-cnn-{label}-s0" for label in ("BP", "CDFA-product", "CBDFA-product")]
    found = [(runs.read(folder).result or {})["feedback_bytes"] for folder in folders]
    elements = 10 * (256 + 512 + 512)
    assert found == [0, 4 * elements, elements // 8 + 3 * 4]


def test_the_model_is_used_in_three_lines(trained: tuple[Path, str, float]) -> None:
    model = load_model(trained[0] / "runs" / "digits-cnn-CBDFA-product-s0")
    data = program.load(program.TrainConfig())
    assert (model(data.test_x).argmax(1) == data.test_y).float().mean() > 0.95
    assert not model.training
    assert torch.is_floating_point(model(data.test_x[:1]))


def test_the_second_time_nothing_is_overwritten(trained: tuple[Path, str, float]) -> None:
    folder, _, _ = trained
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    again = first_command(folder)
    assert again.returncode == 2
    assert again.stderr == (
        "torchdfa: runs/digits-cnn-BP-s0 holds a finished run, which is never overwritten; take another --out, or see "
        "it with 'torchdfa compare runs/digits-cnn-BP-s0'\n"
    )
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
