"""Scores of trackers over a set: one-pass evaluation, attributes, speed; as JSON and as a table."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchdfa.errors import UsageError
from torchdfa.track import table
from torchdfa.track.boxes import Boxes
from torchdfa.track.protocols import CurveFigures, Curves, curves, protocol
from torchdfa.track.results import Results
from torchdfa.track.sequences import OTB, Sequence

# Rows that published results of these have beside those of the ground truth.
_OTHER_LENGTHS = {"Board": 1, "Twinnings": 1}


@dataclass(frozen=True)
class Scores(CurveFigures):
    """One tracker over sequences of a set of ``wanted``; every sequence counts the same, however long it is."""

    tracker: str
    protocol: str
    version: str
    sequences: dict[str, Curves] = field(repr=False)
    wanted: int
    speeds: dict[str, float] = field(default_factory=dict, repr=False)  # mean of 1/seconds of each sequence
    seconds: float = 0.0  # over all frames that have times
    timed_frames: int = 0
    attributes: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)  # of each sequence
    cut: dict[str, tuple[int, int]] = field(default_factory=dict)  # frames that counted, of all, where truncated
    weights: str | None = None  # what it was run with, where its results say so

    @property
    def success(self) -> NDArray[np.float64]:
        return np.mean([c.success for c in self.sequences.values()], axis=0)

    @property
    def precision(self) -> NDArray[np.float64]:
        return np.mean([c.precision for c in self.sequences.values()], axis=0)

    @property
    def mean_overlap(self) -> float:
        return float(np.mean([c.mean_overlap for c in self.sequences.values()]))

    @property
    def repaired(self) -> int:
        """Results that were no box and were counted as the protocol says."""
        return sum(c.repaired for c in self.sequences.values())

    @property
    def fps(self) -> float | None:
        """Mean over sequences of the mean of 1/seconds, as got10k counts it."""
        return float(np.mean(list(self.speeds.values()))) if self.speeds else None

    @property
    def frames_per_second(self) -> float | None:
        """All frames over all seconds: what one waits for."""
        return self.timed_frames / self.seconds if self.seconds else None

    def with_attribute(self, attribute: str) -> Scores | None:
        """The same over the sequences that have an attribute; None where none has."""
        chosen = [n for n in self.sequences if attribute in self.attributes.get(n, ())]
        return self.over(chosen) if chosen else None

    def over(self, names: Collection[str]) -> Scores:
        """The same over some of its sequences alone, without speeds."""
        chosen = {n: c for n, c in self.sequences.items() if n in names}
        return Scores(self.tracker, self.protocol, self.version, chosen, len(chosen), weights=self.weights)

    def to_dict(self) -> dict[str, Any]:
        """The layout of got10k's performance.json, with the protocol and what else is known."""
        overall = {
            "success_curve": self.success.tolist(),
            "precision_curve": self.precision.tolist(),
            "success_score": self.auc,
            "precision_score": self.precision20,
            "success_rate": self.op50,
            "speed_fps": self.fps,
            "op75": self.op75,
            "mean_overlap": self.mean_overlap,
            "frames_per_second": self.frames_per_second,
            "protocol": self.protocol,
            "set": self.version,
            "sequences": len(self.sequences),
            "of": self.wanted,
            "results_that_were_no_box": self.repaired,
            "attributes": {a: [s.auc, s.precision20] for a in table.ATTRIBUTES if (s := self.with_attribute(a))},
        }
        if self.cut:
            overall["frames_of_cut_sequences"] = {name: list(counts) for name, counts in self.cut.items()}
        return {"overall": overall, "seq_wise": {n: self._of_sequence(n, c) for n, c in self.sequences.items()}}

    def _of_sequence(self, name: str, c: Curves) -> dict[str, Any]:
        return {
            "success_curve": c.success.tolist(),
            "precision_curve": c.precision.tolist(),
            "success_score": c.auc,
            "precision_score": c.precision20,
            "success_rate": c.op50,
            "speed_fps": self.speeds.get(name, -1),
            "op75": c.op75,
            "mean_overlap": c.mean_overlap,
        }


def evaluate(
    found: Results,
    data: OTB | Mapping[str, Sequence],
    *,
    rules: str = "otb",
    missing: str = "error",
    truncate: bool = False,
    frames: int | None = None,
) -> Scores:
    """Score the results of one tracker over the sequences of ``data``.

    Args:
        missing: ``"error"`` or ``"skip"`` sequences without a result; the scores say n of N.
        truncate: where a result and the truth differ in length, score as many frames as both have; ``cut`` of the
            scores counts them. Short results are padded where the protocol does so (pytracking).
        frames: so many first frames of each sequence count, all of them by default.

    Raises:
        UsageError: for a missing result, a wrong number of rows, or values that the protocol refuses.
    """
    sequences = dict(data.sequences if isinstance(data, OTB) else data)
    version = data.version if isinstance(data, OTB) else "chosen sequences"
    wanted = data.size if isinstance(data, OTB) else len(sequences)
    absent = [name for name in sequences if name not in found.boxes]
    if absent and (missing == "error" or len(absent) == len(sequences)):
        raise UsageError(
            f"{found.tracker} has no result of {len(absent)} of {len(sequences)} sequences "
            f"({', '.join(absent[:5])}{' ...' if len(absent) > 5 else ''}); are these results of another set? "
            '--missing skip (missing="skip") scores the others'
        )
    chosen = [sequences[name] for name in sequences if name in found.boxes]
    scored = {s.name: _score(found, s, rules, truncate, frames) for s in chosen}
    lengths = {s.name: max(len(_counted(found.boxes[s.name], s)), len(s)) for s in chosen} if truncate else {}
    clocked = {s.name: _counted(found.times[s.name], s)[:frames] for s in chosen if s.name in found.times}
    times = {name: t[t > 0] for name, t in clocked.items() if (t > 0).any()}
    return Scores(
        found.tracker,
        protocol(rules).name,
        version,
        scored,
        wanted,
        {name: float((1 / t).mean()) for name, t in times.items()},
        float(sum(t.sum() for t in times.values())),
        sum(len(t) for t in times.values()),
        {s.name: s.attributes for s in chosen},
        {name: (scored[name].frames, n) for name, n in lengths.items() if scored[name].frames < min(n, frames or n)},
    )


def _score(found: Results, sequence: Sequence, rules: str, truncate: bool, frames: int | None) -> Curves:
    result, truth = _counted(found.boxes[sequence.name], sequence), sequence.boxes
    padded = protocol(rules).pads and len(result) < len(truth)
    if (truncate and not padded) or abs(len(result) - len(truth)) <= _OTHER_LENGTHS.get(sequence.name, 0):
        result, truth = _shorter(result, truth)
    if padded or len(result) == len(truth):  # else the curves refuse them
        result, truth = result[:frames], truth[:frames]
    return curves(result, truth, rules, name=f"{found.tracker}'s result of {sequence.name}")


def _counted(rows: NDArray[np.float64], sequence: Sequence) -> NDArray[np.float64]:
    """Boxes or times of a sequence, without those of frames that are left out."""
    return rows[sequence.omitted :] if len(rows) == len(sequence) + sequence.omitted else rows


def _shorter(result: Boxes, truth: Boxes) -> tuple[Boxes, Boxes]:
    n = min(len(result), len(truth))
    return result[:n], truth[:n]


def markdown(scores: list[Scores]) -> str:
    """A table of trackers, the best success first; the protocol stands in every line."""
    head = ["tracker", "success AUC", "precision@20", "OP50", "OP75", "mean overlap", "fps", "sequences", "protocol"]
    rows = [head, ["---"] * len(head)]
    for s in sorted(scores, key=lambda s: -s.auc):
        figures = (s.auc, s.precision20, s.op50, s.op75, s.mean_overlap)
        fps = "-" if s.frames_per_second is None else f"{s.frames_per_second:.2f}"
        rows.append([s.tracker, *(f"{v:.3f}" for v in figures), fps, f"{len(s.sequences)} of {s.wanted}", s.protocol])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
