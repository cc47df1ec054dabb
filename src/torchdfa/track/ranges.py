"""Types and ranges of a tracker's settings: one check over all fields, whichever way they came."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from torchdfa.counter import DISTRIBUTIONS
from torchdfa.errors import UsageError
from torchdfa.feedback import INITS

if TYPE_CHECKING:
    from torchdfa.track.options import TrackerConfig

RULES = ("bp", "fa", "dfa", "bdfa", "frozen")
MOMENTS = ("start", "after_first_frame")
_CHOICES = {
    "rule": RULES, "feedback": INITS, "distribution": DISTRIBUTIONS, "moment": MOMENTS,
    "device": ("auto", "cpu", "cuda"), "precision": ("auto", "fp32", "bf16"),
}  # fmt: skip


def is_number(value: Any) -> bool:
    """A finite int or float, and no bool."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


# What a field's annotation asks of its value, and the words for it.
_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "int": ("a whole number", lambda v: isinstance(v, int) and not isinstance(v, bool)),
    "float": ("a number", is_number),
    "bool": ("true or false", lambda v: isinstance(v, bool)),
    "str": ("a text", lambda v: isinstance(v, str)),
    "tuple[float, float]": (
        "two numbers [low, high], 0 < low <= high, or null",
        lambda v: isinstance(v, tuple) and len(v) == 2 and all(map(is_number, v)) and 0 < v[0] <= v[1],
    ),
    "float | str": (
        "unit, match, he or a positive number",
        lambda v: v in ("unit", "match", "he") or (is_number(v) and v > 0),
    ),
}
_RANGES: tuple[tuple[str, Callable[[Any], bool], tuple[str, ...]], ...] = (
    ("be at least 0", lambda v: v >= 0, ("first_iterations", "iterations", "last", "weight_decay", "bias_factor")),
    ("be at least 1", lambda v: v >= 1, (
        "positives", "negatives", "mined", "candidates", "best", "first_positives", "first_negatives",
        "frame_positives", "frame_negatives", "long_frames", "short_frames", "long_interval", "threads")),
    ("be at least 10", lambda v: v >= 10, ("regress_samples",)),
    ("be above 0", lambda v: v > 0, (
        "first_lr", "lr", "clip", "context", "trans", "trans_most", "trans_growth", "candidate_scale",
        "positive_scale", "first_negative_scale", "negative_trans", "negative_scale")),
    ("be at least 0 and below 1", lambda v: 0 <= v < 1, ("momentum",)),
    ("be at least 0 and below 2^63", lambda v: 0 <= v < 2**63, ("seed",)),
)  # fmt: skip


def check(config: TrackerConfig) -> None:
    """UsageError names the first setting whose type or range is wrong, or that does not go with another."""
    for f in fields(config):
        kind = str(f.type)
        if not (kind.endswith(" | None") and getattr(config, f.name) is None):
            words, right = _TYPES[kind.removesuffix(" | None")]
            _require(right(getattr(config, f.name)), config, f.name, f"be {words}")
    for name, allowed in _CHOICES.items():
        _require(getattr(config, name) in allowed, config, name, f"be one of {', '.join(allowed)}")
    for words, right, names in _RANGES:
        for name in names:
            value = getattr(config, name)
            _require(value is None or right(value), config, name, words)
    if config.mined < config.negatives:
        raise UsageError(f"mined ({config.mined}) must be at least negatives ({config.negatives})")
    if config.best > config.candidates:
        raise UsageError(f"best ({config.best}) must be at most candidates ({config.candidates})")


def _require(holds: bool, config: TrackerConfig, name: str, rule: str) -> None:
    if not holds:
        raise UsageError(f"{name} must {rule}; got {getattr(config, name)!r}")


def each_once(flag: str, values: tuple[Any, ...]) -> None:
    """UsageError where a list of values is empty or names one twice."""
    if not values or len(set(values)) < len(values):
        raise UsageError(f"--{flag} must list each value once; got {','.join(map(str, values)) or 'nothing'}")
