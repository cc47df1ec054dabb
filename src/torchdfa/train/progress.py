"""What a run shows while it trains: a bar in a terminal, one line an epoch elsewhere, nothing on ranks above 0."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from torchdfa.train.bar import Bar

_SECONDS_BETWEEN_UPDATES = 0.5


class Stopwatch:
    """`seconds` go on within `with stopwatch:`, but not within `with stopwatch.aside():`."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._kept = device, 0.0
        self._since: float | None = None

    @property
    def seconds(self) -> float:
        return self._kept + (0.0 if self._since is None else time.perf_counter() - self._since)

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._kept = value

    def __enter__(self) -> None:
        self._since = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # what was queued belongs to the time before
        self._kept, self._since = self.seconds, None

    @contextmanager
    def aside(self) -> Iterator[None]:
        """For work that is not training: a checkpoint, a measurement, a test."""
        running = self._since is not None
        if running:
            self.__exit__()
        try:
            yield
        finally:
            if running:
                self.__enter__()


class Display(Bar):
    """Progress of one run; `due()` says when the caller should read the loss off the device for `step`."""

    def __init__(self, label: str, epochs: int, steps: int, start: int, *, shown: bool = True) -> None:
        super().__init__(label, epochs * steps, start=start, shown=shown)
        self._label, self._epochs, self._steps = label, epochs, steps
        self._moved = time.monotonic()
        self._test = ""

    def due(self) -> bool:
        """True at most twice a second: reading a loss makes the host wait for the device."""
        return self.visible and time.monotonic() - self._moved > _SECONDS_BETWEEN_UPDATES

    def step(self, completed: int, loss: float, top1: float, images_per_second: float) -> None:
        """Move the bar to `completed` steps of the whole run."""
        self._moved = time.monotonic()
        self.move(completed, f"loss {loss:.3f}  acc {top1:.1f} %  {images_per_second:.0f} images/s{self._test}")

    def epoch(self, figures: dict[str, Any]) -> None:
        """Show the figures of an epoch, the keys of metrics.jsonl."""
        self._test = f"  test {figures['test_top1']:.1f} %"
        if self.visible:
            done = figures["epoch"] * self._steps
            self.step(done, figures["train_loss"], figures["train_top1"], figures["images_per_second"])
            return
        left = figures["seconds"] / figures["epoch"] * (self._epochs - figures["epoch"])
        self.line(
            f"{self._label}  epoch {figures['epoch']}/{self._epochs}  loss {figures['train_loss']:.3f}  "
            f"train {figures['train_top1']:.2f} %  test {figures['test_top1']:.2f} %  "
            f"{figures['images_per_second']:.0f} images/s  {_minutes(left)} left"
        )


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"
