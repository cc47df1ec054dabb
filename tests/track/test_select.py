from __future__ import annotations

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backend_bases import MouseButton, MouseEvent

from torchdfa.errors import UsageError
from torchdfa.track import select


def user(*points):
    """A user who presses at the first of ``points`` (pixels of the frame), moves along them, lets go at the last."""

    def show():
        axes = plt.gca()
        canvas = axes.figure.canvas
        canvas.draw()
        names = ["button_press_event", *["motion_notify_event"] * (len(points) - 1), "button_release_event"]
        for name, point in zip(names, [*points, points[-1]], strict=True):
            x, y = axes.transData.transform(point)
            canvas.callbacks.process(name, MouseEvent(name, canvas, x, y, MouseButton.LEFT))

    return show


@pytest.fixture
def screen(monkeypatch):
    """Pretends that pictures are shown, and draws them in memory."""
    monkeypatch.setattr(mpl, "get_backend", lambda: "TkAgg")
    return lambda show: monkeypatch.setattr(plt, "show", show)


@pytest.mark.parametrize("points", [((10, 20), (25, 30), (40, 44)), ((40, 44), (10, 20))])
def test_the_drawn_rectangle_is_the_box(screen, points):
    screen(user(*points))
    assert select.select(np.zeros((60, 80, 3), np.uint8)) == pytest.approx((10, 20, 30, 24), abs=0.5)
    assert plt.get_fignums() == []


def test_nothing_drawn(screen):
    screen(lambda: None)
    with pytest.raises(UsageError, match="no box was drawn"):
        select.select(np.zeros((60, 80, 3), np.uint8))


def test_a_click_is_no_box(screen):
    screen(user((10, 20), (10, 20)))
    with pytest.raises(UsageError, match="no box was drawn"):
        select.select(np.zeros((60, 80, 3), np.uint8))


def test_no_screen(monkeypatch):
    monkeypatch.setattr(mpl, "get_backend", lambda: "agg")
    with pytest.raises(UsageError, match="no screen"):
        select.select(np.zeros((60, 80, 3), np.uint8))
