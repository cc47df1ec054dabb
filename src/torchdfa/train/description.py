"""All that a trained model is besides its weights, as a checked value and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torchdfa.train import models

FORMAT = 1


@dataclass(frozen=True)
class Description:
    """All that a model is besides its weights. Raises ValueError naming what is wrong."""

    model: str  # a name that models.build knows
    model_args: dict[str, Any]
    classes: tuple[str, ...]
    mean: tuple[float, ...]  # per channel, of pixel / 255
    std: tuple[float, ...]
    image_size: int
    record: dict[str, Any] = field(default_factory=dict)  # rule and run that the weights come from

    def __post_init__(self) -> None:
        _require(self.model in models.NAMES, "model", f"one of {', '.join(models.NAMES)}")
        _require(len(self.classes) > 0, "classes", "at least one name")
        _require(all(self.classes), "classes", "names, none empty")
        _require(len(set(self.classes)) == len(self.classes), "classes", "names that all differ")
        _require(all(_is_number(m) and 0 <= m <= 1 for m in self.mean), "mean", "in 0..1")
        _require(len(self.mean) in (1, 3), "mean", "one number (grey) or three (RGB)")
        _require(all(_is_number(s) and 1e-30 < s <= 1 for s in self.std), "std", "above 0 and at most 1")
        _require(len(self.std) == len(self.mean), "std", "as many numbers as mean")
        _require(_is_count(self.image_size), "image_size", "a positive whole number")
        _require(isinstance(self.record, dict), "record", "an object")
        self._check_args()

    def _check_args(self) -> None:
        fits = {"classes": len(self.classes), "channels": len(self.mean), "image_size": self.image_size}
        _require(isinstance(self.model_args, dict), "model_args", "an object")
        for name, value in fits.items():
            _require(self.model_args.get(name) == value, f"model_args.{name}", f"{value}, as the rest says")
        for name, value in self.model_args.items():
            kind, is_right = _ARGS.get(name, ("a positive whole number", _is_count))
            _require(is_right(value), f"model_args.{name}", kind)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=2, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Description:
        """Inverse of `to_json`; ValueError on anything else."""
        try:
            value = json.loads(text)
        except RecursionError:
            raise ValueError("it is nested too deeply") from None
        _require(isinstance(value, dict) and _is_count(value.get("format")), "format", "a positive whole number")
        _require(value["format"] <= FORMAT, "format", f"at most {FORMAT} for this version; install a newer one")
        names = ("model", "model_args", "classes", "mean", "std", "image_size")
        for name in names:
            _require(name in value, name, "there")
        for name in ("classes", "mean", "std"):
            _require(isinstance(value[name], list), name, "a list")
            value[name] = tuple(value[name])
        _require(all(isinstance(name, str) for name in value["classes"]), "classes", "a list of names")
        return cls(**{name: value[name] for name in names}, record=value.get("record", {}))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


# Those of models.build that are no counts.
_ARGS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "fc_batch_norm": ("true or false", _is_flag),
    "fixed_output": ("true or false", _is_flag),
    "dropout": ("a number in 0 <= dropout < 1", lambda value: _is_number(value) and 0 <= value < 1),
}


def _require(holds: bool, name: str, rule: str) -> None:
    if not holds:
        raise ValueError(f"its {name!r} must be {rule}")
