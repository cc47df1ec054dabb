"""The first box drawn by hand, in a window of matplotlib."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from torchdfa.errors import UsageError


def select(frame: NDArray[np.uint8]) -> tuple[float, float, float, float]:
    """x, y, w, h of the rectangle that the user draws; UsageError where there is no screen, or nothing was drawn."""
    import matplotlib.pyplot as plt
    from matplotlib.widgets import RectangleSelector

    if mpl.get_backend().lower() in ("agg", "pdf", "svg", "ps", "cairo", "template"):
        raise UsageError("--select opens a window, and here is no screen for it; pass --box x,y,w,h")
    figure, axes = plt.subplots(num="draw a box around the target, then close the window")
    axes.imshow(frame)
    axes.set_axis_off()
    drawn: list[tuple[float, ...]] = []

    def note(press: Any, release: Any) -> None:
        drawn[:] = [selector.extents]

    selector = RectangleSelector(axes, note, interactive=True, useblit=False)
    plt.show()
    plt.close(figure)
    if not drawn:
        raise UsageError("no box was drawn; run it again, or pass --box x,y,w,h")
    left, right, top, bottom = drawn[0]
    return left, top, right - left, bottom - top
