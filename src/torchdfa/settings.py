"""The settings of a conversion: checked once, then a frozen value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torchdfa.counter import DISTRIBUTIONS
from torchdfa.errors import ConversionError
from torchdfa.feedback import INITS, SCALES
from torchdfa.rules import RULES, Rule

BOUNDARIES = ("direct", "transpose")
STORES = ("buffers", "seed")


@dataclass(frozen=True)
class Settings:
    """The arguments of one conversion, as recorded on the model."""

    rule: Rule
    init: str
    distribution: str
    scale: float | str
    boundary: str
    seed: int
    store: str = "buffers"


def checked_settings(
    rule: str,
    layers: Any,
    init: str,
    distribution: str,
    scale: Any,
    boundary: str,
    seed: int,
    store: str = "buffers",
) -> Settings:
    """The settings of a conversion, or a ``ConversionError`` that names the wrong argument."""
    for name, value, allowed in (
        ("rule", rule, tuple(RULES)),
        ("init", init, INITS),
        ("distribution", distribution, DISTRIBUTIONS),
        ("boundary", boundary, BOUNDARIES),
        ("store", store, STORES),
    ):
        if value not in allowed:
            raise ConversionError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}.")
    if boundary == "transpose" and layers != "head":
        raise ConversionError('boundary="transpose" is for layers="head"; leave the first layer out of layers=.')
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConversionError(f"seed={seed!r} must be an integer.")
    if scale is None:
        scale = "match" if init == "product" else "he"
    _check_scale(scale)
    if store == "seed" and RULES[rule].has_feedback and (init == "product" or scale == "match"):
        raise ConversionError(
            'store="seed" regenerates random feedback from its seed, but init="product" and scale="match" are made of '
            'the weights; use init="random" with scale="he", "unit" or a number, or store="buffers".'
        )
    return Settings(RULES[rule], init, distribution, scale, boundary, seed, store)


def _check_scale(scale: Any) -> None:
    if isinstance(scale, str) and scale in SCALES:
        return
    number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    if not number or not math.isfinite(scale) or scale <= 0:
        raise ConversionError(f"scale={scale!r} must be a positive number or one of {', '.join(map(repr, SCALES))}.")
