"""Mistakes 19, 19a and 19b are made around the training, not in it: which figure is reported, and against what."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fake_runs import write_run
from small_runs import figures, small
from torchdfa.train import datasets, verdict
from torchdfa.train.batches import Batches
from torchdfa.train.compare import table
from torchdfa.train.loop import Trainer
from torchdfa.train.program import train
from torchdfa.train.progress import Display
from torchdfa.train.stop import StopSignals


def test_19_the_result_is_the_last_epochs_though_an_earlier_one_was_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learn = Trainer.train_epoch

    def spoil_the_last(trainer: Trainer, display: Display, signals: StopSignals) -> None:
        learn(trainer, display, signals)
        if trainer.epoch == trainer.config.epochs - 1:
            with torch.no_grad():
                for parameter in trainer.net.classifier[-1].parameters():
                    parameter.zero_()

    monkeypatch.setattr(Trainer, "train_epoch", spoil_the_last)
    run = train(small(epochs=3, subset=600, rule="bp", augment=False), tmp_path / "run")
    by_epoch = [line["test_top1"] for line in figures(tmp_path / "run")]
    assert len(by_epoch) == 3
    assert run.result is not None
    assert run.result["top1"] == pytest.approx(by_epoch[-1], abs=0.01)
    assert run.result["top1"] < max(by_epoch) - 10


def test_19_tuning_sees_no_test_image() -> None:
    whole, tuning = datasets.load("digits"), datasets.load("digits", validate=0.2)
    known = {image.numpy().tobytes() for image in whole.train_x}
    held_out = {image.numpy().tobytes() for image in tuning.test_x}
    assert held_out <= known
    assert not held_out & {image.numpy().tobytes() for image in whole.test_x}
    assert not held_out & {image.numpy().tobytes() for image in tuning.train_x}
    assert len(tuning.train_y) + len(tuning.test_y) == len(whole.train_y)


def test_19_training_images_come_in_another_order_each_epoch() -> None:
    data = datasets.load("digits", subset=100)
    batches = Batches(
        data.train_x, torch.arange(100), 10, mean=data.mean, std=data.std, augment=False, shuffle=True,
        generator=torch.Generator().manual_seed(0), device="cpu", channels_last=False,
    )  # fmt: skip
    orders = [torch.cat([y for _, y in batches]).tolist() for _ in range(2)]
    assert orders[0] != orders[1] != sorted(orders[1])
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(100))


def test_19a_a_comparison_without_a_frozen_arm_or_above_it_says_so(tmp_path: Path) -> None:
    def said(*arms: tuple[str, float]) -> str:
        folder = tmp_path / "-".join(f"{rule}{top1}" for rule, top1 in arms)
        rows = table([write_run(folder / rule, rule=rule, top1=top1, tests=10_000) for rule, top1 in arms])
        return " ".join([verdict.sentence(rows), *verdict.notes(rows)])

    assert "no run with --rule frozen" in said(("bp", 80.0), ("bdfa", 78.0))
    assert "not clearly above the frozen control" in said(("bp", 80.0), ("bdfa", 70.0), ("frozen", 71.0))
    assert "above the frozen control, so" in said(("bp", 80.0), ("bdfa", 78.0), ("frozen", 71.0))


def test_19b_one_learning_rate_for_all_arms_is_said_to_decide_nothing(tmp_path: Path) -> None:
    def said(name: str, rate: float) -> str:
        folders = [
            write_run(tmp_path / name / rule, rule=rule, top1=80.0, lr=lr)
            for rule, lr in (("bp", 0.01), ("bdfa", rate))
        ]
        return " ".join(verdict.notes(table(folders)))

    assert "whether another learning rate than 0.01 suits one of the rules better" in said("same", 0.01)
    assert "another learning rate" not in said("own", 0.003)
