"""The maker: a clip, a small computer, no weights; then a set of her own results, scored and drawn."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchdfa.cli import main
from torchdfa.track import synthetic
from torchdfa.track.boxfile import read_boxes
from track.small import QUICK

OPTIONS = [part for name, value in QUICK.items() for part in ("--option", f"{name}={value}")]
FLAGS = ["--threads", "1", "--precision", "fp32", *OPTIONS]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """The folder where everything happens: clip/ is a folder of frames; otb/ holds two sequences."""
    home = tmp_path_factory.mktemp("home")
    synthetic.write(home / "clip", 3, size=(96, 72), side=20, seed=1)
    for seed, name in enumerate(("Dog", "Girl"), 1):
        synthetic.write(home / "otb" / name, 3, size=(96, 72), side=20, seed=seed)
    (home / "clip" / "groundtruth_rect.txt").unlink()
    return home


@pytest.fixture
def at_home(home, monkeypatch):
    monkeypatch.chdir(home)
    return home


def test_track_with_two_rules_side_by_side(home):
    flags = ["--rule", "bp,bdfa", "--batch", "8", "--out", "tracked", "--video", "frames", *FLAGS]
    command = [sys.executable, "-m", "torchdfa", "track", "clip", "--box", "6,8,20,22", *flags]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert "no --weights: untrained features" in done.stderr
    assert "bdfa: 3 frames" in done.stdout
    assert read_boxes(home / "tracked" / "bdfa.txt").shape == (3, 4)
    assert read_boxes(home / "tracked" / "bp.txt")[0].tolist() == [6, 8, 20, 22]
    assert len(list((home / "frames").glob("*.jpg"))) == 3


def test_run_report_plot_and_play(at_home, capsys):
    run = ["otb", "run", "otb", "--missing", "skip", "--batch", "8", "--frames", "2", "--out", "results", *FLAGS]
    assert main(run) == 0
    assert "4 done; results: results/OTB-100" in capsys.readouterr().out
    assert main(run) == 0, "what is finished is not run again"
    common = ["results/OTB-100", "--data", "otb", "--missing", "skip"]
    assert main(["otb", "report", *common, "--out", "report"]) == 0
    said = capsys.readouterr().out
    assert "2 of 100 | otb |" in said
    assert "bdfa-b8 - bp-b8" in said
    overall = json.loads(Path("report/performance.json").read_text())["bp-b8-s0"]["overall"]
    assert (overall["protocol"], overall["set"]) == ("otb", "OTB-100, first 2 frames")
    assert main(["otb", "plot", *common, "--out", "plots"]) == 0
    assert main(["otb", "plot", *common, "--out", "plots", "--figure6"]) == 0
    for name in ("success.png", "precision.png", "attributes.png", "figure6.png"):
        assert Path("plots", name).read_bytes().startswith(b"\x89PNG")
    assert main(["otb", "play", "dog", "results/OTB-100", "--data", "otb", "--out", "played"]) == 0
    assert main(["otb", "convert", "results/OTB-100", "--to", "pytracking", "--out", "converted"]) == 0
    assert "\t" in Path("converted/bp-b8-s0/Dog.txt").read_text()


def test_weights_are_made_from_clips_and_used(at_home, capsys):
    assert main(["pretrain", "otb", "--cycles", "1", "--out", "weights", "--threads", "1", "--precision", "fp32"]) == 0
    assert "weights: weights/weights.safetensors" in capsys.readouterr().out
    command = ["track", "clip", "--box", "6,8,20,22", "--weights", "weights/weights.safetensors", "--frames", "2"]
    assert main([*command, "--batch", "8", "--out", "trained", *FLAGS]) == 0
    assert json.loads(Path("trained/summary.json").read_text())["trackers"]["bdfa"]["weights"] == (
        "pretrained on 2 clips, seed 0"
    )


BAD = {
    "track": [
        (["nowhere", "--box", "1,2,30,40"], "no folder of frames, no video file"),
        (["clip"], "pass --box"),
        (["clip", "--box", "1,2,3"], "--box must be four numbers"),
        (["clip", "--box", "6,8,20,22", "--rule", "hebb"], "rule must be one of"),
        (["clip", "--box", "6,8,20,22", "--weights", "none.pth"], "'torchdfa pretrain FOLDER' makes weights"),
        (["clip", "--box", "6,8,20,22", "--option", "speed"], "--option must be name=value"),
        (["clip", "--box", "6,8,20,22", "--batch", "1"], "batch must be a whole number of at least 2"),
        (["clip", "--box", "6,8,20,22", "--out", "a.mp4", "--video", "b.mp4"], "pass one"),
    ],
    "pretrain": [
        (["nowhere"], "not a folder of clips"),
        (["clip"], "no clip in"),
        (["otb", "--cycles", "0"], "cycles must be at least 1"),
    ],
    "otb run": [
        (["nowhere"], "not a folder of OTB sequences"),
        (["otb"], "lacks 98 of the 100 sequences"),
        (["otb", "--sequences", "Dogg"], "the nearest are Dog"),
        (["otb", "--missing", "skip", "--batch", "128,x"], "--batch must be whole numbers"),
        (["otb", "--missing", "skip", "--seeds", "0"], "--seeds must be at least 1; got 0"),
        (["otb", "--missing", "skip", "--first-seed", "-1"], "--first-seed must be at least 0; got -1"),
        (["otb", "--missing", "skip", "--workers", "0"], "--workers must be at least 1"),
    ],
    "otb report": [
        (["nowhere", "--data", "otb", "--missing", "skip"], "not a folder of results"),
        (["otb", "--data", "otb", "--missing", "skip"], "no results in otb"),
        (["otb", "--data", "otb", "--protocol", "vot"], "must be one of otb, got10k"),
        (["otb", "--data", "otb", "--missing", "skip", "--frames", "1"], "--frames must be at least 2"),
    ],
    "otb plot": [
        (["otb"], "--data"),
        (["nowhere", "--data", "otb", "--missing", "skip"], "not a folder of results"),
        (["otb", "--data", "otb", "--set", "OTB-2015"], "must be one of OTB-2013"),
    ],
    "otb play": [
        (["Elefant", "otb", "--data", "otb"], "OTB has no sequence"),
        (["Dog", "nowhere", "--data", "otb"], "not a folder of results"),
        (["Dog", "otb", "--data", "clip"], "lacks 1 of the 1"),
    ],
    "otb convert": [
        (["nowhere", "--to", "otb"], "not a folder of results"),
        (["otb"], "--to"),
        (["clip", "--to", "otb"], "no results in clip"),
    ],
}


@pytest.mark.parametrize("command, arguments, words", [(c, *case) for c, cases in BAD.items() for case in cases])
def test_bad_input_is_one_sentence_and_leaves_nothing(at_home, capsys, command, arguments, words):
    before = sorted(p for p in at_home.iterdir())
    out = ["--out", "bad"] if command == "track" and "--out" not in arguments else []
    assert main([*command.split(), *arguments, *out]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("torchdfa: ")
    assert words in said
    assert sorted(p for p in at_home.iterdir()) == before
