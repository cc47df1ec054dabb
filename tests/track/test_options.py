from __future__ import annotations

import pytest

from torchdfa.errors import UsageError
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
    ],
)
def test_a_wrong_option_is_named(options, words):
    with pytest.raises(UsageError, match=words):
        preset("pymdnet", **options)
    with pytest.raises(UsageError, match="preset 'vital'"):
        preset("vital")


def test_settings_survive_json():
    import json

    config = preset("paper", rule="bdfa", seed=3)
    assert TrackerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    config = preset("pymdnet")
    assert TrackerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
