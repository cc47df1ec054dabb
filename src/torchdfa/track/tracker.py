"""MDNet's online tracker: ``init(image, box)``, then ``update(image)`` for each frame."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from torchdfa.counter import stream_key
from torchdfa.errors import UsageError
from torchdfa.track import weights as weights_file
from torchdfa.track.checks import checked_box, use_bf16
from torchdfa.track.crops import features, prepared
from torchdfa.track.frames import Frame, pixels
from torchdfa.track.learner import Learner
from torchdfa.track.mdnet import CROP, VGGM, MDNet, fast
from torchdfa.track.options import TrackerConfig, preset
from torchdfa.track.regressor import BoxRegressor
from torchdfa.track.samples import Spread, draw, draw_overlapping, require
from torchdfa.train import machine

LEAST_BOXES = 10  # to learn the box regression from
PARTS = ("features", "update", "regressor", "rest")  # of the time


class Tracker:
    """Track one target; it can also be handed to the got10k toolkit as it is.

    Args:
        weights: a file (see ``torchdfa.track.weights.load``), loaded ``Weights``, or None for untrained ones, with
            which it tracks poorly.
        config: settings; by default ``preset("pymdnet")``. ``options`` replace single ones.
        network: another network than VGG-M with its fc4 and fc5, instead of weights; ``crop`` is its input size.

    After each frame: ``box``, ``score`` (mean of the best five; the target is ``lost`` where it is not above 0),
    ``frame`` (1 is the first), ``seconds`` by part, ``counts`` of updates.
    """

    is_deterministic = True

    def __init__(
        self,
        weights: str | Path | weights_file.Weights | None = None,
        config: TrackerConfig | None = None,
        *,
        network: MDNet | None = None,
        crop: int = CROP,
        name: str | None = None,
        **options: Any,
    ) -> None:
        if config is not None and options:
            raise UsageError("pass either config or single options")
        self.config = config or preset(options.pop("preset", "pymdnet"), **options)
        self.name = name or f"MDNet-{self.config.rule}"
        if self.config.threads:
            torch.set_num_threads(self.config.threads)
        self.device = torch.device(machine.choose_device(self.config.device))
        self.bf16 = use_bf16(self.config.precision, self.device.type)
        if isinstance(weights, (str, Path)):
            weights = weights_file.load(weights, seed=self.config.seed)
        self.weights = weights
        self.network = network or (weights or weights_file.random(self.config.seed)).network()
        if self.config.share_features and not isinstance(self.network.features, VGGM):
            raise UsageError("share_features is for VGG-M, whose strides it knows; leave it out with another network")
        self._features = self._fixed_features()
        self._crop = crop
        self.size: tuple[int, int] = (0, 0)
        self.frame, self.score, self.lost, self.trans = 0, 0.0, False, self.config.trans
        self.seconds = dict.fromkeys(PARTS, 0.0)
        self.counts: Counter[str] = Counter()
        self.regresses = self.config.regress

    # ------------------------------------------------------------------ the two calls

    def init(self, image: Frame, box: Any) -> None:
        """Learn the target from the first frame. ``box``: x, y, w, h in pixels of the image.

        Raises UsageError for a box that cannot be tracked, RunError where no samples can be drawn around it.
        """
        c = self.config
        began = time.perf_counter()
        self.seconds, self.counts = dict.fromkeys(PARTS, 0.0), Counter()
        self.generator = torch.Generator().manual_seed(stream_key(c.seed, "track"))
        self._open(image, first=True)
        self.target = checked_box(box, self.size)
        self.box: NDArray[np.float64] = self.target.numpy().copy()
        self._make_learner()
        self.regressor = BoxRegressor(c.whiten)
        self.trans, self.frame, self.score, self.lost = c.trans, 1, 0.0, False
        self.regresses = c.regress
        if c.regress:
            self._fit_regressor()
        self._learn_first_frame()
        self._rest(began)

    def update(self, image: Frame) -> NDArray[np.float64]:
        """The target's box (4,) in the next frame."""
        if not self.frame:
            raise UsageError("update() needs a target: call init(image, box) first")
        began, before = time.perf_counter(), dict(self.seconds)
        self._open(image)
        c, spread = self.config, Spread("gaussian", self.trans, self.config.candidate_scale)
        boxes = draw(spread, self.target, c.candidates, self.size, self.generator)
        found = self._compute(boxes, shared=c.share_features)
        with self._timed("rest"):
            scores = self.learner.score(found).cpu()
        best = scores.topk(c.best)
        self.frame += 1
        self.score = float(best.values.mean())
        self.lost = not self.score > 0
        self._move(boxes[best.indices], found[best.indices.to(found.device)])
        self._adapt()
        self._rest(began, before)
        return self.box

    def track(
        self, img_files: Seq[str], box: Any, visualize: bool = False
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What the got10k toolkit calls: boxes (n, 4) and seconds (n,) over a list of image files."""
        boxes, times = np.zeros((len(img_files), 4)), np.zeros(len(img_files))
        for k, file in enumerate(img_files):
            began = time.perf_counter()
            if k == 0:
                self.init(file, box)
            else:
                self.update(file)
            boxes[k], times[k] = self.box, time.perf_counter() - began
        return boxes, times

    forward_test = track  # its name in the toolkit's repository; the release 0.1.3 says track

    # ------------------------------------------------------------------ its parts

    def _fixed_features(self) -> nn.Module:
        features = self.network.features.to(self.device).eval()
        precision = "bf16" if self.bf16 else "fp32"
        if isinstance(features, VGGM) and (
            machine.choose_convolutions("auto", self.device.type, precision) == "winograd"
        ):
            features = fast(features)
        return features.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _make_learner(self) -> None:
        self.learner = Learner(self.config, self.network, self.device)

    def _open(self, image: Frame, *, first: bool = False) -> None:
        self.image = prepared(pixels(image), self.device)
        size = (self.image.shape[3], self.image.shape[2])
        if not first and size != self.size and not self.counts["sizes"]:
            warnings.warn(f"the frames change their size, from {self.size} to {size}; tracking goes on.", stacklevel=3)
            self.counts["sizes"] += 1
        self.size = size

    def _compute(self, boxes: Tensor, *, shared: bool = False) -> Tensor:
        from torchdfa.track.shared import map_features

        compute = map_features if shared else features
        with self._timed("features"):
            return compute(self._features, self.image, boxes, self.config.context, size=self._crop, bf16=self.bf16)

    def _fit_regressor(self) -> None:
        c, spread = self.config, Spread("uniform", 0.3, 1.6, 1.1)
        boxes = draw_overlapping(
            spread, self.target, c.regress_samples, self.size, self.generator, low=0.6, areas=c.regress_areas
        )
        self.regresses = len(boxes) >= LEAST_BOXES
        if not self.regresses:
            warnings.warn("too few boxes of other places and sizes fit the image; boxes are not refined.", stacklevel=4)
            return
        found = self._compute(boxes)
        with self._timed("regressor"):
            self.regressor.fit(found, boxes, self.target)

    def _learn_first_frame(self) -> None:
        c, draw_ = self.config, self._examples
        near = draw_("positive", Spread("gaussian", 0.1, c.positive_scale), c.first_positives, low=0.7)
        whole = c.first_negatives // 2  # all over the image, the others around the target
        far = torch.cat([
            self._boxes(Spread("uniform", 1.0, c.first_negative_scale), c.first_negatives - whole, high=0.5),
            self._boxes(Spread("whole", 0.0, c.first_negative_scale), whole, high=0.5),
        ])  # fmt: skip
        far = require(far, c.first_negatives, "negative", self.target)
        positive, negative = self._compute(near), self._compute(far)
        with self._timed("update"):
            self._learn_first(positive, negative)
        order = torch.randperm(len(negative), generator=self.generator)[: c.frame_negatives]
        self.positive, self.negative = [positive], [negative[order.to(negative.device)]]

    def _learn_first(self, positive: Tensor, negative: Tensor) -> None:
        self.learner.learn_first(positive, negative, self.generator)

    def _boxes(self, spread: Spread, n: int, *, low: float = 0.0, high: float = 1.0) -> Tensor:
        return draw_overlapping(spread, self.target, n, self.size, self.generator, low=low, high=high)

    def _examples(self, what: str, spread: Spread, n: int, *, low: float = 0.0, high: float = 1.0) -> Tensor:
        return require(self._boxes(spread, n, low=low, high=high), n, what, self.target)

    def _move(self, best: Tensor, found: Tensor) -> None:
        """The target is the mean of the best boxes; what is reported is that, or what the regressor makes of it."""
        c = self.config
        self.target = self._mean(best)
        self.trans = c.trans if not self.lost else min(c.trans_most, self.trans * c.trans_growth)
        self.box = (self.target if self.lost else self._refined(best, found)).numpy().copy()

    def _mean(self, best: Tensor) -> Tensor:
        mean = best.mean(dim=0)
        return mean.round() if self.config.round_boxes else mean

    def _refined(self, best: Tensor, found: Tensor) -> Tensor:
        """The mean of the best boxes, where there is a regressor after its correction."""
        if not self.regresses:
            return self._mean(best)
        with self._timed("regressor"):
            return self.regressor.predict(found, best, self.size).mean(dim=0)

    def _adapt(self) -> None:
        """Remember examples where the target is seen; learn at every tenth frame, and where it is lost."""
        c = self.config
        if not self.lost:
            self._remember()
        if self.lost:
            self._learn("short", self.positive[-c.short_frames :])
        elif (self.frame - 1) % c.long_interval == 0:
            self._learn("long", self.positive)

    def _remember(self) -> None:
        c = self.config
        near = self._boxes(Spread("gaussian", 0.1, c.positive_scale), c.frame_positives, low=0.7)
        far = self._boxes(Spread("uniform", c.negative_trans, c.negative_scale), c.frame_negatives, high=0.3)
        if not len(near) or not len(far):
            self.counts["frames without samples"] += 1
            return
        if len(near) < c.frame_positives or len(far) < c.frame_negatives:
            self.counts["frames with fewer samples"] += 1
        self.positive = [*self.positive, self._compute(near)][-c.long_frames :]
        self.negative = [*self.negative, self._compute(far)][-c.short_frames :]

    def _learn(self, kind: str, positive: list[Tensor]) -> None:
        with self._timed("update"):
            self.learner.learn(torch.cat(positive), torch.cat(self.negative), self.generator)
        self.counts[kind] += 1

    @contextmanager
    def _timed(self, part: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[part] += time.perf_counter() - began

    def _rest(self, began: float, before: dict[str, float] | None = None) -> None:
        spent = sum(self.seconds.values()) - sum((before or {}).values())
        self.seconds["rest"] += max(0.0, time.perf_counter() - began - spent)
