from __future__ import annotations

import json
import signal

import numpy as np
import pytest
import typer

from torchdfa.cli import main
from torchdfa.errors import UsageError
from torchdfa.track import experiments, figures, playback, reporting, results, state
from torchdfa.track.experiments import run
from torchdfa.track.otb_commands import otb
from torchdfa.track.sequences import OTB
from torchdfa.track.tracker import Tracker
from torchdfa.train import runs
from track.folders import table
from track.small import CROP, FEW, network, write_sequences
from track.small import experiment as small_experiment

NAMES = ("Dog", "Girl")
ONE = {"rules": ("bdfa",), "seeds": 1, "sequences": ("Dog",)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_sequences(tmp_path_factory.mktemp("otb"), NAMES, 6)


@pytest.fixture
def small(monkeypatch):
    """Experiments with the small network."""
    load = state.load
    monkeypatch.setattr(
        experiments, "Tracker", lambda weights, config: Tracker(None, config, network=network(), crop=CROP)
    )
    monkeypatch.setattr(state, "load", lambda path, **options: load(path, network=network(7), **options))


def experiment(data, out, **options):
    # A batch of 32 has 8 positives, as FEW.
    return small_experiment(data, out, **({"batches": (32,), "seeds": 2} | options))


def test_every_tracker_runs_every_sequence_once(data, small, tmp_path):
    first = list(run(experiment(data, tmp_path)))
    assert [o.status for o in first] == ["done"] * 8
    folder = tmp_path / "OTB-100" / "bdfa-b32-s1"
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert names - {".lock"} == {"config.json", *(f"{n}.txt" for n in NAMES), *(f"times/{n}_time.txt" for n in NAMES),
                     *(f"records/{n}.json" for n in NAMES)}  # fmt: skip
    before = {p: p.stat().st_mtime_ns for p in folder.rglob("*.txt")}
    again = list(run(experiment(data, tmp_path)))
    assert [o.value for o in again] == [o.value for o in first]
    assert {p: p.stat().st_mtime_ns for p in folder.rglob("*.txt")} == before
    record = first[0].value
    assert record["frames"] == 6
    assert set(record["seconds"]) == {"features", "update", "regressor", "rest"}


def stopped(data, out):
    """A run of Dog that was stopped after its fourth frame: its outcome, and the tracker's folder."""
    original = Tracker.update

    def stop(self, image):
        if self.frame == 3:
            signal.raise_signal(signal.SIGTERM)
        return original(self, image)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tracker, "update", stop)
        (outcome,) = run(experiment(data, out, **ONE))
    return outcome, out / "OTB-100" / "bdfa-b32-s0"


def test_a_run_that_was_stopped_goes_on_to_the_same_boxes(data, small, tmp_path):
    list(run(experiment(data, tmp_path / "whole", **ONE)))
    outcome, place = stopped(data, tmp_path / "parts")
    assert outcome.status == "stopped"
    assert "frame 4 of 6 of Dog" in outcome.message
    assert not (place / "Dog.txt").exists(), "a half result is none"
    (outcome,) = run(experiment(data, tmp_path / "parts", **ONE))
    assert outcome.status == "done"
    assert (place / "Dog.txt").read_text() == (tmp_path / "whole/OTB-100/bdfa-b32-s0/Dog.txt").read_text()
    assert list((place / "partial").iterdir()) == []


@pytest.mark.parametrize("rows", [None, [], [[1, 2, 3, 4, 5, 6]] * 2, [[1, 2]] * 4, "all"])
def test_a_sequence_whose_saved_state_is_damaged_starts_over(data, small, tmp_path, rows):
    list(run(experiment(data, tmp_path / "whole", **ONE)))
    _, place = stopped(data, tmp_path / "parts")
    if rows is None:
        (place / "partial" / "Dog.safetensors").write_bytes(b"half")
    else:
        (place / "partial" / "Dog.json").write_text(json.dumps({"rows": rows}))
    with pytest.warns(UserWarning, match="Dog starts over: "):
        (outcome,) = run(experiment(data, tmp_path / "parts", **ONE))
    assert outcome.status == "done"
    assert (place / "Dog.txt").read_text() == (tmp_path / "whole/OTB-100/bdfa-b32-s0/Dog.txt").read_text()


def test_two_runs_do_not_share_a_folder(data, small, tmp_path):
    place = tmp_path / "OTB-100" / "bdfa-b32-s0"
    place.mkdir(parents=True)
    with runs.hold(place), pytest.raises(UsageError, match="in use by another process"):
        run(experiment(data, tmp_path, **ONE))
    assert [o.status for o in run(experiment(data, tmp_path, **ONE))] == ["done"], "and it is given free again"


def test_results_of_another_tracker_are_not_mixed(data, small, tmp_path):
    one = {"rules": ("bp",), "seeds": 1, "sequences": ("Dog",)}
    list(run(experiment(data, tmp_path, **one, frames=3)))
    with pytest.raises(UsageError, match="another tracker"):
        run(experiment(data, tmp_path, **one, frames=4))


def test_names_say_what_differs():
    def name(**options):
        return experiments.name_of(experiments.preset(options.pop("preset", "pymdnet"), **options))

    assert name() == "bp-b128-s0"
    assert name(rule="bdfa", batch=8, seed=2) == "bdfa-b8-s2"
    assert name(rule="bdfa", feedback="random", feedback_scale="match", moment="after_first_frame") == (
        "bdfa-random-match-after-b128-s0"
    )
    assert name(preset="paper", rule="dfa") == "dfa-paper-b128-s0"


def test_seed_0_of_all_trackers_comes_first(data, tmp_path):
    names = list(experiment(data, tmp_path, batches=(32, 8)).configs())
    assert names == [f"{rule}-b{batch}-s{seed}" for seed in (0, 1) for batch in (32, 8) for rule in ("bp", "bdfa")]


def test_seeds_can_begin_later(data, tmp_path):
    configs = experiment(data, tmp_path, rules=("bp",), first_seed=2).configs()
    assert {name: config.seed for name, config in configs.items()} == {"bp-b32-s2": 2, "bp-b32-s3": 3}


@pytest.mark.parametrize("options", [{"frames": 1}, {"rules": ()}, {"seeds": 0}, {"first_seed": -1}, {"batches": (1,)},
                                     {"rules": ("hebb",)}, {"sequences": ("Elephant",)},
                                     {"options": (("rule", "bp"),)}, {"options": (("batch", 8),)}])  # fmt: skip
def test_wrong_experiments_are_refused_before_anything_runs(data, tmp_path, options):
    with pytest.raises(UsageError):
        run(experiment(data, tmp_path, **options))
    assert not (tmp_path / "OTB-100").exists()


@pytest.fixture
def scored(data, tmp_path):
    """Two rules at two batch sizes with two seeds, their boxes off by a known number of pixels."""
    truth = OTB(data, missing="skip")
    for batch in (32, 8):
        for rule, off in (("bp", 2.0), ("bdfa", 4.0)):
            for seed in (0, 1):
                boxes = {s.name: s.boxes + np.array([off + seed, 0, 0, 0]) for s in truth}
                results.write(tmp_path / "r", results.Results(f"{rule}-b{batch}-s{seed}", boxes))
    return reporting.score_all([tmp_path / "r"], truth)


def test_seeds_are_gathered_and_rules_compared_in_pairs(scored, tmp_path):
    arms = reporting.arms(scored)
    assert [(arm.name, len(arm.scores)) for arm in arms] == [
        ("bp-b32", 2),
        ("bdfa-b32", 2),
        ("bp-b8", 2),
        ("bdfa-b8", 2),
    ]
    compared = reporting.comparisons(arms)
    assert list(compared) == ["bdfa-b32 - bp-b32", "bdfa-b8 - bp-b8"]
    assert compared["bdfa-b8 - bp-b8"].difference < 0
    assert compared["bdfa-b8 - bp-b8"].verdict == "too few sequences to tell"
    mean, std = arms[0].mean_and_std("auc")
    values = [s.auc for s in scored if s.tracker.startswith("bp-b32")]
    assert mean == pytest.approx(np.mean(values))
    assert std == pytest.approx(np.std(values, ddof=1))
    reporting.write(tmp_path / "report", scored)
    text = (tmp_path / "report" / "report.md").read_text()
    assert "| bp-b32 | 2 |" in text
    assert "of 100 | otb |" in text
    assert set(json.loads((tmp_path / "report" / "performance.json").read_text())) == {s.tracker for s in scored}


def test_figure_6_shows_means_and_bands(scored, tmp_path):
    written = figures.figure6(scored, tmp_path)
    assert written[0].read_bytes().startswith(b"\x89PNG")
    rows = table(written[1])
    assert {(row["batch"], row["rule"]) for row in rows} == {("32", "bp"), ("32", "bdfa"), ("8", "bp"), ("8", "bdfa")}
    at = next(r for r in rows if (r["batch"], r["rule"], r["plot"], r["threshold"]) == ("8", "bdfa", "success", "0.5"))
    pair = [s.success[10] for s in scored if s.tracker.startswith("bdfa-b8")]
    assert float(at["mean"]) == pytest.approx(np.mean(pair))
    assert float(at["std"]) == pytest.approx(np.std(pair, ddof=1))
    with pytest.raises(UsageError, match="two rules at one batch size"):
        figures.figure6([s for s in scored if s.tracker.startswith("bp")], tmp_path)


def test_plots_and_their_tables(scored, tmp_path):
    written = figures.one_pass(scored, tmp_path) + figures.attributes(scored, tmp_path)
    assert [p.name for p in written] == ["success.png", "success.csv", "precision.png", "precision.csv",
                                         "attributes.png", "attributes.csv"]  # fmt: skip
    rows = table(tmp_path / "precision.csv")
    assert len(rows) == 51
    assert float(rows[3]["bp-b32-s1"]) == pytest.approx(1.0), "3 pixels off"
    assert float(rows[2]["bp-b32-s1"]) == pytest.approx(1 / 6), "but for the first frame"


def test_stored_results_are_played(scored, data, tmp_path):
    count = playback.play("dog", [tmp_path / "r"], data, tmp_path / "frames", frames=2)
    assert count == 2
    assert len(list((tmp_path / "frames").iterdir())) == 2
    results.write(tmp_path / "other", results.Results("x", {"Bolt": np.ones((3, 4))}))
    with pytest.raises(UsageError, match="x has no result of Dog"):
        playback.play("dog", [tmp_path / "other"], data, tmp_path / "f2")


def test_folders_without_results_are_named(tmp_path):
    with pytest.raises(UsageError, match="no results in"):
        reporting.tracker_folders([tmp_path])
    with pytest.raises(UsageError, match="not a folder"):
        reporting.tracker_folders([tmp_path / "none"])
    for where in ("a", "b"):
        results.write(tmp_path / where, results.Results("x", {"Bolt": np.ones((3, 4))}))
    with pytest.raises(UsageError, match="two folders of results are named 'x'"):
        reporting.tracker_folders([tmp_path / "a", tmp_path / "b"])


def test_lengths_that_differ_can_be_accepted_where_one_runs_and_plays(data, small, tmp_path):
    write_sequences(tmp_path / "otb", ("Dog",), 6)
    truth = tmp_path / "otb" / "Dog" / "groundtruth_rect.txt"
    truth.write_text("".join(truth.read_text().splitlines(keepends=True)[:4]))
    one = {"rules": ("bp",), "seeds": 1}
    with pytest.raises(UsageError, match="pass --truncate"):
        run(experiment(tmp_path / "otb", tmp_path / "r", **one))
    (outcome,) = run(experiment(tmp_path / "otb", tmp_path / "r", truncate=True, **one))
    assert outcome.value["frames"] == 4
    with pytest.raises(UsageError, match="pass --truncate"):
        playback.play("Dog", [tmp_path / "r" / "OTB-100"], tmp_path / "otb", tmp_path / "frames")
    assert playback.play("Dog", [tmp_path / "r" / "OTB-100"], tmp_path / "otb", tmp_path / "frames", truncate=True) == 4
    for command in ("run", "play"):
        assert "--truncate" in {o for p in _parameters(command) for o in p.opts}


def _parameters(command):
    return typer.main.get_command(otb).commands[command].params


def test_the_exit_code_tells_a_signal_from_the_end_of_the_time(data, small, tmp_path, monkeypatch, capsys):
    few = [f"--option={k}={v}" for k, v in FEW.items() if k not in ("positives", "negatives", "mined", "threads")]
    command = ["otb", "run", str(data), "--missing=skip", "--sequences=Dog,Girl", "--rule=bp", "--batch=32",
               "--threads=1", f"--out={tmp_path}", *few]  # fmt: skip
    assert main([*command, "--hours=1e-9"]) == 0
    assert "2 not begun" in capsys.readouterr().out
    original = Tracker.update

    def stop(self, image):
        signal.raise_signal(signal.SIGINT)
        return original(self, image)

    monkeypatch.setattr(Tracker, "update", stop)
    assert main(command) == 130
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.setattr(Tracker, "update", original)
    assert main(command) == 0
