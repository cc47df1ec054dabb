"""The parameters of a head: checked at the first batch, as scikit-learn asks, and what follows from them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from torchdfa.errors import UsageError
from torchdfa.settings import Settings, checked_settings

if TYPE_CHECKING:
    from torchdfa.online.head import OnlineHead

# Parameters that decide what the state is made of; the others may be set anew between two updates.
_STRUCTURE = (
    *("features", "rule", "hidden_layer_sizes", "replay", "init", "distribution", "scale", "keep_signs", "dtype"),
    "seed",
)
_ALL = attrgetter(*_STRUCTURE, "learning_rate", "momentum", "weight_decay", "batch_size", "replay_rows")


def check(head: OnlineHead) -> None:
    """UsageError or ConversionError naming the first parameter that is wrong."""
    settings(head)
    sizes: Any = head.hidden_layer_sizes
    _require(
        isinstance(sizes, (tuple, list)) and all(map(is_count, sizes)),
        head,
        "hidden_layer_sizes",
        "whole numbers above 0",
    )
    if not sizes and head.rule != "bp":
        raise UsageError(f'rule="{head.rule}" concerns hidden layers, but hidden_layer_sizes is empty; take rule="bp"')
    check_numbers(head)
    _require(head.features is None or is_count(head.features), head, "features", "a whole number above 0, or None")
    _require(is_count(head.epochs), head, "epochs", "a whole number above 0")
    _require(head.replay == 0 or is_count(head.replay), head, "replay", "0 or a whole number of rows a class")
    _require(head.dtype in ("float32", "float64"), head, "dtype", '"float32" or "float64"')


def check_numbers(head: OnlineHead) -> None:
    """UsageError for a wrong one of the parameters that may be set between two updates."""
    rate, decay, momentum = head.learning_rate, head.weight_decay, head.momentum
    _require(_is_number(rate) and 0 < rate < math.inf, head, "learning_rate", "a positive number")
    _require(_is_number(momentum) and 0 <= momentum < 1, head, "momentum", "a number in 0 <= momentum < 1")
    _require(_is_number(decay) and 0 <= decay < math.inf, head, "weight_decay", "0 or a positive number")
    _require(
        head.batch_size is None or is_count(head.batch_size), head, "batch_size", "a whole number above 0, or None"
    )
    _require(is_count(head.replay_rows), head, "replay_rows", "a whole number above 0")


def settings(head: OnlineHead) -> Settings:
    """Those of the rule; ConversionError naming the wrong one."""
    return checked_settings(head.rule, "head", head.init, head.distribution, head.scale, "direct", head.seed)


def widths(head: OnlineHead, features: int, classes: int) -> tuple[int, ...]:
    """Units of the input, each hidden layer and the output."""
    if head.features not in (None, features):
        raise UsageError(f"X has {features} features, but the head was made for features={head.features}")
    return (features, *head.hidden_layer_sizes, classes)


def labels(classes: Any) -> NDArray[Any]:
    """Labels in order: the sorted ones given, or 0, 1, ... for a number of them."""
    if is_count(classes):
        return np.arange(classes)
    found = np.asarray(classes)
    if found.dtype == object:  # as pandas keeps text
        plain = np.array(found.tolist())
        if plain.dtype == object or plain.tolist() != found.tolist():
            raise UsageError(f"classes must be labels of one kind; got {classes!r}")
        found = plain
    if found.ndim != 1 or not len(found) or (found.dtype.kind == "f" and not np.isfinite(found).all()):
        raise UsageError(f"classes must be labels, or a whole number of classes above 0; got {classes!r}")
    return np.unique(found)


def first_labels(made_with: Any, given: Any) -> NDArray[Any]:
    """The classes of a head at its first batch."""
    if made_with is None and given is None:
        raise UsageError(
            "the first call of partial_fit needs classes=, every label that can occur (add_class adds one)"
        )
    known = labels(given if made_with is None else made_with)
    if made_with is not None and given is not None:
        _require_equal(known, given)
    return known


def with_label(classes: NDArray[Any], label: Any) -> NDArray[Any]:
    """``classes`` and one label more, last."""
    new = np.asarray(label)
    if new.ndim or new.dtype.kind not in ("iu" if classes.dtype.kind in "iu" else classes.dtype.kind):
        raise UsageError(f"a label must be one value of the kind of the others ({classes.dtype}); got {label!r}")
    if new.item() in classes.tolist():
        raise UsageError(f"the label {label!r} is among the classes already")
    return np.concatenate([classes, new[None]])


def accepted(head: OnlineHead) -> tuple[Any, ...]:
    """The parameters as they are, to be compared with later."""
    return _ALL(head)


def require_unchanged(head: OnlineHead, classes: Sequence[Any] | None = None) -> None:
    """UsageError where parameters or classes do not fit the state that a head has."""
    now = _ALL(head)
    if now != head._accepted:
        check_numbers(head)
        then = dict(zip(_STRUCTURE, head._accepted, strict=False))
        changed = [name for name in _STRUCTURE if getattr(head, name) != then[name]]
        changed += ["momentum"] if (head.momentum > 0) != (head.network_.layers[-1].momentum is not None) else []
        if changed:
            raise UsageError(f"{changed[0]} was changed after the head began to learn; call fit, or begin a new head")
        head._accepted = now
    if classes is not None:
        _require_equal(head.classes_, classes)


def _require_equal(known: NDArray[Any], given: Any) -> None:
    if set(labels(given).tolist()) != set(known.tolist()):
        raise UsageError(f"classes={given!r} differ from those that the head has, {known.tolist()}; add_class adds one")


def is_count(value: Any) -> bool:
    """Whether ``value`` is a whole number above 0."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value > 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, bool)


def _require(holds: bool, head: OnlineHead, name: str, rule: str) -> None:
    if not holds:
        raise UsageError(f"{name} must be {rule}; got {getattr(head, name)!r}")
