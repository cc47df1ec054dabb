"""Curves of accuracy along streams."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from torchdfa.train.plots import drawn

# A curve is the mean of several streams with a band of one standard deviation; Okabe & Ito (2008), told apart with any
# colour vision.
_COLOURS = ("#000000", "#d55e00", "#0072b2", "#009e73", "#e69f00", "#56b4e9", "#cc79a7", "#8c8c8c")
_STYLES = ("-", "--", ":")
TITLES = {
    "random": "random order",
    "class": "class by class",
    "bursts": "bursts, drifting classes",
    "given": "as given",
}

Points = Sequence[Sequence[float]]


def curves(found: Mapping[str, Mapping[str, Sequence[Points]]], window: int, path: Path) -> None:
    """One panel for each order of samples, one line for each method: ``found[order][method]`` are points of streams."""
    with drawn(path, (max(6.4, 4.2 * len(found)), 4.6)) as figure:
        panels = figure.subplots(1, len(found), squeeze=False, sharey=True)[0]
        for axes, (order, methods) in zip(panels, found.items(), strict=True):
            for i, (method, streams) in enumerate(methods.items()):
                length = min(map(len, streams))
                values = np.array([[point[1] for point in points[:length]] for points in streams])
                x, middle, spread = [p[0] for p in streams[0][:length]], values.mean(0), values.std(0)
                colour, style = _COLOURS[i % len(_COLOURS)], _STYLES[i // len(_COLOURS) % len(_STYLES)]
                axes.plot(
                    x, middle, style, color=colour, linewidth=1.6, label=method, marker=None if length > 1 else "o"
                )
                if len(streams) > 1:
                    axes.fill_between(x, middle - spread, middle + spread, color=colour, alpha=0.12, linewidth=0)
            axes.set(title=TITLES.get(order, order), xlabel="samples of the stream", ylim=(0, 100))
            axes.grid(alpha=0.3)
        panels[0].set_ylabel(f"accuracy before learning (%)\nover the last {window} samples")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
