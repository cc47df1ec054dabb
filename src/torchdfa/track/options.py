"""Settings of the online tracker: the two published columns as presets, each value free.

Sources: ``paper`` is Nam & Han's MATLAB code, ``pymdnet`` their PyTorch code as of
2019, whose OTB figures are published.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from torchdfa.errors import UsageError
from torchdfa.track import ranges
from torchdfa.track.mdnet import CROP


@dataclass(frozen=True)
class TrackerConfig:
    """One tracker's settings; the defaults are those of ``pymdnet``, with back-propagation in the head.

    Args:
        rule: how the head learns: ``bp``, ``fa``, ``dfa``, ``bdfa`` or ``frozen``, as in ``torchdfa.convert_``.
        feedback: ``"product"`` of the head's weights (Eqs. 7, 9) or ``"random"``.
        feedback_scale: ``"unit"`` (plain +-1 for ``bdfa``), ``"match"``, ``"he"`` or a number.
        moment: when feedback is taken: at the ``"start"``, where fc6 is random, or ``"after_first_frame"``, which is
            then learnt by back-propagation. It never changes after that.
        positives, negatives: examples a step; the negatives are the hardest of ``mined``.
        first_lr, first_iterations, lr, iterations: of the first frame and of an update; 0 iterations learn nothing.
        last: fc6 learns so many times as fast. ``clip``: largest norm of the gradient, or None.
        bias_factor, decay_biases, keep_momentum: how SGD treats biases, and momentum from one update to the next.
        context: the crop is so many times the box. ``whiten``: targets of the box regression, as in R-CNN.
        share_features: one feature map a frame, sampled for each candidate: faster, and no longer MDNet's boxes.
    """

    preset: str = "pymdnet"
    rule: str = "bp"
    feedback: str = "product"
    distribution: str = "normal"
    feedback_scale: float | str = "unit"
    moment: str = "start"
    seed: int = 0
    positives: int = 32
    negatives: int = 96
    mined: int = 1024
    first_lr: float = 5e-4
    first_iterations: int = 50
    lr: float = 1e-3
    iterations: int = 15
    last: float = 10.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float | None = 10.0
    bias_factor: float = 1.0
    decay_biases: bool = True
    keep_momentum: bool = True
    context: float = 1 + 32 / CROP
    candidates: int = 256
    best: int = 5
    trans: float = 0.6
    trans_most: float = 1.5
    trans_growth: float = 1.1
    candidate_scale: float = 1.05
    first_positives: int = 500
    first_negatives: int = 5000
    frame_positives: int = 50
    frame_negatives: int = 200
    positive_scale: float = 1.3
    first_negative_scale: float = 1.6
    negative_trans: float = 1.0
    negative_scale: float = 1.3
    long_frames: int = 100
    short_frames: int = 30
    long_interval: int = 10
    regress: bool = True
    regress_samples: int = 1000
    regress_areas: tuple[float, float] | None = (1.0, 2.0)
    whiten: bool = False
    round_boxes: bool = False
    share_features: bool = False
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        areas: Any = self.regress_areas
        if isinstance(areas, list):  # as JSON has it
            object.__setattr__(self, "regress_areas", tuple(areas))
        if self.preset not in tuple(PRESETS):
            raise UsageError(f"preset must be one of {', '.join(PRESETS)}; got {self.preset!r}")
        ranges.check(self)

    @property
    def batch(self) -> int:
        return self.positives + self.negatives

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrackerConfig:
        return cls(**values)


_PAPER = {
    "first_lr": 1e-4, "first_iterations": 30, "lr": 3e-4, "iterations": 10, "clip": None, "bias_factor": 2.0,
    "decay_biases": False, "keep_momentum": False, "context": CROP / 75, "positive_scale": 1.05**5,
    "first_negative_scale": 1.05**10, "negative_trans": 2.0, "negative_scale": 1.05**5, "short_frames": 20,
    "regress_areas": None, "whiten": True, "round_boxes": True,
}  # fmt: skip
PRESETS: dict[str, dict[str, Any]] = {"paper": _PAPER, "pymdnet": {}}


def preset(name: str = "pymdnet", /, *, batch: int | None = None, **options: Any) -> TrackerConfig:
    """The settings of a preset, with ``options`` (names of ``TrackerConfig``) in their place; UsageError if unknown."""
    if name not in PRESETS:
        raise UsageError(f"the preset {name!r} must be one of {', '.join(PRESETS)}")
    known = {f.name for f in fields(TrackerConfig)} - {"preset"}  # whose values these are
    for option in options:
        if option not in known:
            raise UsageError(f"a tracker has no option {option!r}")
    settings: dict[str, Any] = {"preset": name, **PRESETS[name]}
    if batch is not None and not {"positives", "negatives"} & set(options):
        settings |= batch_settings(batch)
    config = TrackerConfig(**settings | options)
    if batch is not None and config.batch != batch:
        raise UsageError(
            f"positives and negatives add up to {config.batch}, not to the batch of {batch}; leave one out"
        )
    return config


def batch_settings(batch: Any) -> dict[str, int]:
    """A quarter of the examples positive, and mining that stays as hard: 8 candidates an example."""
    if isinstance(batch, bool) or not isinstance(batch, int) or batch < 2:
        raise UsageError(f"batch must be a whole number of at least 2; got {batch!r}")
    positives = max(1, batch // 4)
    return {"positives": positives, "negatives": batch - positives, "mined": 8 * batch}
