"""One-pass evaluation of one sequence: success and precision curves as four toolkits count them.

They agree on plain boxes and differ on odd ones; each rule here is that of one toolkit:

- ``otb``: the benchmark's authors (MATLAB and Python). Results that are NaN or have no area repeat the box before.
- ``got10k``: the got10k toolkit. No frame is left out, no result is repaired.
- ``pysot``: frames without true area count as a miss and, where the true centre is not positive, as a hit in
  precision; the first result is not replaced by the truth.
- ``pytracking``: results without area repeat the box before; frames whose truth is not positive are missed twice.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from torchdfa.errors import UsageError
from torchdfa.track.boxes import Boxes, as_boxes, centre_error, centres, overlap

OVERLAPS = np.linspace(0, 1, 21)  # arange puts 0.65 and 0.75 one step of the last digit higher
DISTANCES = np.arange(51)
AT_PIXELS = 20
_AS_PYSOT = np.arange(0, 1.05, 0.05, dtype=np.float64)
_AS_PYTRACKING = np.arange(21, dtype=np.float64) * 0.05


class CurveFigures:
    """The figures that are read off a success curve (21 values) and a precision curve."""

    if TYPE_CHECKING:  # what has them; at run time a property here would stand in the way of a field

        @property
        def success(self) -> NDArray[np.float64]: ...
        @property
        def precision(self) -> NDArray[np.float64]: ...

    @property
    def auc(self) -> float:
        """Mean of the 21 values of the success curve (not its area): the truth itself gets 20/21."""
        return float(self.success.mean())

    @property
    def precision20(self) -> float:
        return float(self.precision[AT_PIXELS])

    @property
    def op50(self) -> float:
        return float(self.success[10])

    @property
    def op75(self) -> float:
        return float(self.success[15])


@dataclass(frozen=True)
class Curves(CurveFigures):
    """``success[k]``: share of frames whose overlap is above k/20; ``precision[k]``: whose centre is within k px.

    ``mean_overlap`` is over the frames with true area; ``repaired`` counts results that were no box.
    """

    success: NDArray[np.float64]
    precision: NDArray[np.float64]
    mean_overlap: float
    frames: int
    repaired: int = 0


@dataclass(frozen=True)
class Protocol:
    """A toolkit's rules. ``valid``: which true boxes count in (success, precision); others get overlap -1."""

    name: str
    thresholds: NDArray[np.float64]
    valid: Callable[[Boxes], tuple[NDArray[np.bool_], NDArray[np.bool_]]]
    invalid_error: float  # -1 is a hit at every distance, infinity a miss
    replace_first: bool = True
    repeats: str = ""  # results that repeat the box before: "nan" and "empty"
    pads: bool = False  # short results go on as boxes of zeros
    decimals: int | None = None  # to which errors are rounded


def _all_positive(truth: Boxes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    mask: Any = np.all(truth > 0, axis=1)
    return mask, mask


def _every(truth: Boxes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    mask = np.ones(len(truth), dtype=bool)
    return mask, mask


def _as_pysot(truth: Boxes) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    has_area: Any = np.all(truth[:, 2:] > 0, axis=1)
    has_centre: Any = np.all(centres(truth) > 0, axis=1)
    return has_area, has_centre


PROTOCOLS = {
    p.name: p
    for p in (
        Protocol("otb", OVERLAPS, _all_positive, -1.0, repeats="nan empty", decimals=4),
        Protocol("got10k", OVERLAPS, _every, -1.0),
        Protocol("pysot", _AS_PYSOT, _as_pysot, -1.0, replace_first=False),
        Protocol("pytracking", _AS_PYTRACKING, _all_positive, np.inf, repeats="empty", pads=True),
    )
}


def protocol(name: str) -> Protocol:
    if name not in PROTOCOLS:
        raise UsageError(f"the protocol {name!r} must be one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def curves(result: Boxes, truth: Boxes, rules: str | Protocol = "otb", *, name: str = "the result") -> Curves:
    """Curves of one result (n, 4) against the truth (n, 4).

    Raises UsageError where the numbers of rows differ (pytracking pads), or where the protocol refuses a value.
    """
    rules = protocol(rules) if isinstance(rules, str) else rules
    result, truth = as_boxes(result).copy(), as_boxes(truth)
    if not len(truth):
        raise UsageError(f"{name}: a sequence of 0 frames cannot be scored")
    odd: Any = np.isnan(result).any(axis=1) | ~np.all(result[:, 2:] > 0, axis=1)
    repaired = int(odd[1:].sum())
    if rules.name == "pytracking" and (np.isnan(result).any() or (result[:, 2:] < 0).any()):
        raise UsageError(f"{name} holds NaN or a negative size, which the protocol pytracking refuses; take otb")
    result = _repeated(result, rules.repeats)
    result = _as_long(result, truth, rules, name)
    if rules.replace_first:
        result[0] = truth[0]
    return _scored(result, truth, rules, repaired)


def _repeated(result: Boxes, repeats: str) -> Boxes:
    bad = np.zeros(len(result), dtype=bool)
    if "nan" in repeats:
        bad |= np.isnan(result).any(axis=1)
    if "empty" in repeats:
        bad |= (result[:, 2:] <= 0).any(axis=1)
    for k in np.flatnonzero(bad):
        if k > 0:
            result[k] = result[k - 1]
    return result


def _as_long(result: Boxes, truth: Boxes, rules: Protocol, name: str) -> Boxes:
    if len(result) == len(truth):
        return result
    if rules.pads and len(result) < len(truth):
        return np.concatenate([result, np.zeros((len(truth) - len(result), 4))])
    raise UsageError(f"{name} has {len(result)} boxes for {len(truth)} frames")


def _scored(result: Boxes, truth: Boxes, rules: Protocol, repaired: int) -> Curves:
    has_area, has_centre = rules.valid(truth)
    ious = np.where(has_area, overlap(result, truth), -1.0)
    errors = centre_error(result, truth)
    if rules.decimals is not None:
        errors = errors.round(rules.decimals)
    errors = np.where(has_centre, errors, rules.invalid_error)
    success = (ious[:, None] > rules.thresholds).mean(axis=0)  # a comparison with NaN is False: a miss
    precision = (errors[:, None] <= DISTANCES).mean(axis=0)
    mean = float(np.nan_to_num(ious[has_area]).mean()) if has_area.any() else 0.0
    return Curves(success, precision, mean, len(truth), repaired)
