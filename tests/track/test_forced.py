"""Many heads on the same crops: what each learns is what it would learn alone."""

from __future__ import annotations

import signal

import numpy as np
import pytest
import torch

from torchdfa.errors import UsageError
from torchdfa.track import experiments, figures, forced, reporting, synthetic
from torchdfa.track.forced import Forced
from torchdfa.track.learner import Learner
from torchdfa.track.options import preset
from torchdfa.track.sequences import OTB
from torchdfa.track.tracker import Tracker
from track.small import CROP, FEW, network, write_sequences
from track.small import experiment as small_experiment

NAMES = ("Dog", "Girl")


def heads(*rules, seeds=(0,), **options):
    settings = {**FEW, "threads": 1, "long_interval": 2} | options
    return {f"{rule}-s{seed}": preset("pymdnet", rule=rule, seed=seed, **settings) for rule in rules for seed in seeds}


def frames(n=6):
    return synthetic.sequence(n, size=(96, 72), side=20, seed=1)


def follow(configs, n=6, truth=None, net=None):
    images, boxes = frames(n)
    boxes = boxes if truth is None else truth
    these = Forced(None, configs, network=net or network(), crop=CROP)
    these.start(images[0], boxes[0])
    return these, [these.follow(image, box) for image, box in zip(images[1:], boxes[1:], strict=True)]


def test_a_head_finds_the_same_alone_and_among_others():
    configs = heads("bp", "bdfa", "frozen", seeds=(0, 1))
    _, together = follow(configs)
    for name, config in configs.items():
        _, alone = follow({name: config})
        for a, b in zip(together, alone, strict=True):
            assert np.array_equal(a[name].box, b[name].box)
            assert a[name].score == b[name].score
    assert together[-1]["bp-s0"].score != together[-1]["bdfa-s0"].score
    assert together[-1]["bp-s0"].score != together[-1]["bp-s1"].score


def test_heads_do_not_track(monkeypatch):
    made = []
    original = Learner.__init__
    monkeypatch.setattr(Learner, "__init__", lambda self, *a: made.append(1) or original(self, *a))
    these, _ = follow(heads("bp", "bdfa"))
    assert len(made) == 2, "no learner that nobody teaches"
    images, boxes = frames(2)
    with pytest.raises(UsageError, match=r"call follow\(image, truth\)"):
        these.update(images[1])
    with pytest.raises(UsageError, match=r"call follow\(image, truth\)"):
        these.forward_test(images, boxes[0])


def test_features_are_computed_once_for_all_heads(monkeypatch):
    calls = []
    compute = Tracker._compute
    monkeypatch.setattr(
        Tracker, "_compute", lambda self, boxes, **o: calls.append(len(boxes)) or compute(self, boxes, **o)
    )
    follow(heads("bp"))
    one = list(calls)
    calls.clear()
    follow(heads("bp", "bdfa", seeds=(0, 1, 2)))
    assert calls == one


def test_heads_learn_from_the_truth_whatever_they_find(monkeypatch):
    """The examples of frame t lie around truth t, the candidates of t + 1 too; heads learn every other frame here."""
    boxes = frames()[1]
    around, taught = [], []
    monkeypatch.setattr(forced, "draw", lambda spread, box, *o: around.append(box.tolist()) or DRAW(spread, box, *o))
    learn = Learner.learn
    monkeypatch.setattr(Learner, "learn", lambda self, p, n, g: taught.append((len(p), len(n))) or learn(self, p, n, g))
    these, _ = follow(heads("bp"))
    assert around == boxes[:-1].tolist()
    assert these.target.tolist() == boxes[-1].tolist()
    near, far = FEW["frame_positives"], FEW["frame_negatives"]
    first = FEW["first_positives"]
    assert taught == [(first + 2 * near, far * 3), (first + 4 * near, far * 5)]


DRAW = forced.draw


def test_a_score_is_the_mean_of_the_best_five_of_the_head():
    _, found = follow(heads("bp"), 2)
    images, boxes = frames(2)
    again = Forced(None, heads("bp"), network=network(), crop=CROP)
    again.start(images[0], boxes[0])
    seen = []
    score = Learner.score
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Learner, "score", lambda self, f: seen.append(score(self, f)) or seen[-1])
        again.follow(images[1], boxes[1])
    assert found[0]["bp-s0"].score == pytest.approx(float(seen[0].topk(5).values.mean()))


def test_a_frame_without_a_true_box_leaves_the_place_as_it_was():
    truth = frames()[1].copy()
    truth[3] = np.nan
    these, found = follow(heads("bp"), truth=truth)
    assert len(found) == 5
    truth[5] = 0
    these, _ = follow(heads("bp"), truth=truth)
    assert these.target.tolist() == truth[4].tolist()


def test_settings_that_change_the_crops_must_agree():
    configs = heads("bp") | {"other": preset("pymdnet", **(FEW | {"candidates": 33, "long_interval": 2}))}
    with pytest.raises(UsageError, match="cannot differ in candidates; other does"):
        Forced(None, configs, network=network(), crop=CROP)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_sequences(tmp_path_factory.mktemp("otb"), NAMES, 5)


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(forced, "Forced", lambda weights, configs: Forced(None, configs, network=network(), crop=CROP))


def experiment(data, out, **options):
    return small_experiment(data, out, **({"batches": (32, 8), "forced": True} | options))


def boxes_of(folder):
    return {p.relative_to(folder): p.read_text() for p in folder.rglob("*.txt")}


def test_every_head_gets_a_folder_and_what_stands_is_kept(data, small, tmp_path):
    outcomes = list(experiments.run(experiment(data, tmp_path / "a")))
    assert [o.status for o in outcomes] == ["done", "done"]
    place = tmp_path / "a" / "OTB-100-forced"
    assert {p.name for p in place.iterdir()} == {"bp-b32-s0", "bp-b8-s0", "bdfa-b32-s0", "bdfa-b8-s0"}
    before = boxes_of(place)
    assert len(before) == 8
    list(experiments.run(experiment(data, tmp_path / "a", seeds=2)))
    list(experiments.run(experiment(data, tmp_path / "b", seeds=2)))
    after = boxes_of(place)
    assert {k: after[k] for k in before} == before
    assert after == boxes_of(tmp_path / "b" / "OTB-100-forced")


def test_reports_and_figure_6_say_what_it_is(data, small, tmp_path):
    list(experiments.run(experiment(data, tmp_path, frames=4)))
    otb = OTB(data, missing="skip")
    scores = reporting.score_all([tmp_path / "OTB-100-forced"], otb, missing="skip")
    assert {s.version for s in scores} == {"OTB-100, first 4 frames, candidates around the truth (forced)"}
    assert reporting.text(scores).startswith("OTB-100, first 4 frames, candidates around the truth (forced):\n")
    assert all(path.stat().st_size for path in figures.figure6(scores, tmp_path / "plots"))


def test_tracking_and_forced_results_are_not_mixed(data, small, tmp_path):
    list(experiments.run(experiment(data, tmp_path, sequences=("Dog",))))
    (tmp_path / "OTB-100-forced").rename(tmp_path / "OTB-100")
    with pytest.raises(UsageError, match="its forced differ"):
        list(experiments.run(experiment(data, tmp_path, sequences=("Dog",), forced=False)))


def test_a_stopped_sequence_leaves_nothing_and_starts_over(data, small, tmp_path):
    original = Forced.follow

    def stop(self, image, truth):
        if self.frame == 2:
            signal.raise_signal(signal.SIGTERM)
        return original(self, image, truth)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Forced, "follow", stop)
        (outcome,) = experiments.run(experiment(data, tmp_path, sequences=("Dog",)))
    assert (outcome.status, outcome.message) == ("stopped", "stopped at frame 3 of 5 of Dog; it starts over")
    assert boxes_of(tmp_path) == {}
    (outcome,) = experiments.run(experiment(data, tmp_path, sequences=("Dog",)))
    assert outcome.status == "done"
    assert outcome.value["frames"] == 5


def test_nothing_is_drawn_from_torchs_own_generator():
    net = network()
    before = torch.get_rng_state()
    follow(heads("bp", "bdfa"), 3, net=net)
    assert torch.equal(torch.get_rng_state(), before)
