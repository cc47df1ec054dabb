"""Files of heads: they go on bit for bit, never grow, and nothing but a head is loaded from one."""

from __future__ import annotations

import json
import pickle
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from online_cases import blobs, same_state, small
from torchdfa.errors import RunError, UsageError
from torchdfa.online import OnlineHead


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "bdfa", "frozen"])
@pytest.mark.parametrize(
    "parameters", [{}, {"momentum": 0.9, "replay": 3}, {"keep_signs": False, "hidden_layer_sizes": (9, 7)}]
)
def test_a_loaded_head_goes_on_bit_for_bit(tmp_path, rule, parameters):
    x, y = blobs(200)
    head = small(rule=rule, **parameters).partial_fit(x[:90], y[:90], classes=[0, 1, 2]).add_class(7)
    head.save(tmp_path / "head.safetensors")
    loaded = OnlineHead.load(tmp_path / "head.safetensors")
    assert loaded.get_params() == head.get_params()
    for one in (head, loaded):
        one.partial_fit(x[90:], y[90:]).partial_fit(x[:1], [7])
    assert same_state(head, loaded)
    assert np.array_equal(head.predict_proba(x), loaded.predict_proba(x))
    assert (head.updates_, head.undone_) == (loaded.updates_, loaded.undone_)
    assert loaded.memory() == head.memory()
    with pytest.raises(UsageError, match="rule was changed"):
        loaded.set_params(rule="bp" if rule != "bp" else "dfa").partial_fit(x, y)


def test_parameters_of_numpys_numbers_are_saved(tmp_path):
    x, y = blobs()
    head = small(features=np.int64(8), classes=list(np.unique(y)), hidden_layer_sizes=(np.int64(8),)).fit(x, y)
    head.save(tmp_path / "h")
    loaded = OnlineHead.load(tmp_path / "h")
    assert (loaded.classes, loaded.hidden_layer_sizes) == ([0, 1, 2], (8,))
    assert same_state(head, loaded)


def test_the_file_does_not_grow(tmp_path):
    x, y = blobs(600)
    head = small(replay=2, momentum=0.5)
    sizes = []
    for part in range(3):
        head.partial_fit(x[200 * part : 200 * part + 200], y[200 * part : 200 * part + 200], classes=[0, 1, 2])
        head.save(tmp_path / "head.safetensors")
        sizes.append((tmp_path / "head.safetensors").stat().st_size)
    assert sizes[0] == sizes[1] == sizes[2]


def test_names_of_classes_and_saving_too_early(tmp_path):
    x, y = blobs()
    head = small().fit(x, np.array(["b", "a", "ccc"])[y])
    head.save(tmp_path / "h")
    assert OnlineHead.load(tmp_path / "h").classes_.tolist() == ["a", "b", "ccc"]
    with pytest.raises(UsageError, match="before the first batch"):
        small().save(tmp_path / "i")
    with pytest.raises(RunError, match="cannot be written"):
        head.save(tmp_path / "no" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["h"]


@pytest.fixture
def file(tmp_path):
    x, y = blobs()
    small(replay=1).fit(x, y).save(tmp_path / "head.safetensors")
    return tmp_path / "head.safetensors"


def rewritten(file, change):
    """The file with its description, or its tensors, changed."""
    with safetensors.safe_open(file, framework="pt") as stored:
        text = json.loads(stored.metadata()["torchdfa.online"])
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    change(text, tensors)
    file.write_bytes(safetensors.torch.save(tensors, {"torchdfa.online": json.dumps(text)}))


@pytest.mark.parametrize(
    "change, sentence",
    [
        (lambda t, _: t.update(format=2), "format 2"),
        (lambda t, _: t.pop("format"), "names no format"),
        (lambda t, _: t.update(classes=[0, 0, 1]), "labels that all differ"),
        (lambda t, _: t.update(classes=[]), "lacks"),
        (lambda t, _: t.update(features=10**12), "larger head than the file holds"),
        (lambda t, _: t["parameters"].update(hidden_layer_sizes=[10**9]), "larger head"),
        (lambda t, _: t["parameters"].update(replay=10**12), "larger head"),
        (lambda t, _: t["parameters"].update(hidden_layer_sizes=[15]), "must be"),
        (lambda t, _: t["parameters"].update(rule="x"), "rule='x'"),
        (lambda t, _: t["parameters"].update(canary=1), "canary"),
        (lambda t, _: t.update(parameters=3), "lacks"),
        (lambda _, s: s.pop("counts"), "its tensors are not those"),
        (lambda _, s: s.update(extra=torch.zeros(1)), "'extra' is in one of them only"),
        (lambda _, s: s["layers.0.weight"].fill_(float("nan")), "values that cannot be"),
        (lambda _, s: s["counts"].fill_(-1), "values that cannot be"),
        (lambda _, s: s.update({"layers.0.bias": torch.zeros(16, dtype=torch.float64)}), "'layers.0.bias' must be"),
    ],
)
def test_files_that_are_not_loaded(file, change, sentence):
    rewritten(file, change)
    with pytest.raises(UsageError, match=sentence):
        OnlineHead.load(file)


def test_no_code_runs(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "canary"), "w"))

    (tmp_path / "head.safetensors").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(UsageError, match="damaged or no safetensors file"):
        OnlineHead.load(tmp_path / "head.safetensors")
    assert not (tmp_path / "canary").exists()
    with pytest.raises(UsageError, match="does not exist"):
        OnlineHead.load(tmp_path / "nothing")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_raise_nothing_but_usage_errors(file, data):
    whole = file.read_bytes()
    header = struct.unpack("<Q", whole[:8])[0]
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, min(len(whole), header + 400) - 1))] = data.draw(st.integers(0, 255))
    target = file.with_name("damaged")
    target.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged)
    try:
        OnlineHead.load(target)
    except UsageError as error:
        assert "\n" not in str(error)
