"""The estimator: what it refuses, what it counts, and that how a stream is cut makes no difference."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning, NotFittedError

from online_cases import blobs, same_state, small
from torchdfa.errors import ConversionError, UsageError
from torchdfa.online import OnlineHead
from torchdfa.online.store import state

RULES = ("bp", "fa", "dfa", "bdfa", "frozen")


@pytest.mark.parametrize("rule", RULES)
def test_learns_one_sample_after_another(rule):
    x, y = blobs(400)
    head = small(rule=rule)
    for i in range(300):
        head.partial_fit(x[i : i + 1], y[i : i + 1], classes=[0, 1, 2])
    assert head.score(x[300:], y[300:]) > 0.85
    assert (head.updates_, head.undone_) == (300, 0)


@pytest.mark.parametrize("parameters", [{}, {"momentum": 0.9}, {"replay": 3}, {"batch_size": 4, "weight_decay": 0.01}])
def test_how_a_stream_is_cut_makes_no_difference(parameters):
    x, y = blobs()
    whole = small(**parameters).partial_fit(x, y, classes=[0, 1, 2])
    parts = small(**parameters)
    for start, stop in ((0, 8), (8, 20), (20, 60), (60, 120)):
        parts.partial_fit(x[start:stop], y[start:stop], classes=[0, 1, 2])
    assert same_state(whole, parts)
    assert whole.updates_ == parts.updates_


def test_a_call_may_be_one_update():
    x, y = blobs()
    assert small(batch_size=None).partial_fit(x, y, [0, 1, 2]).updates_ == 1
    assert small(batch_size=50).partial_fit(x, y, [0, 1, 2]).updates_ == 3


def test_fit_forgets_and_is_reproducible():
    x, y = blobs()
    head = small(epochs=2).partial_fit(x[:5], y[:5], classes=[0, 1, 2])
    assert same_state(head.fit(x, y), small(epochs=2).fit(x, y))
    assert head.updates_ == 240
    assert not same_state(head, small(epochs=2, seed=1).fit(x, y))


def test_made_with_sizes():
    x, y = blobs()
    head = OnlineHead(features=8, classes=4, rule="dfa").partial_fit(x, y)
    assert head.classes_.tolist() == [0, 1, 2, 3]
    assert head.predict_proba(x[:5]).shape == (5, 4)
    assert OnlineHead(classes=["b", "a"]).partial_fit(x[:1], ["b"]).classes_.tolist() == ["a", "b"]


@pytest.mark.parametrize(
    "x, y, sentence",
    [
        (np.zeros((2, 7)), [0, 1], "7 features"),
        (np.zeros((1, 8)), [5], "the label 5, which is not among the 3 classes; call add_class\\(5\\) first"),
        (np.full((1, 8), np.nan), [0], "NaN"),
        (np.full((1, 8), np.inf), [0], "infinity"),
        (np.full((1, 8), 1e200), [0], "too large"),
        (np.zeros((0, 8)), [], "0 sample"),
        (np.zeros((2, 8)), [0], "inconsistent numbers of samples"),
        (np.zeros(8), [0], "Expected 2D array"),
        (np.zeros((1, 8)), ["a"], "label 'a'"),
    ],
)
def test_refused_inputs_change_nothing(x, y, sentence):
    good_x, good_y = blobs()
    head = small(momentum=0.5, replay=2).partial_fit(good_x, good_y, classes=[0, 1, 2])
    before = pickle.dumps(head)
    with pytest.raises(ValueError, match=sentence):
        head.partial_fit(x, y)
    assert pickle.dumps(head) == before
    fresh = small()
    with pytest.raises(ValueError, match=r"."):
        fresh.partial_fit(x if x.shape != (2, 7) else x[:0], y, classes=[0, 1, 2])
    assert vars(fresh) == vars(small())


def test_a_good_row_before_a_bad_one_is_not_learned_either():
    x, y = blobs()
    head = small().partial_fit(x, y, classes=[0, 1, 2])
    before = pickle.dumps(head)
    with pytest.raises(ValueError, match="label 9"):
        head.partial_fit(x[:3], [0, 1, 9])
    assert pickle.dumps(head) == before


@pytest.mark.parametrize(
    "parameters, error, sentence",
    [
        ({"rule": "dfaa"}, ConversionError, "rule='dfaa' must be one of"),
        ({"scale": -1}, ConversionError, "scale=-1 must be a positive number"),
        ({"hidden_layer_sizes": (0,)}, UsageError, "hidden_layer_sizes must be whole numbers above 0; got \\(0,\\)"),
        ({"hidden_layer_sizes": ()}, UsageError, 'rule="bdfa" concerns hidden layers'),
        ({"learning_rate": 0}, UsageError, "learning_rate must be a positive number; got 0"),
        ({"learning_rate": float("nan")}, UsageError, "learning_rate must be"),
        ({"momentum": 1}, UsageError, "momentum must be a number in 0 <= momentum < 1; got 1"),
        ({"weight_decay": -1}, UsageError, "weight_decay must be"),
        ({"batch_size": 0}, UsageError, "batch_size must be"),
        ({"replay": -1}, UsageError, "replay must be"),
        ({"replay_rows": 0}, UsageError, "replay_rows must be"),
        ({"epochs": 0}, UsageError, "epochs must be"),
        ({"features": 9}, UsageError, "X has 8 features, but the head was made for features=9"),
        ({"dtype": "float16"}, UsageError, "dtype must be"),
    ],
)
def test_wrong_parameters_are_named_at_the_first_batch(parameters, error, sentence):
    x, y = blobs()
    head = small(**parameters)
    for learn in (head.fit, lambda x, y: head.partial_fit(x, y, classes=[0, 1, 2])):
        with pytest.raises(error, match=sentence):
            learn(x, y)
    assert not hasattr(head, "network_")


def test_classes_are_needed_once():
    x, y = blobs()
    with pytest.raises(UsageError, match="the first call of partial_fit needs classes="):
        small().partial_fit(x, y)
    head = small().partial_fit(x, y, classes=[2, 1, 0])
    head.partial_fit(x, y, classes=[0, 1, 2])
    with pytest.raises(UsageError, match="differ from those that the head has"):
        head.partial_fit(x, y, classes=[0, 1, 2, 3])
    with pytest.raises(UsageError, match="differ from those"):
        small(classes=3).partial_fit(x, y, classes=[0, 1])
    with pytest.raises(NotFittedError):
        small().predict(x)
    with pytest.raises(NotFittedError):
        small().add_class(3)


def test_parameters_set_between_two_updates():
    x, y = blobs()
    head = small().partial_fit(x, y, classes=[0, 1, 2])
    head.set_params(learning_rate=1e-3).partial_fit(x, y)
    with pytest.raises(UsageError, match="learning_rate must be"):
        head.set_params(learning_rate=-1).partial_fit(x, y)
    head.set_params(learning_rate=0.02)
    for name, value in (("rule", "dfa"), ("seed", 5), ("momentum", 0.9), ("hidden_layer_sizes", (4,))):
        changed = pickle.loads(pickle.dumps(head)).set_params(**{name: value})
        with pytest.raises(UsageError, match=f"{name} was changed after the head began to learn"):
            changed.partial_fit(x, y)
    assert not hasattr(clone(head), "network_")


@pytest.mark.parametrize("rule", RULES)
def test_an_exploding_step_is_not_made_counted_and_reported(rule):
    x, y = blobs()
    head = small(rule=rule, learning_rate=1e-3, momentum=0.5, replay=2).partial_fit(x, y, classes=[0, 1, 2])
    head.set_params(learning_rate=1e3)
    before, scaler, came = {n: t.clone() for n, t in state(head).items()}, head.scaler_, head.replay_.came.copy()
    with pytest.warns(ConvergenceWarning, match="update 121 was not made, the 1. of this head: layer"):
        head.partial_fit(x[:1], (y[:1] + 1) % 3)
    assert all(torch.equal(before[name], tensor) for name, tensor in state(head).items())
    assert head.scaler_ is scaler
    assert (head.undone_, head.updates_) == (1, 120)
    assert np.array_equal(head.replay_.came, came)
    head.set_params(learning_rate=1e-3).partial_fit(x[:1], y[:1])
    assert (head.undone_, head.updates_) == (1, 121)


def test_a_broken_but_finite_sample_leaves_a_head_that_works():
    x, y = blobs(500)
    head = small().partial_fit(x[:200], y[:200], classes=[0, 1, 2])
    before = head.score(x[300:], y[300:])
    head.partial_fit(np.full((1, 8), 3e38, np.float32), [0])
    assert np.isfinite(head.predict_proba(x)).all()
    head.partial_fit(x[200:300], y[200:300])
    assert head.score(x[300:], y[300:]) > before - 0.05


def test_weights_scale_a_row_and_zero_leaves_no_trace():
    x, y = blobs()
    head = small(replay=2).partial_fit(x, y, classes=[0, 1, 2])
    before = pickle.dumps(head)
    with pytest.raises(ValueError, match="sample_weight is zero for every row"):
        head.partial_fit(x[:2], y[:2], sample_weight=[0, 0])
    assert pickle.dumps(head) == before
    with pytest.raises(ValueError, match="Negative values"):
        head.partial_fit(x[:2], y[:2], sample_weight=[1, -1])
    ones = small().partial_fit(x, y, [0, 1, 2], sample_weight=np.ones(len(x)))
    assert same_state(ones, small().partial_fit(x, y, [0, 1, 2]))
    dropped = small().partial_fit(x, y, [0, 1, 2], sample_weight=y > 0)
    assert same_state(dropped, small().partial_fit(x[y > 0], y[y > 0], [0, 1, 2]))


@pytest.mark.parametrize("rule", RULES)
def test_add_class_in_mid_stream(rule):
    x, y = blobs(600, classes=4)
    known = y < 3
    head = small(rule=rule, replay=5).partial_fit(x[:300][known[:300]], y[:300][known[:300]], classes=[0, 1, 2])
    before = head.predict_proba(x[300:])
    head.add_class(3)
    after = head.predict_proba(x[300:])
    np.testing.assert_allclose(after[:, :3] / after[:, :3].sum(1, keepdims=True), before, rtol=1e-4, atol=1e-6)
    head.partial_fit(x[300:500], y[300:500])
    assert head.score(x[500:], y[500:]) > 0.8
    assert head.classes_.tolist() == [0, 1, 2, 3]
    for label, sentence in ((3, "among the classes already"), ("a", "one value of the kind"), ([1], "one value")):
        with pytest.raises(UsageError, match=sentence):
            head.add_class(label)


def test_names_of_classes_as_python_objects():
    """Text in arrays of dtype object, as pandas gives it."""
    x, y = blobs()
    names = np.array(["ant", "bee", "cat"], dtype=object)
    fitted = small().fit(x, names[y])
    learned = small().partial_fit(x, names[y], classes=names)
    for head in (fitted, learned, small(classes=names).partial_fit(x, names[y])):
        assert head.classes_.dtype.kind == "U"
        assert head.add_class("dragonfly").classes_.tolist() == ["ant", "bee", "cat", "dragonfly"]
        head.partial_fit(x[:1], np.array(["dragonfly"], dtype=object))
    assert small(classes=np.array([2, 0, 1], dtype=object)).fit(x, y).add_class(3).classes_.tolist() == [0, 1, 2, 3]
    for mixed in (["ant", 1], ["ant", None]):
        with pytest.raises(UsageError, match="classes must be labels of one kind"):
            small().partial_fit(x, names[y], classes=np.array(mixed, dtype=object))


def test_names_of_classes():
    x, y = blobs()
    names = np.array(["ant", "bee", "cat"])[y]
    head = small().partial_fit(x, names, classes=["cat", "bee", "ant"]).add_class("dragonfly")
    assert head.classes_.tolist() == ["ant", "bee", "cat", "dragonfly"]
    assert set(head.partial_fit(x[:1], ["dragonfly"]).predict(x)) <= set(head.classes_)


def test_tensors_as_inputs():
    x, y = blobs()
    tensors = torch.from_numpy(x).requires_grad_(), torch.from_numpy(y)
    assert same_state(small().partial_fit(*tensors, [0, 1, 2]), small().partial_fit(x, y, [0, 1, 2]))
    assert np.array_equal(small().fit(*tensors).predict(tensors[0]), small().fit(x, y).predict(x))


def test_replay_remembers_what_came_first():
    """Six classes, one after the other."""
    x, y = blobs(1200, classes=6, seed=3)
    order = np.argsort(y[:900], kind="stable")
    scores = {
        kept: small(replay=kept, rule="bp").partial_fit(x[order], y[order], range(6)).score(x[900:], y[900:])
        for kept in (0, 10)
    }
    assert scores[10] > 0.9
    assert scores[10] > scores[0] + 0.1
