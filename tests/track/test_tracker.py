from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from torchdfa.errors import RunError, UsageError
from torchdfa.track import demo, synthetic
from torchdfa.track.boxes import overlap
from torchdfa.track.checks import checked_box
from torchdfa.track.options import preset
from torchdfa.track.tracker import Tracker
from track.small import frames, network, track, tracker


@pytest.fixture(scope="module")
def made():
    return frames(10)


@pytest.mark.parametrize("rule", ["bp", "bdfa"])
def test_it_follows_a_target_that_moves(rule):
    images, boxes = synthetic.sequence(11)
    t = Tracker(
        None, preset("pymdnet", rule=rule, threads=1, **demo.SMALL), network=demo.small_network(), crop=demo.CROP
    )
    found = track(t, images, boxes)
    assert overlap(found, boxes).mean() > 0.6
    assert overlap(np.tile(boxes[0], (11, 1)), boxes).mean() < 0.5, "a box that stays is no track"
    assert (t.frame, t.counts["long"]) == (11, 1)
    assert t.lost == (t.score <= 0)
    assert set(t.seconds) == {"features", "update", "regressor", "rest"}


def test_the_same_seed_gives_the_same_boxes_and_another_does_not(made):
    images, boxes = made
    first = track(tracker(seed=3), images[:5], boxes)
    torch.manual_seed(99)  # what else draws numbers does not matter
    assert np.array_equal(track(tracker(seed=3), images[:5], boxes), first)
    assert not np.array_equal(track(tracker(seed=4), images[:5], boxes), first)


def test_tracking_leaves_the_generator_of_others_alone(made):
    images, boxes = made
    t = tracker()
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    track(t, images[:2], boxes)
    Tracker(rule="bdfa")
    assert torch.equal(torch.rand(3), expected)


def test_a_second_target_starts_afresh(made):
    images, boxes = made
    t = tracker()
    first = track(t, images[:3], boxes)
    track(t, images[4:6], boxes[4:])
    assert np.array_equal(track(t, images[:3], boxes), first)


def test_it_searches_wider_and_learns_while_the_target_is_lost(made):
    images, boxes = made
    t = tracker()
    t.init(images[0], boxes[0])
    blank = np.full_like(images[0], 128)
    with torch.no_grad():
        t.learner.layer("fc6").bias[1] -= 100
    for k in range(1, 4):
        t.update(blank)
        assert t.lost
        assert t.trans == pytest.approx(0.6 * 1.1**k)
    assert t.counts["short"] == 3
    assert len(t.positive) == 1, "nothing is remembered of frames without the target"


def test_memory_is_bounded(made):
    images, boxes = made
    t = tracker(long_frames=3, short_frames=2, long_interval=100)
    track(t, images[:8], boxes)
    assert (len(t.positive), len(t.negative)) == (3, 2)


def test_no_learning_at_all_is_allowed(made):
    images, boxes = made
    t = tracker(first_iterations=0, iterations=0, regress=False)
    assert track(t, images[:3], boxes).shape == (3, 4)


def test_the_papers_boxes_are_whole_pixels(made):
    images, boxes = made
    found = track(tracker(round_boxes=True, regress=False, whiten=True), images[:3], boxes)
    assert np.array_equal(found, found.round())


def test_got10k_can_call_it_as_it_is(made, tmp_path):
    images, boxes = made
    files = []
    for k, image in enumerate(images[:3]):
        Image.fromarray(image).save(tmp_path / f"{k}.png")
        files.append(str(tmp_path / f"{k}.png"))
    t = tracker()
    assert Tracker.forward_test is Tracker.track  # its release and its repository name it differently
    found, times = t.track(files, boxes[0], visualize=False)
    assert (found.shape, times.shape) == ((3, 4), (3,))
    assert (times > 0).all()
    assert np.array_equal(found, track(tracker(), images[:3], boxes))
    assert t.is_deterministic
    assert t.name == "MDNet-bp"


def test_grey_frames_and_frames_of_another_size_go_on(made):
    images, boxes = made
    t = tracker()
    t.init(images[0], boxes[0])
    t.update(Image.fromarray(images[1]).convert("L"))
    with pytest.warns(UserWarning, match=r"change their size, from \(96, 72\) to \(100, 80\)"):
        t.update(Image.fromarray(images[2]).resize((100, 80)))
    assert np.isfinite(t.box).all()


@pytest.mark.parametrize(
    "box, words",
    [
        ([10, 10, 0, 10], "too small"),
        ([10, 10, 3, 30], "too small"),
        ([10, 10, -5, 10], "too small"),
        ([float("nan"), 10, 20, 20], "NaN"),
        ([10, 10, float("inf"), 20], "NaN or infinity"),
        ([200, 10, 20, 20], "outside the image of 96 x 72"),
        ([-30, 10, 20, 20], "outside"),
        ([0, 0, 200, 20], "larger than the image"),
        ([1, 2, 3], "four numbers"),
        ("left", "four numbers"),
        (None, "four numbers"),
    ],
)
def test_a_box_that_cannot_be_tracked_is_refused(box, words):
    with pytest.raises(UsageError, match=words):
        checked_box(box, (96, 72))


def test_a_doubtful_box_is_warned_of():
    with pytest.warns(UserWarning, match="below 10 pixels"):
        checked_box([10, 10, 6, 30], (96, 72))
    with pytest.warns(UserWarning, match="fills the image"):
        checked_box([0, 0, 90, 70], (96, 72))
    with pytest.raises(RunError, match="too small to track"):
        checked_box([0, 0, 8, 8], (18, 72))


@pytest.mark.filterwarnings("ignore:the box")
def test_a_target_without_samples_is_an_error_and_with_few_is_said(made):
    with pytest.raises(RunError, match="no positive samples can be drawn around the box 30,30,5,5"):
        tracker(regress=False).init(made[0][0], [30, 30, 5, 5])
    t = tracker()
    with pytest.warns(UserWarning, match="boxes are not refined"):
        t.init(made[0][0], [0, 0, 96, 72])
    assert np.isfinite(t.update(made[0][1])).all()


def test_wrong_use_is_said():
    with pytest.raises(UsageError, match="call init"):
        tracker().update(np.zeros((72, 96, 3), np.uint8))
    with pytest.raises(UsageError, match="either config or"):
        Tracker(None, tracker().config, rule="bp")
    with pytest.raises(UsageError, match="share_features is for VGG-M"):
        tracker(share_features=True)
    with pytest.raises(UsageError, match="no option 'learning_rate'"):
        Tracker(None, learning_rate=1)


def test_bf16_where_it_is_slow_falls_back_with_a_message(monkeypatch):
    from torchdfa.train import machine

    monkeypatch.setattr(machine, "cpu_info", lambda: {"cpu": "old", "cpu_flags": []})
    with pytest.warns(UserWarning, match="no fast bf16"):
        assert not Tracker(None, precision="bf16", network=network(), crop=27, device="cpu").bf16


def test_the_network_of_the_paper_tracks_too(made):
    """VGG-M itself, untrained, few samples: what a user without weights gets."""
    images, boxes = made
    few = {"first_positives": 8, "first_negatives": 16, "mined": 16, "candidates": 8, "regress_samples": 10,
           "frame_positives": 4, "frame_negatives": 8, "positives": 4, "negatives": 12, "first_iterations": 2,
           "threads": 1}  # fmt: skip
    t = Tracker(rule="bdfa", **few)
    assert track(t, images[:2], boxes).shape == (2, 4)
    assert t.positive[0].shape[1] == 4608
    shared = Tracker(rule="bdfa", share_features=True, **few)
    shared.init(images[0], boxes[0])
    exact = t._compute(torch.from_numpy(boxes[:1]))
    t.image, t.size = shared.image, shared.size
    exact = t._compute(torch.from_numpy(boxes[:1]))
    near = shared._compute(torch.from_numpy(boxes[:1]), shared=True)
    assert torch.nn.functional.cosine_similarity(exact, near)[0] > 0.95
