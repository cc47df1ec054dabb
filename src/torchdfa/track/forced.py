"""Learning rules apart from tracking: many heads behind one pair of eyes, always near the target (teacher forcing).

In tracking one lost target decides a sequence, and which rule loses it is mostly chance. Here the candidates of a
frame lie around the true box of the frame before, and the examples around its own, whatever a head found. So all heads
see the same crops, the features of these are computed once, and what differs is what was learnt. It is no result of
tracking.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchdfa.counter import stream_key
from torchdfa.errors import UsageError
from torchdfa.track import cost
from torchdfa.track import weights as weights_file
from torchdfa.track.frames import Frame
from torchdfa.track.learner import Learner
from torchdfa.track.mdnet import CROP, MDNet
from torchdfa.track.options import TrackerConfig
from torchdfa.track.results import write_one
from torchdfa.track.samples import Spread, draw
from torchdfa.track.stopping import TrackingStopped
from torchdfa.track.tracker import Tracker
from torchdfa.train import runs
from torchdfa.train.stop import StopSignals

# What heads may differ in; all else decides which crops there are.
LEARNING = (
    *("rule", "feedback", "distribution", "feedback_scale", "moment", "seed", "positives", "negatives", "mined"),
    *("first_lr", "first_iterations", "lr", "iterations", "last", "momentum", "weight_decay", "clip"),
    *("bias_factor", "decay_biases", "keep_momentum"),
)


@dataclass(frozen=True)
class Found:
    """What one head makes of a frame."""

    box: NDArray[np.float64]
    score: float


@dataclass
class Heads:
    """Learners by name, to be taught as one; each draws from its own seed."""

    each: Mapping[str, Learner]
    generators: Mapping[str, torch.Generator] = field(init=False)

    def __post_init__(self) -> None:
        self.generators = {
            name: torch.Generator().manual_seed(stream_key(learner.config.seed, "forced"))
            for name, learner in self.each.items()
        }

    def learn_first(self, positive: Tensor, negative: Tensor) -> None:
        for name, learner in self.each.items():
            learner.learn_first(positive, negative, self.generators[name])

    def learn(self, positive: Tensor, negative: Tensor) -> None:
        for name, learner in self.each.items():
            learner.learn(positive, negative, self.generators[name])


class Forced(Tracker):
    """Heads by name, of settings that differ in `LEARNING` alone; crops are drawn from seed 0 for all of them.

    ``start`` takes the first frame and its true box, ``follow`` each other frame with its own.
    """

    def __init__(
        self, weights: weights_file.Weights | None, configs: Mapping[str, TrackerConfig], *,
        network: MDNet | None = None, crop: int = CROP,
    ) -> None:  # fmt: skip
        first = next(iter(configs.values()))
        wanted = _of_crops(first)
        for name, config in configs.items():
            for key, value in _of_crops(config).items():
                if value != wanted[key]:
                    raise UsageError(f"heads that see the same crops cannot differ in {key}; {name} does")
        super().__init__(weights, replace(first, seed=0), network=network, crop=crop)
        self.configs = configs

    def start(self, image: Frame, truth: NDArray[np.float64]) -> None:
        """Teach the heads the first frame."""
        self.init(image, truth)

    def update(self, image: Frame) -> NDArray[np.float64]:
        """Refused: these heads learn from the truth, and do not track."""
        raise UsageError("heads behind one pair of eyes do not track: call follow(image, truth)")

    def follow(self, image: Frame, truth: NDArray[np.float64]) -> dict[str, Found]:
        """What each head finds in the next frame, before it learns from it."""
        self._open(image)
        spread = Spread("gaussian", self.config.trans, self.config.candidate_scale)
        boxes = draw(spread, self.target, self.config.candidates, self.size, self.generator)
        features = self._compute(boxes, shared=self.config.share_features)
        found = {name: self._found(head, boxes, features) for name, head in self.heads.each.items()}
        self.frame += 1
        if np.isfinite(truth).all() and (truth[2:] > 0).all():  # a frame without a box: stay where it was last
            self.target = torch.from_numpy(truth.copy())
            self._remember()
        if (self.frame - 1) % self.config.long_interval == 0:
            self.heads.learn(torch.cat(self.positive), torch.cat(self.negative))
        return found

    def _make_learner(self) -> None:
        self.heads = Heads({name: Learner(c, self.network, self.device) for name, c in self.configs.items()})

    def _learn_first(self, positive: Tensor, negative: Tensor) -> None:
        self.heads.learn_first(positive, negative)

    def _found(self, head: Learner, boxes: Tensor, features: Tensor) -> Found:
        best = head.score(features).cpu().topk(self.config.best)
        score = float(best.values.mean())
        chosen, of_chosen = boxes[best.indices], features[best.indices.to(features.device)]
        box = self._refined(chosen, of_chosen) if score > 0 else self._mean(chosen)
        return Found(box.numpy().copy(), score)


def _of_crops(config: TrackerConfig) -> dict[str, Any]:
    return {key: value for key, value in config.to_dict().items() if key not in LEARNING}


def run_sequence(
    folder: str, name: str, images: Seq[str], truth: list[list[float]], weights: str | None,
    configs: dict[str, dict[str, Any]], *, deadline: float | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Write ``name``'s boxes into the folder of each tracker that lacks them; a stopped sequence starts over."""
    places = {tracker: Path(folder) / tracker for tracker in configs}
    missing = {t: TrackerConfig.from_dict(configs[t]) for t, p in places.items() if not (p / f"{name}.txt").is_file()}
    if missing:
        began = time.perf_counter()
        forced = Forced(None if weights is None else weights_file.load(weights), missing)
        with StopSignals(deadline) as signals:
            rows = _rows(forced, images, np.array(truth), signals, Path(folder), name)
        seconds = time.perf_counter() - began
        for tracker, found in rows.items():
            _write(places[tracker], name, found, forced.heads.each[tracker], seconds)
    return runs.read_json(next(iter(places.values())) / "records" / f"{name}.json")


def _rows(
    forced: Forced, images: Seq[str], truth: NDArray[np.float64], signals: StopSignals, folder: Path, name: str
) -> dict[str, list[Found]]:
    forced.start(images[0], truth[0])
    rows = {tracker: [Found(truth[0], 0.0)] for tracker in forced.configs}
    for k in range(1, len(images)):
        if signals.signum:
            raise TrackingStopped(
                signals.signum, folder, f"stopped at frame {k} of {len(images)} of {name}; it starts over"
            )
        for tracker, found in forced.follow(images[k], truth[k]).items():
            rows[tracker].append(found)
    return rows


def _write(place: Path, name: str, found: Seq[Found], head: Learner, seconds: float) -> None:
    record = {
        "frames": len(found), "frames_per_second": round(len(found) / seconds, 4),
        "lost_frames": sum(f.score <= 0 for f in found[1:]), "steps": head.steps, "restored_updates": head.restored,
        "error_path": cost.error_path(head),
    }  # fmt: skip
    (place / "records").mkdir(parents=True, exist_ok=True)
    runs.write_json(place / "records" / f"{name}.json", record)
    write_one(place, name, np.array([f.box for f in found]))
