"""A small network and tracker: 100 features, tens of samples, fractions of a second."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from torchdfa.track import synthetic
from torchdfa.track.experiments import Experiment
from torchdfa.track.mdnet import MDNet, initialise_
from torchdfa.track.options import preset
from torchdfa.track.tracker import Tracker

CROP = 27
FEW = {
    "first_positives": 40, "first_negatives": 120, "mined": 48, "candidates": 48, "regress_samples": 60,
    "frame_positives": 10, "frame_negatives": 30, "positives": 8, "negatives": 24, "first_iterations": 20,
    "iterations": 5, "threads": 1, "long_interval": 4,
}  # fmt: skip
# So few samples that the network of the paper takes seconds on a small computer.
QUICK = {
    "first_positives": 8, "first_negatives": 16, "mined": 16, "candidates": 12, "regress_samples": 12,
    "frame_positives": 4, "frame_negatives": 8, "first_iterations": 3, "iterations": 2,
}  # fmt: skip


class Features(nn.Module):
    """(N, 3, 27, 27) to (N, 144)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 8, 5, stride=2), nn.Conv2d(8, 16, 3, stride=1)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)  # 12 -> 6
        return F.max_pool2d(F.relu(self.conv2(x)), 2)[:, :, :2, :2].contiguous().flatten(1)


def network(seed: int = 0, branches: int = 1) -> MDNet:
    net = MDNet(branches, Features(), width=64, hidden=32)
    initialise_(net, torch.Generator().manual_seed(seed))
    return net


def write_sequences(root: Path, names: Sequence[str], frames: int) -> Path:
    """A folder of OTB with small sequences of those names."""
    for seed, name in enumerate(names, 1):
        synthetic.write(root / name, frames, seed=seed, size=(96, 72), side=20)
    return root


def experiment(data: Path, out: Path, **options) -> Experiment:
    """Of few samples a frame; the batch decides how many of them are learnt from."""
    few = {k: v for k, v in FEW.items() if k not in ("positives", "negatives", "mined")}
    return Experiment(data, out, **({"missing": "skip", "options": tuple(few.items())} | options))


def tracker(**options) -> Tracker:
    return Tracker(None, preset("pymdnet", **(FEW | options)), network=network(), crop=CROP)


def frames(n: int = 6):
    """Frames and true boxes of a small sequence."""
    return synthetic.sequence(n, size=(96, 72), side=20, seed=1)


def track(t: Tracker, images, boxes) -> np.ndarray:
    t.init(images[0], boxes[0])
    return np.array([t.box, *[t.update(image) for image in images[1:]]])
