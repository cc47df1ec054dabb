"""Settings: every wrong one is named in one sentence, and they survive JSON."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchdfa.errors import UsageError
from torchdfa.train.config import TrainConfig, learning_rate, reconcile


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        ("rule", "dfaa", "--rule must be one of bp, fa, dfa, bdfa, frozen; got 'dfaa'"),
        ("init", "zero", "--init must be one of random, product; got 'zero'"),
        ("model", "resnet", "--model must be one of cnn, mlp, vgg16; got 'resnet'"),
        ("boundary", "x", "--boundary must be one of direct, transpose; got 'x'"),
        ("scale", "big", "--scale must be a positive number or one of unit, he, match; got 'big'"),
        ("scale", -1.0, "--scale must be a positive number or one of unit, he, match; got -1.0"),
        ("scale", math.nan, "--scale must be a positive number or one of unit, he, match; got nan"),
        ("lr", 0.0, "--lr must be a positive number; got 0.0"),
        ("lr", math.inf, "--lr must be a positive number; got inf"),
        ("epochs", 0, "--epochs must be at least 1; got 0"),
        ("batch_size", -3, "--batch-size must be at least 1; got -3"),
        ("momentum", 1.0, "--momentum must lie in 0 <= momentum < 1; got 1.0"),
        ("validate", 1.0, "--validate must be a fraction, 0 <= validate < 1; got 1.0"),
        ("layers", "some", "--layers must be one of head, all; got 'some'"),
        ("fc_layers", 0, "--fc-layers must be at least 1; got 0"),
        ("fc_layers", 1, "--fc-layers must be at least 2 with --rule bdfa, or take --layers all; got 1"),
        ("dropout", 1.0, "--dropout must lie in 0 <= dropout < 1; got 1.0"),
        ("conv_lr_factor", 0.0, "--conv-lr-factor must be a positive number; got 0.0"),
        ("test_every", 0, "--test-every must be at least 1; got 0"),
        (
            *("fixed_output", True),
            "--fixed-output must go with --fc-layers 1 or --rule frozen: nothing of the head learns; got True",
        ),
        ("epochs", "3", "--epochs must be of type int; got '3'"),
        ("seed", True, "--seed must be of type int; got True"),
        ("augment", 1, "--augment must be of type bool; got 1"),
        ("convolutions", "fft", "--convolutions must be one of auto, torch, winograd, im2col; got 'fft'"),
        ("precision", "int8", "--precision must be one of auto, fp32, bf16, fp16; got 'int8'"),
    ],
)
def test_a_wrong_setting_is_named(name: str, value: object, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        TrainConfig(**{name: value})  # type: ignore[arg-type]
    assert str(caught.value) == sentence


def test_settings_survive_json() -> None:
    config = TrainConfig(rule="dfa", scale=0.5, lr=0.1, subset=100, augment=True)
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_settings_of_a_newer_version_are_refused_by_name() -> None:
    with pytest.raises(UsageError, match="'label_smoothing', which this version"):
        TrainConfig.from_dict(TrainConfig().to_dict() | {"label_smoothing": 0.1})


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from([f.name for f in dataclasses.fields(TrainConfig)]), _JSON)
def test_any_json_value_of_a_setting_is_taken_or_refused(name: str, value: object) -> None:
    try:
        config = TrainConfig.from_dict(TrainConfig().to_dict() | {name: value})
    except UsageError as error:
        assert name.replace("_", "-") in str(error)
    else:
        assert getattr(config, name) == value


@given(_JSON)
def test_any_json_is_taken_or_refused(value: object) -> None:
    try:
        TrainConfig.from_dict(value)
    except UsageError:
        return
    assert value == {}


@pytest.mark.parametrize(
    "changes, label, name",
    [
        ({"rule": "bp"}, "BP", "digits-cnn-BP-s0"),
        ({"rule": "dfa"}, "CDFA product", "digits-cnn-CDFA-product-s0"),
        ({"rule": "bdfa", "init": "random", "seed": 3}, "CBDFA random", "digits-cnn-CBDFA-random-s3"),
        ({"rule": "bdfa", "model": "mlp"}, "BDFA product", "digits-mlp-BDFA-product-s0"),
        ({"rule": "dfa", "init": "random", "layers": "all"}, "DFA random", "digits-cnn-DFA-random-s0"),
        ({"rule": "frozen", "model": "vgg16"}, "Frozen", "digits-vgg16-Frozen-s0"),
        ({"rule": "bp", "data": "some/photos/"}, "BP", "photos-cnn-BP-s0"),
    ],
)
def test_labels_and_run_names(changes: dict[str, object], label: str, name: str) -> None:
    config = TrainConfig(**changes)  # type: ignore[arg-type]
    assert (config.label, config.run_name) == (label, name)


def test_schedules() -> None:
    def rates(schedule: str) -> list[float]:
        config = TrainConfig(lr=1.0, schedule=schedule)  # type: ignore[arg-type]
        return [learning_rate(config, step, 8) for step in (0, 2, 4, 6, 7)]

    assert rates("constant") == [1.0] * 5
    assert rates("step") == pytest.approx([1.0, 1.0, 0.1, 0.01, 0.01])
    expected = [(1 + math.cos(math.pi * step / 8)) / 2 for step in (0, 2, 4, 6, 7)]
    assert rates("cosine") == pytest.approx(expected)
    assert rates("cosine")[0] == 1.0


def test_resuming_with_the_same_settings_changes_nothing() -> None:
    config = TrainConfig(lr=None)
    assert reconcile(config, {"rule": config.rule, "lr": config.base_lr, "epochs": config.epochs}) == config


def test_resuming_with_another_setting_names_both_values() -> None:
    with pytest.raises(UsageError, match=r"^--batch-size 50 conflicts with the run to resume, which has 100; "):
        reconcile(TrainConfig(), {"batch_size": 50})
    with pytest.raises(UsageError, match=r"^--lr 0\.5 conflicts"):
        reconcile(TrainConfig(), {"lr": 0.5})


def test_data_may_have_moved_when_a_run_is_resumed() -> None:
    assert reconcile(TrainConfig(data_dir="old"), {"data_dir": "new"}).data_dir == "new"


def test_more_epochs_only_where_the_schedule_does_not_depend_on_them() -> None:
    constant = TrainConfig(schedule="constant", epochs=2)
    assert reconcile(constant, {"epochs": 4}).epochs == 4
    with pytest.raises(UsageError, match="only runs with --schedule constant can be made longer"):
        reconcile(TrainConfig(epochs=2), {"epochs": 4})
    with pytest.raises(UsageError, match="--epochs 1 conflicts"):
        reconcile(constant, {"epochs": 1})
