"""Settings of pretraining."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from torchdfa.errors import UsageError
from torchdfa.track.lrn import NORMS
from torchdfa.track.mdnet import CROP

# Settings that do not decide what is learnt but for rounding: a run goes on with others.
MACHINE = ("precision", "device", "threads")


@dataclass(frozen=True)
class PretrainConfig:
    """Settings of pretraining; the defaults are PyMDNet's for VOT clips, from random weights.

    A cycle is one step on each clip: ``frames`` frames of it, ``positives`` and ``negatives`` crops in all.
    """

    cycles: int = 100
    frames: int = 8
    positives: int = 32
    negatives: int = 96
    lr: float = 1e-4
    last: float = 10.0
    momentum: float = 0.9
    weight_decay: float = 5e-4
    clip: float = 10.0
    augment: bool = True
    context: float = 1 + 32 / CROP
    norm: str = "pymdnet-2019"
    start: str | None = None  # weights to begin with
    seed: int = 0
    precision: str = "auto"
    device: str = "auto"
    threads: int | None = None

    def __post_init__(self) -> None:
        whole = {"cycles", "frames", "positives", "negatives", "seed", "threads"}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name == "threads" and value is None:
                continue
            if f.name in whole and (isinstance(value, bool) or not isinstance(value, int)):
                raise UsageError(f"{f.name} must be a whole number; got {value!r}")
            if f.name in whole - {"seed"} and value < 1:
                raise UsageError(f"{f.name} must be at least 1; got {value}")
        if self.positives % self.frames or self.negatives % self.frames:
            raise UsageError(f"positives and negatives must be multiples of frames ({self.frames}), which share them")
        if not 0 < self.lr < float("inf"):
            raise UsageError(f"lr must be a number above 0; got {self.lr}")
        if not 0 <= self.seed < 2**63:
            raise UsageError(f"seed must be at least 0 and below 2^63; got {self.seed}")
        if self.norm not in NORMS:
            raise UsageError(f"norm must be one of {', '.join(NORMS)}; got {self.norm!r}")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)
