"""`torchdfa otb demo`: two rules on a target made on the spot, through the same programs as real sequences.

The frames are drawn, the network is small and untrained, two short sequences are few: it shows that everything works,
and says nothing about which rule tracks better.
"""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchdfa.errors import UsageError
from torchdfa.track import draw, figures, reporting, results, synthetic
from torchdfa.track.mdnet import MDNet, initialise_
from torchdfa.track.options import preset
from torchdfa.track.scoring import evaluate
from torchdfa.track.sequences import Sequence
from torchdfa.track.tracker import Tracker
from torchdfa.track.video import writer
from torchdfa.train import runs

CROP = 43
FRAMES = 40
NAMES = {"drawn-1": 1, "drawn-4": 4}  # and their seeds
SMALL = {"first_positives": 100, "first_negatives": 400, "mined": 128, "candidates": 128, "regress_samples": 200}


class SmallFeatures(nn.Module):
    """Two convolutions: (N, 3, 43, 43) to (N, 800)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 16, 7, stride=2), nn.Conv2d(16, 32, 5, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return F.max_pool2d(F.relu(self.conv2(x)), 1, stride=1)[:, :, :5, :5].contiguous().flatten(1)


def small_network(seed: int = 0) -> MDNet:
    """An MDNet of 800 features and 64 hidden units, untrained."""
    network = MDNet(1, SmallFeatures(), width=800, hidden=64)
    initialise_(network, torch.Generator().manual_seed(seed))
    return network


def demo(out: Path, frames: int = FRAMES, rules: tuple[str, ...] = ("bp", "bdfa")) -> str:
    """Track, score, draw; returns what to say. UsageError where ``out`` holds something."""
    if runs.make(out):
        raise UsageError(f"{out} is not empty; take another --out")
    began = time.perf_counter()
    made = {name: synthetic.sequence(frames, seed=seed) for name, seed in NAMES.items()}
    truth = {name: Sequence(name, (), boxes) for name, (_, boxes) in made.items()}
    found = [_tracked(rule, {name: images for name, (images, _) in made.items()}, truth) for rule in rules]
    scores = []
    for one in found:
        results.write(out / "results", one)
        scores.append(evaluate(one, truth))
    written = figures.one_pass(scores, out)
    reporting.write(out, scores)
    first = next(iter(made))
    with writer(out / "frames") as pictures:
        for k in range(0, frames, 5):
            marks = [draw.Mark(truth[first].boxes[k], draw.TRUTH, "truth")]
            marks += [draw.Mark(o.boxes[first][k], c, o.tracker) for o, c in zip(found, draw.COLOURS, strict=False)]
            pictures.write(draw.marked(made[first][0][k], marks))
    return (
        f"{reporting.text(scores)}\n{', '.join(map(str, written))}; frames with the boxes: {out / 'frames'}\n"
        f"Drawn frames, a small untrained network, {len(made)} sequences of {frames} frames, "
        f"{time.perf_counter() - began:.0f} s: this shows that the programs work, not which rule tracks better."
    )


def _tracked(rule: str, frames: dict[str, list[synthetic.Pixels]], truth: dict[str, Sequence]) -> results.Results:
    found = results.Results(f"{rule}-b128-s0", {})
    for name, images in frames.items():
        tracker = Tracker(None, preset("pymdnet", rule=rule, threads=1, **SMALL), network=small_network(), crop=CROP)
        boxes, times = [], []
        for k, image in enumerate(images):
            began = time.perf_counter()
            if k:
                tracker.update(image)
            else:
                tracker.init(image, truth[name].boxes[0])
            boxes.append(tracker.box)
            times.append(time.perf_counter() - began)
        found.boxes[name], found.times[name] = np.array(boxes), np.array(times)
    return found
