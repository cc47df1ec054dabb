"""Test, then train: figures counted by hand, labels that come late, streams without end."""

from __future__ import annotations

import numpy as np
import pytest

from online_cases import blobs, same_state, small
from torchdfa.online import Record, evaluate, prequential, streams


class Last:
    """Says the label that it learned last."""

    def partial_fit(self, x, y, classes=None):
        self.classes_, self.last = np.array([0, 1, 2]), y[0]
        return self

    def predict(self, x):
        return [self.last]


def stream(labels):
    return ((np.zeros((1, 2)), label) for label in labels)


def test_figures_by_hand():
    """The first sample is wrong: nothing was known. Then 1 1 0 0 0 2: right, wrong, right, right, wrong."""
    record = evaluate(Last(), stream([1, 1, 0, 0, 0, 2]), window=3)
    assert (record.samples, record.hits, record.updates) == (6, 3, 6)
    assert record.accuracy == 50
    assert record.balanced == pytest.approx(100 * (1 / 2 + 2 / 3 + 0) / 3)
    assert record.points == [[3, pytest.approx(100 / 3), pytest.approx(100 / 3), pytest.approx(25)],
                             [6, pytest.approx(200 / 3), 50, pytest.approx(100 * (1 / 2 + 2 / 3) / 3)]]  # fmt: skip


def test_late_labels():
    """With a delay of 2 a label is known when two further samples have been classified."""
    labels = [1, 1, 1, 0, 0, 0, 0]
    record = evaluate(Last(), stream(labels), delay=2)
    assert record.hits == 1  # the last: what was learned until then is 1, 1, 1, 0
    assert record.updates == 7


def test_a_delay_changes_what_is_predicted_not_what_is_learned():
    x, y = blobs()
    heads = small(), small()
    for head, delay in zip(heads, (0, 10), strict=True):
        evaluate(head, streams.samples(x, y, range(120)), classes=[0, 1, 2], delay=delay)
    assert same_state(*heads)


def test_classes_that_come_on_the_way_and_samples_that_cannot_be_used():
    x, y = blobs(200)
    bad = [(None, "line 3 is no sample"), (np.zeros((1, 3)), 0), (np.full((1, 8), np.nan), 1)]
    head = small()
    record = evaluate(head, [*streams.samples(x, y, range(100)), *bad, *streams.samples(x, y, range(100, 200))])
    assert sorted(head.classes_.tolist()) == [0, 1, 2]
    assert (record.samples, record.updates, record.refused) == (200, 200, 3)
    assert "NaN" in record.last_refusal
    assert record.windowed > 70


def test_the_record_of_an_endless_stream_stays_small(monkeypatch):
    monkeypatch.setattr(prequential, "MOST_POINTS", 8)
    record = Record(window=5)
    for i in range(1000):
        record.note(i % 3, hit=i % 2 == 0)
    assert len(record.points) <= 8
    assert len(record.recent) == 5
    assert np.diff([point[0] for point in record.points]).tolist() == [record.apart] * (len(record.points) - 1)
    assert record.points[-1][2] == pytest.approx(50, abs=1)


def test_a_stream_can_be_ended():
    record = evaluate(Last(), stream([0] * 100), each=lambda record, _: record.samples == 10)
    assert (record.samples, record.updates) == (10, 10)
