"""The display and the clock of a run."""

from __future__ import annotations

import io
import time
from typing import Any

import pytest
import torch
from rich.console import Console

from torchdfa.train import bar
from torchdfa.train.progress import Display, Stopwatch

FIGURES: dict[str, Any] = {
    "epoch": 1, "train_loss": 1.5, "train_top1": 40.0, "test_top1": 35.25, "seconds": 60.0, "images_per_second": 98.4,
}  # fmt: skip


def shown(monkeypatch: pytest.MonkeyPatch, *, terminal: bool, quiet: bool = False) -> str:
    out = io.StringIO()
    make = lambda quiet: Console(file=out, force_terminal=terminal, width=150, quiet=quiet)  # noqa: E731
    monkeypatch.setattr(bar, "Console", make)
    with Display("CBDFA product", epochs=3, steps=10, start=0, shown=not quiet) as display:
        display.step(5, 2.0, 20.0, 97.0)
        display.epoch(FIGURES)
    return out.getvalue()


def test_elsewhere_than_in_a_terminal_a_line_an_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    line = "CBDFA product  epoch 1/3  loss 1.500  train 40.00 %  test 35.25 %  98 images/s  2:00 left\n"
    assert shown(monkeypatch, terminal=False) == line


def test_in_a_terminal_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    text = shown(monkeypatch, terminal=True)
    assert "CBDFA product" in text
    assert "10/30" in text
    assert "loss 1.500  acc 40.0 %  98 images/s  test 35.2 %" in text


@pytest.mark.parametrize("terminal", [False, True])
def test_other_processes_show_nothing(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    assert shown(monkeypatch, terminal=terminal, quiet=True) == ""


def test_the_loss_is_asked_for_twice_a_second_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(bar, "Console", lambda quiet: Console(file=io.StringIO(), force_terminal=True))
    display = Display("BP", epochs=1, steps=10, start=0)
    assert not display.due()
    now += 0.6
    assert display.due()
    display.step(1, 1.0, 1.0, 1.0)
    assert not display.due()


def test_the_stopwatch_leaves_out_what_is_aside(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 10.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    watch = Stopwatch(torch.device("cpu"))
    watch.seconds = 5.0
    with watch.aside():  # it does not run
        now += 1
    with watch:
        now += 2
        with watch.aside():
            now += 4
        now += 8
    now += 16
    assert watch.seconds == 15.0
