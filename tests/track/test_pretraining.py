from __future__ import annotations

import json
import signal

import pytest
import torch

from torchdfa.cli import main
from torchdfa.errors import UsageError
from torchdfa.track import pretraining as module
from torchdfa.track import synthetic, weights
from torchdfa.track.augment import gaussian_blur, rotate, vary
from torchdfa.track.clips import find_clips
from torchdfa.track.pretrain_options import PretrainConfig
from torchdfa.track.pretraining import Pretraining, pretrain
from torchdfa.track.stopping import TrackingStopped
from torchdfa.train import machine
from torchdfa.train.runs import read_lines
from track.small import Features

SMALL = {"frames": 2, "positives": 8, "negatives": 16, "precision": "fp32", "device": "cpu"}


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    root = tmp_path_factory.mktemp("clips")
    for seed in (1, 2):
        synthetic.write(root / f"clip{seed}", 4, seed=seed, size=(96, 72), side=20)
    return root


@pytest.fixture
def small(monkeypatch):
    """The whole program with a small network: crops of 27 pixels, 64 features."""
    monkeypatch.setattr(module, "CROP", 27)
    original = Pretraining.__init__

    def init(self, config, clips):
        original(self, config, clips, Features(), width=64, hidden=32)

    monkeypatch.setattr(Pretraining, "__init__", init)
    monkeypatch.setattr(weights, "of_network", lambda network, origin, record: record)
    monkeypatch.setattr(weights, "save", lambda path, record: path.write_text(json.dumps(record)))


def test_all_layers_learn_and_the_clips_take_turns(clips, small):
    torch.manual_seed(0)
    run = Pretraining(PretrainConfig(cycles=30, lr=1e-3, **SMALL), find_clips([clips]))
    before = {k: v.clone() for k, v in run.network.state_dict().items()}
    branches, figures = [], []
    while run.step < run.steps:
        branches.append(run._branch())
        figures.append(run.take_step())
    assert all(sorted(branches[k : k + 2]) == [0, 1] for k in range(0, 60, 2))
    assert sum(loss for loss, _ in figures[-10:]) < 0.85 * sum(loss for loss, _ in figures[:10])
    assert sum(precision for _, precision in figures[-10:]) > 7
    moved = [name for name, value in run.network.state_dict().items() if not torch.equal(before[name], value)]
    assert len(moved) == len(before)


def test_a_run_that_was_stopped_ends_as_one_that_was_not(clips, small, tmp_path):
    config = PretrainConfig(cycles=4, **SMALL)

    def stop(step, *_):
        if step == 3:
            signal.raise_signal(signal.SIGTERM)

    torch.manual_seed(1)
    pretrain([clips], tmp_path / "whole", config)
    torch.manual_seed(1)
    with pytest.raises(TrackingStopped, match="stopped at step 3 of 8; the same command goes on"):
        pretrain([clips], tmp_path / "parts", config, show=stop)
    assert not (tmp_path / "parts" / "weights.safetensors").exists()
    pretrain([clips], tmp_path / "parts", config)

    def figures(name):
        lines = read_lines(tmp_path / name / "metrics.jsonl")
        return [(line["step"], line["loss"], line["precision"]) for line in lines]

    assert figures("whole") == figures("parts")
    assert len(figures("whole")) == 8
    done = (tmp_path / "parts" / "weights.safetensors").read_bytes()
    pretrain([clips], tmp_path / "parts", config)
    assert (tmp_path / "parts" / "weights.safetensors").read_bytes() == done, "finished: nothing to do"


def test_another_run_is_not_continued(clips, small, tmp_path):
    config = PretrainConfig(cycles=4, **SMALL)
    with pytest.raises(TrackingStopped):
        pretrain([clips], tmp_path, config, deadline=1.0)
    with pytest.raises(UsageError, match="other settings"):
        pretrain([clips], tmp_path, PretrainConfig(cycles=5, **SMALL))
    (tmp_path / "checkpoint.pt").write_bytes(b"<html>")
    with pytest.raises(UsageError, match="damaged"):
        pretrain([clips], tmp_path, config)


def test_finished_weights_are_not_those_of_other_settings(clips, small, tmp_path):
    config = PretrainConfig(cycles=1, **SMALL)
    path = pretrain([clips], tmp_path, config)
    done = path.read_bytes()
    with pytest.raises(UsageError, match=r"other settings \(cycles 1, not 2; seed 0, not 9\); take another --out"):
        pretrain([clips], tmp_path, PretrainConfig(cycles=2, seed=9, **SMALL))
    with pytest.raises(UsageError, match="other clips"):
        pretrain([clips / "clip1"], tmp_path, config)
    assert pretrain([clips], tmp_path, PretrainConfig(cycles=1, threads=1, **(SMALL | {"device": "auto"}))) == path
    assert path.read_bytes() == done
    (tmp_path / "config.json").unlink()
    with pytest.raises(UsageError, match=r"without the config\.json"):
        pretrain([clips], tmp_path, config)


def test_a_run_goes_on_with_other_threads_and_precision(clips, small, tmp_path):
    with pytest.raises(TrackingStopped):
        pretrain([clips], tmp_path, PretrainConfig(cycles=2, **SMALL), deadline=1.0)
    pretrain([clips], tmp_path, PretrainConfig(cycles=2, threads=1, **(SMALL | {"precision": "auto"})))
    assert len(read_lines(tmp_path / "metrics.jsonl")) == 4


def test_a_processor_slow_in_bf16_stays_with_fp32(clips, small, monkeypatch):
    monkeypatch.setattr(machine, "choose_precision", lambda wanted, device: wanted if wanted != "auto" else "fp32")
    config = PretrainConfig(cycles=1, **(SMALL | {"precision": "bf16"}))
    with pytest.warns(UserWarning, match="no fast bf16"):
        assert not Pretraining(config, find_clips([clips])).bf16


def test_the_end_of_the_time_is_no_failure(clips, small, tmp_path, capsys):
    def command(hours):
        return main(["pretrain", str(clips), "--out", str(tmp_path / "w"), "--hours", hours, "--threads", "1"])

    assert command("-1") == 2
    assert "--hours must be a positive number" in capsys.readouterr().err
    assert not (tmp_path / "w").exists()
    assert command("1e-9") == 0
    assert "stopped at step 1 of 200; the same command goes on" in capsys.readouterr().err


def test_the_network_of_the_paper_takes_a_step_and_is_exported_without_fc6(clips, tmp_path):
    config = PretrainConfig(cycles=1, frames=1, positives=1, negatives=1, precision="fp32", device="cpu", threads=1)
    first = sorted(clips.iterdir())[0]
    path = pretrain([first], tmp_path, config)
    found = weights.load(path)
    assert found.origin == "pretrained on 1 clips, seed 0"
    assert found.record["result"]["steps"] == 1
    start = weights.random(0)
    assert not torch.equal(found.tensors["features.conv1.weight"], start.tensors["features.conv1.weight"])
    again = PretrainConfig(cycles=1, start=str(path), precision="fp32", device="cpu")
    run = Pretraining(again, find_clips([first]))
    assert torch.equal(run.network.state_dict()["features.conv1.weight"], found.tensors["features.conv1.weight"])


@pytest.mark.parametrize("options", [{"cycles": 0}, {"frames": 3}, {"lr": 0.0}, {"norm": "vgg"}, {"seed": 1.5}])
def test_wrong_settings_are_named(options):
    with pytest.raises(UsageError, match=f"^({next(iter(options))}|positives)"):
        PretrainConfig(**options)


def test_augmentation():
    x = torch.randn(2, 3, 21, 21, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(rotate(x, 0.0), x, atol=1e-5)
    assert torch.allclose(rotate(x, 90.0), torch.rot90(x, 1, (2, 3)), atol=1e-4) or torch.allclose(
        rotate(x, 90.0), torch.rot90(x, -1, (2, 3)), atol=1e-4
    )
    flat = torch.full((1, 3, 9, 9), 5.0)
    assert torch.allclose(gaussian_blur(flat, 2.0), flat)
    assert gaussian_blur(x, 2.0).std() < 0.5 * x.std()
    seen = {bool(torch.equal(vary(x, torch.Generator().manual_seed(s)), x)) for s in range(5)}
    assert seen == {False}
