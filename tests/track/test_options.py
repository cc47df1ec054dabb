from __future__ import annotations

from dataclasses import fields

import pytest

from torchdfa.cli import main
from torchdfa.errors import UsageError
from torchdfa.track.flags import settings
from torchdfa.track.options import TrackerConfig, preset


def test_the_presets_are_the_published_settings():
    ours, paper = preset("pymdnet"), preset("paper")
    assert (ours.first_lr, ours.first_iterations, ours.lr, ours.iterations) == (5e-4, 50, 1e-3, 15)
    assert (paper.first_lr, paper.first_iterations, paper.lr, paper.iterations) == (1e-4, 30, 3e-4, 10)
    assert (ours.batch, ours.positives, ours.mined) == (paper.batch, paper.positives, paper.mined) == (128, 32, 1024)
    assert ours.context == pytest.approx(1.299, abs=1e-3)
    assert paper.context == pytest.approx(1.427, abs=1e-3)
    assert (ours.clip, paper.clip) == (10.0, None)
    assert (ours.short_frames, paper.short_frames) == (30, 20)


@pytest.mark.parametrize("batch, expected", [(128, (32, 96, 1024)), (8, (2, 6, 64)), (2, (1, 1, 16))])
def test_smaller_batches_are_mined_as_hard(batch, expected):
    config = preset("pymdnet", batch=batch)
    assert (config.positives, config.negatives, config.mined) == expected


@pytest.mark.parametrize(
    "options, words",
    [
        ({"batch": 1}, "batch"),
        ({"batch": 2.5}, "batch"),
        ({"batch": 64, "positives": 32, "negatives": 96}, "128"),
        ({"mined": 10}, r"mined \(10\) must be at least negatives \(96\)"),
        ({"rule": "hebb"}, "rule must be one of bp, fa"),
        ({"feedback": "eq"}, "feedback must be one of"),
        ({"feedback_scale": 0}, "feedback_scale"),
        ({"feedback_scale": "mean"}, "feedback_scale"),
        ({"moment": "later"}, "moment must be one of start"),
        ({"seed": 1.0}, "seed must be a whole number"),
        ({"seed": True}, "seed must be a whole number"),
        ({"candidates": 0}, "candidates must be at least 1"),
        ({"best": 300}, "best"),
        ({"lr": 0.0}, "lr must be above 0"),
        ({"iterations": -1}, "iterations must be at least 0"),
        ({"precision": "int8"}, "precision must be one of"),
        ({"colour": 1}, "no option 'colour'"),
        ({"name": "x"}, "no option 'name'"),
        ({"preset": "paper"}, "no option 'preset'"),
        ({"regress": "False"}, "regress must be true or false; got 'False'"),
        ({"momentum": "abc"}, "momentum must be a number"),
        ({"momentum": 1}, "momentum must be at least 0 and below 1"),
        ({"clip": "abc"}, "clip must be a number"),
        ({"weight_decay": -1}, "weight_decay must be at least 0"),
        ({"last": -1}, "last must be at least 0"),
        ({"lr": float("inf")}, "lr must be a number"),
        ({"lr": None}, "lr must be a number"),
        ({"feedback_scale": float("inf")}, "feedback_scale must be unit"),
        ({"regress_areas": 5}, "regress_areas must be two numbers"),
        ({"regress_areas": [2, 1]}, "regress_areas must be two numbers"),
        ({"threads": "two"}, "threads must be a whole number"),
        ({"threads": -1}, "threads must be at least 1"),
        ({"seed": 10**20}, "seed must be at least 0 and below"),
    ],
)
def test_a_wrong_option_is_named(options, words):
    with pytest.raises(UsageError, match=words):
        preset("pymdnet", **options)
    with pytest.raises(UsageError, match="preset 'vital'"):
        preset("vital")


@pytest.mark.parametrize("name", [f.name for f in fields(TrackerConfig)])
def test_no_field_goes_unchecked(name):
    """NaN is a value of none of them, and a number below zero neither."""
    for wrong in (float("nan"), -1, [], {}):
        with pytest.raises(UsageError, match=f"{name}( |\\b).*must"):
            TrackerConfig(**{name: wrong})


def test_flags_are_no_options():
    assert settings(["lr=0.01", "regress=False", "clip=None", "whiten=true"], {"seed"}) == {
        "lr": 0.01, "regress": False, "clip": None, "whiten": True,
    }  # fmt: skip
    for given, words in ((["seed=7"], "seed has a flag of its own"), (["lr=1", "lr=2"], "lr is given twice"),
                         (["lr"], "name=value")):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            settings(given, {"seed"})


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["track", ".", "--rule", ""], "--rule must list each value once; got nothing"),
        (["track", ".", "--rule", "bp,bp"], "--rule must list each value once; got bp,bp"),
        (["track", ".", "--option", "batch=16"], "batch has a flag of its own"),
        (["track", ".", "--option", "rule=bp"], "rule has a flag of its own"),
        (["track", ".", "--option", "preset=paper"], "preset has a flag of its own"),
        (["track", ".", "--option", "name=x"], "no option 'name'"),
        (["track", ".", "--seed", "99999999999999999999"], "seed must be"),
        (["track", ".", "--threads", "-1"], "threads must be at least 1"),
        (["otb", "run", ".", "--option", "seed=7"], "seed has a flag of its own"),
        (["otb", "run", ".", "--option", "rule=bp"], "rule has a flag of its own"),
        (["pretrain", ".", "--threads", "0"], "threads must be at least 1"),
        (["pretrain", ".", "--lr", "inf"], "lr must be a number above 0"),
        (["pretrain", ".", "--seed", "-1"], "seed must be at least 0"),
    ],
)
def test_the_commands_refuse_it_in_a_sentence(arguments, words, capsys):
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_settings_survive_json():
    import json

    config = preset("paper", rule="bdfa", seed=3)
    assert TrackerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    config = preset("pymdnet")
    assert TrackerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
