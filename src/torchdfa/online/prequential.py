"""Test, then train (Gama et al., 2013): each sample is classified before it is learned, so no test set is needed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchdfa.online.streams import Sample

MOST_POINTS = 2000  # of a curve; beyond them every second one is dropped, so that no stream fills the memory


@dataclass
class Record:
    """What came of a stream so far; its size does not grow with the stream.

    ``points`` are [samples, accuracy of the last window, accuracy so far, balanced accuracy so far], in percent; the
    balanced one is the mean over the classes that have come. The first sample, on which nothing was known, counts.
    """

    window: int
    samples: int = 0
    hits: int = 0
    by_class: dict[Any, list[int]] = field(default_factory=dict)  # samples and hits of each label
    recent: deque[bool] = field(default_factory=deque)
    points: list[list[float]] = field(default_factory=list)
    apart: int = 0  # windows between two points
    updates: int = 0
    update_seconds: float = 0.0
    longest_update: float = 0.0
    refused: int = 0  # samples that could not be used
    last_refusal: str = ""

    def note(self, label: Any, hit: bool) -> bool:
        """Count a classified sample; True where a window is full and a point was made."""
        self.samples, self.hits = self.samples + 1, self.hits + hit
        counts = self.by_class.setdefault(label, [0, 0])
        counts[0] += 1
        counts[1] += hit
        self.recent.append(hit)
        if len(self.recent) > self.window:
            self.recent.popleft()
        self.apart = self.apart or self.window
        if self.samples % self.apart:
            return False
        self.points.append([self.samples, self.windowed, self.accuracy, self.balanced])
        if len(self.points) > MOST_POINTS:
            self.points, self.apart = self.points[1::2], 2 * self.apart
        return True

    def refuse(self, reason: str) -> None:
        self.refused, self.last_refusal = self.refused + 1, reason

    @property
    def accuracy(self) -> float:
        """Percent of all samples so far."""
        return 100 * self.hits / max(1, self.samples)

    @property
    def windowed(self) -> float:
        """Percent of the last ``window`` samples."""
        return 100 * sum(self.recent) / max(1, len(self.recent))

    @property
    def balanced(self) -> float:
        """Percent, the mean over the classes that have come."""
        shares = [hits / count for count, hits in self.by_class.values()]
        return 100 * sum(shares) / max(1, len(shares))

    def figures(self) -> dict[str, Any]:
        """JSON-able; ``updates_per_second`` counts the time of learning alone."""
        return {
            "samples": self.samples,
            "accuracy": round(self.accuracy, 3),
            "last_window": round(self.windowed, 3),
            "balanced": round(self.balanced, 3),
            "updates_per_second": round(self.updates / self.update_seconds, 1) if self.update_seconds else None,
            "microseconds_an_update": round(1e6 * self.update_seconds / max(1, self.updates), 1),
            "longest_update_ms": round(1e3 * self.longest_update, 2),
            "refused": self.refused,
        }


def evaluate(
    learner: Any,
    stream: Iterable[Sample],
    *,
    classes: Any = None,
    window: int = 500,
    delay: int = 0,
    each: Callable[[Record, bool], bool] = lambda *_: False,
    clock: Callable[[], float] = time.perf_counter,
) -> Record:
    """Classify each sample of ``stream`` and then let ``learner`` learn it.

    Args:
        learner: anything with scikit-learn's ``partial_fit`` and ``predict``; a label that it does not know is added
            with its ``add_class``.
        stream: ((1, features), label), or (None, reason) for a sample to count as refused.
        classes: all labels; None begins with the first one that comes.
        window: samples of the windowed accuracy.
        delay: a label is learned when so many further samples have been classified.
        each: called after each sample with the record and whether a window is full; True ends the stream.
        clock: seconds, for the time of updates.

    Samples that ``learner`` refuses (ValueError) are counted and left out.
    """
    record = Record(window)
    waiting: deque[tuple[NDArray[Any], Any]] = deque()
    known = set(getattr(learner, "classes_", np.array([])).tolist())
    for x, label in stream:
        if x is None:
            record.refuse(str(label))
            continue
        try:
            full = record.note(label, bool(known) and bool(learner.predict(x)[0] == label))
        except ValueError as error:
            record.refuse(str(error))
            continue
        waiting.append((x, label))
        while len(waiting) > delay:
            _learn(learner, *waiting.popleft(), classes, known, record, clock)
        if each(record, full):
            break
    for sample in waiting:
        _learn(learner, *sample, classes, known, record, clock)
    return record


def _learn(
    learner: Any, x: NDArray[Any], label: Any, classes: Any, known: set[Any], record: Record, clock: Callable[[], float]
) -> None:
    began = clock()
    try:
        if not known:
            made_with = getattr(learner, "classes", None)
            first = [label] if classes is None and made_with is None else classes
            learner.partial_fit(x, np.array([label]), classes=first)
            known.update(learner.classes_.tolist())
        else:
            if label not in known and hasattr(learner, "add_class"):
                learner.add_class(label)
                known.add(label)
            learner.partial_fit(x, np.array([label]))
    except ValueError as error:
        record.refuse(str(error))
        return
    seconds = clock() - began
    record.updates, record.update_seconds = record.updates + 1, record.update_seconds + seconds
    record.longest_update = max(record.longest_update, seconds)
