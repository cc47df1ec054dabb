"""Orders of samples, and samples read from files that may hold anything."""

from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchdfa.errors import UsageError
from torchdfa.online import streams

LABELS = np.repeat(np.arange(6), 100)


@pytest.mark.parametrize("kind", streams.ORDERS)
def test_an_order_takes_every_sample_once(kind):
    order = streams.order(LABELS, kind, 0)
    assert sorted(order.tolist()) == list(range(600))
    assert np.array_equal(order, streams.order(LABELS, kind, 0))
    assert kind == "given" or not np.array_equal(order, streams.order(LABELS, kind, 1))


def changes(labels):
    return int((np.diff(labels) != 0).sum())


def test_class_by_class_and_bursts_that_drift():
    by_class = LABELS[streams.order(LABELS, "class", 3)]
    assert changes(by_class) == 5
    bursts = LABELS[streams.order(LABELS, "bursts", 3)]
    assert 25 <= changes(bursts) <= 75  # about ten in a row, of 600
    first, last = (np.bincount(part, minlength=6) for part in (bursts[:200], bursts[400:]))
    assert np.abs(first - last).max() > 30  # other classes early than late
    assert changes(LABELS[streams.order(LABELS, "random", 3)]) > 450
    with pytest.raises(UsageError, match="order must be one of random, class, bursts, given; got 'x'"):
        streams.order(LABELS, "x", 0)


def test_an_npz(tmp_path):
    x, y = np.arange(12.0).reshape(4, 3), np.array(["a", "b", "a", "b"])
    np.savez(tmp_path / "f.npz", X=x, y=y, X_test=x[:1], y_test=y[:1], other=x)
    found = streams.read_npz(tmp_path / "f.npz")
    assert sorted(found) == ["X", "X_test", "y", "y_test"]
    assert found["X"].dtype == np.float32
    rows = list(streams.samples(found["X"], found["y"], [2, 0]))
    assert [label for _, label in rows] == ["a", "a"]
    assert rows[0][0].tolist() == [[6.0, 7.0, 8.0]]


@pytest.mark.parametrize(
    "arrays, sentence",
    [
        ({"X": np.zeros((3, 2))}, "it lacks one"),
        ({"x": np.zeros((3, 2)), "y": np.zeros(3)}, "it lacks one"),
        ({"X": np.zeros((3, 2)), "y": np.zeros(2, int)}, "a label for each row"),
        ({"X": np.zeros(3), "y": np.zeros(3, int)}, "numbers \\(rows, features\\)"),
        ({"X": np.zeros((0, 2)), "y": np.zeros(0, int)}, "numbers"),
        ({"X": np.array([["a"]]), "y": np.zeros(1, int)}, "numbers"),
        ({"X": np.zeros((3, 2)), "y": np.zeros(3)}, "must hold labels"),
        ({"X": np.zeros((3, 2)), "y": np.zeros(3, int), "X_test": np.zeros((1, 2))}, "X_test"),
        (
            {"X": np.zeros((3, 2)), "y": np.zeros(3, int), "X_test": np.zeros((1, 4)), "y_test": np.zeros(1, int)},
            "X_test must have as many features as X; found 4 and 2",
        ),
        ({"X": np.array([[{}]]), "y": np.zeros(1, int)}, "damaged or no NPZ of plain arrays"),
    ],
)
def test_archives_that_are_refused(tmp_path, arrays, sentence):
    np.savez(tmp_path / "f.npz", **arrays)
    with pytest.raises(UsageError, match=sentence):
        streams.read_npz(tmp_path / "f.npz")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_archives_raise_usage_errors(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("npz") / "f.npz"
    np.savez(path, X=np.zeros((3, 2)), y=np.zeros(3, int))
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        streams.read_npz(path)
    except UsageError as error:
        assert "\n" not in str(error)


def test_csv_lines():
    text = "label,a,b\ncat,1,2\ndog,3\n,\ncat,x,1\ncat,nan,1\ncat,1e99,1\ndog,-1,2.5\n"
    found = list(streams.read_lines(io.StringIO(text)))
    assert [label for x, label in found if x is not None] == ["cat", "dog", "dog"]
    assert found[0][0].tolist() == [[1.0, 2.0]]
    assert [reason for x, reason in found if x is None] == [
        "line 4 is not a label and numbers",
        "line 5 is not a label and numbers",
        "line 6 lacks finite numbers",
        "line 7 lacks finite numbers",
    ]


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_any_text_yields_samples_or_reasons(text):
    for x, label in streams.read_lines(io.StringIO(text)):
        assert isinstance(label, str)
        assert x is None or (x.ndim == 2 and np.isfinite(x).all())
