from __future__ import annotations

import pytest

from torchdfa.errors import UsageError
from torchdfa.track import synthetic
from torchdfa.track.demo import demo
from track.folders import table


def test_the_demo_scores_draws_and_says_what_it_is(tmp_path):
    said = demo(tmp_path / "demo", frames=3)
    assert "not which rule tracks better" in said
    assert "too few sequences to tell" in said
    names = {p.name for p in (tmp_path / "demo").iterdir()}
    assert {"success.png", "precision.png", "success.csv", "precision.csv", "report.md", "results", "frames"} <= names
    (last,) = [r for r in table(tmp_path / "demo/precision.csv") if r["threshold"] == "50.0"]
    assert float(last["bdfa-b128-s0"]) == 1
    with pytest.raises(UsageError, match="not empty"):
        demo(tmp_path / "demo")


def test_sequences_are_the_same_each_time_and_their_boxes_right():
    images, boxes = synthetic.sequence(3, seed=5)
    again, _ = synthetic.sequence(3, seed=5)
    assert all((a == b).all() for a, b in zip(images, again, strict=True))
    x, y, w, h = boxes[2].astype(int)
    inside, red = images[2][y : y + h, x : x + w], images[2][..., 0].astype(int) - images[2][..., 2]
    assert (inside[..., 0].astype(int) - inside[..., 2]).mean() > 60, "the target is red and yellow"
    assert red.mean() < 20
