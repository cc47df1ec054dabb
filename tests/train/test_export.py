from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import torchdfa
from torchdfa.errors import RunError, UsageError
from torchdfa.train import models
from torchdfa.train.batches import Batches
from torchdfa.train.description import FORMAT, Description
from torchdfa.train.export import DESCRIPTION, WEIGHTS, load_model, predictions, save

CLASSES = ("ant", "bee", "cat")
MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)


def build(name="cnn", size=8, seed=0):
    args = {"classes": 3, "channels": 3, "image_size": size, "fc_width": 6}
    torch.manual_seed(seed)
    return models.build(name, **args), args


def save_tiny(folder, name="cnn", rule=None, **changes):
    model, args = build(name)
    if rule:
        torchdfa.convert_(model, rule)
    model(torch.randn(16, 3, 8, 8))  # moves the running figures of batch norm away from 0 and 1
    kwargs = {"model_name": name, "model_args": args, "classes": CLASSES, "mean": MEAN, "std": STD, "image_size": 8}
    save(folder, model, **(kwargs | changes))
    return model.eval()


def images(n=5):
    return torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def normalised(x):
    batches = Batches(
        x, torch.zeros(len(x), dtype=torch.long), len(x), mean=MEAN, std=STD, augment=False, shuffle=False,
        generator=torch.Generator(), device="cpu", channels_last=False,
    )  # fmt: skip
    return next(iter(batches))[0]


def rewrite(folder, change):
    """Apply `change` to the description in the header of the weights."""
    file = folder / WEIGHTS
    header = json.loads((folder / DESCRIPTION).read_text())
    text = change(header)
    text = text if isinstance(text, str) else json.dumps(header)
    file.write_bytes(safetensors.torch.save(safetensors.torch.load_file(file), {"torchdfa": text}))


@pytest.mark.parametrize("name", ["cnn", "mlp"])
@pytest.mark.parametrize("rule", [None, "fa", "dfa", "bdfa", "frozen"])
def test_outputs_are_bit_equal_after_save_and_load(tmp_path, name, rule):
    model = save_tiny(tmp_path, name, rule)
    loaded = load_model(tmp_path)
    x = images()
    assert torch.equal(loaded(x), model(normalised(x)))
    assert torch.equal(loaded(x), load_model(tmp_path / WEIGHTS)(x))


def test_feedback_is_left_out_and_the_model_is_untouched(tmp_path):
    model, args = build("mlp")
    torchdfa.convert_(model, "bdfa")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    save(tmp_path, model, model_name="mlp", model_args=args, classes=CLASSES, mean=MEAN, std=STD, image_size=8)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    stored = safetensors.torch.load_file(tmp_path / WEIGHTS)
    assert set(stored) == set(models.build("mlp", **args).state_dict()) < set(before)


def test_a_loaded_model_says_what_it_is_and_is_plain(tmp_path):
    save_tiny(tmp_path, rule="bdfa", record={"rule": "CBDFA product", "epoch": 3})
    loaded = load_model(str(tmp_path))
    assert loaded.classes == CLASSES
    assert loaded.image_size == 8
    assert loaded.description.record == {"rule": "CBDFA product", "epoch": 3}
    assert not loaded.training
    assert type(loaded.network.classifier[0]) is nn.Linear
    assert "3 classes, 8x8 pixels" in repr(loaded)


def test_the_weights_alone_are_enough(tmp_path):
    model = save_tiny(tmp_path)
    alone = tmp_path / "mine.safetensors"
    (tmp_path / WEIGHTS).rename(alone)
    (tmp_path / DESCRIPTION).unlink()
    assert torch.equal(load_model(alone)(images()), model(normalised(images())))


def test_floats_in_0_to_1_mean_the_same_as_uint8(tmp_path):
    save_tiny(tmp_path)
    loaded = load_model(tmp_path)
    torch.testing.assert_close(loaded(images() / 255), loaded(images()), rtol=1e-5, atol=1e-5)


def test_channels_last_and_half_weights_can_be_saved(tmp_path):
    model, args = build()
    model.to(memory_format=torch.channels_last, dtype=torch.bfloat16)
    save(tmp_path, model, model_name="cnn", model_args=args, classes=CLASSES, mean=MEAN, std=STD, image_size=8)
    loaded = load_model(tmp_path).network.state_dict()
    assert all(torch.equal(loaded[k], v.to(loaded[k].dtype)) for k, v in model.state_dict().items())


def test_saving_again_replaces_both_files_and_leaves_nothing_else(tmp_path):
    save_tiny(tmp_path)
    first = (tmp_path / WEIGHTS).read_bytes()
    save_tiny(tmp_path, classes=("x", "y", "z"))
    assert load_model(tmp_path).classes == ("x", "y", "z")
    assert (tmp_path / WEIGHTS).read_bytes() != first
    assert sorted(p.name for p in tmp_path.iterdir()) == [DESCRIPTION, WEIGHTS]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    with pytest.raises(RunError, match="gone"):
        save_tiny(tmp_path / "gone")


def test_another_network_than_the_named_one_is_not_saved(tmp_path):
    _, args = build()
    with pytest.raises(ValueError, match="it lacks 'classifier"):
        save(tmp_path, nn.Linear(2, 2), model_name="mlp", model_args=args, classes=CLASSES, mean=MEAN, std=STD, image_size=8)  # fmt: skip # noqa: E501
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 1, 8, 8), (2, 3, 9, 9), (2, 3, 8)])
def test_images_of_another_shape_are_named(tmp_path, shape):
    save_tiny(tmp_path)
    with pytest.raises(UsageError, match=r"images must have shape \(N, 3, 8, 8\)"):
        load_model(tmp_path)(torch.zeros(shape))


def test_predictions_rank_and_refuse_what_is_not_finite():
    logits = torch.tensor([[0.0, 1.0, 1.0, -1.0, 0.0, 0.0], [9.0, 0.0, 0.0, 0.0, 0.0, 0.0]])
    first, second = predictions(logits, "abcdef")
    assert [name for name, _ in first.top5] == ["b", "c", "a", "e", "f"]
    assert first.probability == pytest.approx(float(logits[0].double().softmax(0)[1]))
    assert (second.label, str(second)) == ("a", "a (99.9 %)")
    with pytest.raises(RunError, match="not finite"):
        predictions(torch.tensor([[float("inf"), 0.0]]), "ab")


# what must be refused, each with one sentence


def refused(path, match):
    with pytest.raises(UsageError, match=match) as caught:
        load_model(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    refused(tmp_path, r"model\.safetensors does not exist; pass the folder")
    refused(tmp_path / "nowhere", "nowhere does not exist")


def put(**values):
    return lambda header: header.update(values)


def put_arg(**values):
    return lambda header: header["model_args"].update(values)


CHANGES = {
    "newer": (put(format=FORMAT + 1), "'format' must be at most 1 for this version; install a newer one"),
    "no format": (lambda h: h.pop("format") and None, "'format' must be a positive whole number"),
    "not JSON": (lambda h: "{", "Expecting property name"),
    "no object": (lambda h: "[]", "'format' must be"),
    "nested": (lambda h: "[" * 100_000, "nested too deeply|Expecting"),
    "long number": (lambda h: '{"format": ' + "9" * 5000 + "}", "digits"),
    "unknown model": (put(model="resnet"), "'model' must be one of cnn, mlp, vgg16"),
    "model no name": (put(model=["cnn"]), "'model' must be one of"),
    "no classes": (put(classes=[]), "'classes' must be at least one name"),
    "classes no list": (put(classes="abc"), "'classes' must be a list"),
    "classes no names": (put(classes=[1, 2, 3]), "'classes' must be a list of names"),
    "classes alike": (put(classes=["a", "a", "b"]), "names that all differ"),
    "classes fewer": (put(classes=["a", "b"]), "'model_args.classes' must be 2"),
    "mean nan": (put(mean=[float("nan")] * 3), "'mean' must be in 0..1"),
    "mean short": (put(mean=[0.5]), "'std' must be as many"),
    "std zero": (put(std=[0.0, 0.1, 0.1]), "'std' must be above 0"),
    "std huge": (put(std=[10**400, 0.1, 0.1]), "'std' must be above 0"),
    "size": (put(image_size=-8), "'image_size' must be a positive"),
    "size bool": (put(image_size=True), "'image_size' must be a positive"),
    "record": (put(record=[1]), "'record' must be an object"),
    "args": (put(model_args=[]), "'model_args' must be an object"),
    "unknown arg": (put_arg(depth=4), "model_args do not make a cnn"),
    "arg no number": (put_arg(fc_width="6"), "'model_args.fc_width' must be a positive"),
    "bn no bool": (put_arg(fc_batch_norm=1), "'model_args.fc_batch_norm' must be true or false"),
    "wider": (put_arg(fc_width=7), r"'classifier.0.weight' must be F32 \(7, 256\); found F32 \(6, 256\)"),
    "other network": (put_arg(fc_batch_norm=True), "its weights are not those of the network"),
    "absurd width": (put_arg(fc_width=10**18), "model_args do not make|must be F32"),
    "beyond int64": (put_arg(fc_width=10**300), "model_args do not make"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_a_wrong_description_is_named(tmp_path, what):
    save_tiny(tmp_path)
    change, match = CHANGES[what]
    rewrite(tmp_path, change)
    refused(tmp_path, match)


def test_weights_without_a_description_are_refused(tmp_path):
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / WEIGHTS)
    refused(tmp_path, "does not describe a model")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    save_tiny(tmp_path)
    tensors = safetensors.torch.load_file(tmp_path / WEIGHTS)
    tensors["classifier.0.weight"][0, 0] = float("nan")
    text = (tmp_path / DESCRIPTION).read_text()
    (tmp_path / WEIGHTS).write_bytes(safetensors.torch.save(tensors, {"torchdfa": text}))
    refused(tmp_path, "'classifier.0.weight' holds NaN or infinity")


class Bomb:
    def __reduce__(self):
        return Path.touch, (Path("canary"),)


def test_a_pickle_in_place_of_the_weights_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(pickle.dumps(Bomb()))
    refused(tmp_path, "damaged or no safetensors file")
    torch.save({"a": Bomb()}, tmp_path / WEIGHTS)
    refused(tmp_path, "damaged or no safetensors file")
    assert not (tmp_path / "canary").exists()


def test_an_absurd_header_is_refused(tmp_path):
    huge = {"a": {"dtype": "F32", "shape": [2**40, 2**20], "data_offsets": [0, 2**62]}}
    for header in (json.dumps(huge).encode(), b"{" * 1000, b""):
        (tmp_path / WEIGHTS).write_bytes(struct.pack("<Q", len(header)) + header)
        refused(tmp_path, "damaged or no safetensors file")
    (tmp_path / WEIGHTS).write_bytes(struct.pack("<Q", 2**62))
    refused(tmp_path, "damaged or no safetensors file")


@pytest.mark.parametrize("kept", [0, 7, 8, 100, 3000, -1])
def test_a_file_cut_short_is_refused(tmp_path, kept):
    save_tiny(tmp_path)
    (tmp_path / WEIGHTS).write_bytes((tmp_path / WEIGHTS).read_bytes()[:kept])
    refused(tmp_path, "damaged or no safetensors file")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
keys = st.sampled_from(["format", "model", "model_args", "classes", "mean", "std", "image_size", "record"])
arg_keys = st.sampled_from(["classes", "channels", "image_size", "fc_width", "fc_batch_norm", "x"])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(keys, json_values, max_size=3), st.dictionaries(arg_keys, json_values, max_size=3))
def test_any_json_is_a_model_or_a_usage_error(tmp_path, changes, arg_changes):
    if not (tmp_path / WEIGHTS).exists():
        save_tiny(tmp_path)
        (tmp_path / "good").write_bytes((tmp_path / WEIGHTS).read_bytes())
    (tmp_path / WEIGHTS).write_bytes((tmp_path / "good").read_bytes())

    def change(header):
        header["model_args"].update(arg_changes)
        header.update(changes)

    rewrite(tmp_path, change)
    try:
        assert load_model(tmp_path)(images(2)).shape == (2, 3)
    except UsageError as error:
        assert "cannot be used: " in str(error)


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=200) | json_values.map(json.dumps))
def test_any_text_is_a_description_or_a_value_error(text):
    with pytest.raises(ValueError, match=r"."):
        Description.from_json(text)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300) | st.tuples(st.integers(0, 200), st.integers(0, 255)))
def test_any_bytes_are_a_model_or_a_usage_error(tmp_path, damage):
    good = tmp_path / "good.safetensors"
    if not good.exists():
        save_tiny(tmp_path)
        (tmp_path / WEIGHTS).rename(good)
    content = bytearray(good.read_bytes())
    if isinstance(damage, tuple):
        content[damage[0]] = damage[1]
    (tmp_path / "bad.safetensors").write_bytes(content if isinstance(damage, tuple) else damage)
    try:
        load_model(tmp_path / "bad.safetensors")
    except UsageError as error:
        assert str(error).count("\n") == 0


def test_a_file_of_format_1_loads_for_ever():
    """Written once, never again: its weights are quarters, so its outputs are known."""
    model = load_model(Path(__file__).parent / "golden" / "model_format_1.safetensors")
    assert model.classes == ("no", "yes")
    assert model.description.record == {"rule": "BDFA product"}
    x = torch.tensor([[[[0, 51], [102, 255]]], [[[255, 0], [7, 200]]]], dtype=torch.uint8)
    torch.testing.assert_close(model(x), torch.tensor([[0.38125, 0.8], [0.4982843, 1.4905637]]), rtol=1e-6, atol=1e-6)


def test_description_survives_json():
    description = Description("mlp", build("mlp")[1], CLASSES, MEAN, STD, 8, {"rule": "BP"})
    assert Description.from_json(description.to_json()) == description
