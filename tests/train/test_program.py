"""Training from settings to a finished folder, and everything that is refused before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from small_runs import figures, small, weights
from torchdfa.errors import RunError, UsageError
from torchdfa.train import load_model, program, runs, train, winograd
from torchdfa.train.datasets import Data


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    train(small(epochs=2, tensorboard=True), folder)
    return folder


def test_a_run_folder_holds_everything(finished: Path) -> None:
    names = {path.name for path in finished.iterdir() if path.is_file() and not path.name.startswith(".")}
    assert names == {
        "config.json", "metrics.jsonl", "checkpoint.pt", "model.safetensors", "model.json", "result.json",
        "curves.png", "confusion.png", "worst.png",
        "manifest.json",
    }  # fmt: skip
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert list((finished / "tensorboard").glob("events.out.tfevents*"))
    assert runs.verify(finished) == 10


def test_the_settings_and_the_machine_are_kept(finished: Path) -> None:
    kept = json.loads((finished / "config.json").read_text())
    assert kept["config"] == json.loads(json.dumps(small(epochs=2, tensorboard=True).to_dict()))
    assert kept["resolved"]["precision"] == "fp32"
    assert kept["resolved"]["lr"] == small().base_lr
    assert kept["resolved"]["threads"] == 1
    assert kept["machine"]["torch"] == torch.__version__
    assert (kept["data"]["train_images"], kept["data"]["test_images"]) == (200, 359)
    assert [row["rule"] for row in kept["report"]["rows"]] == ["bp", "bdfa", "bdfa", "bp"]


def test_the_result_is_that_of_the_last_epoch(finished: Path) -> None:
    run = runs.read(finished)
    assert run.result is not None
    last = run.epochs[-1]
    assert {k: run.result[k] for k in ("top1", "top5", "epochs", "steps")} == {
        "top1": last["test_top1"], "top5": last["test_top5"], "epochs": 2, "steps": 14,
    }  # fmt: skip
    confusion = run.result["confusion"]
    hits = sum(confusion[i][i] for i in range(10))
    assert sum(map(sum, confusion)) == 359
    assert run.result["top1"] == pytest.approx(100 * hits / 359)
    # one bit an element, rounded up to bytes a row, and a float for the scale: 256 + 16 inputs, 10 classes
    assert run.result["feedback_bytes"] < 10 * (256 + 16) // 8 + 100
    assert run.result["label"] == "CBDFA product"


def test_the_exported_model_gives_the_same_accuracy(finished: Path) -> None:
    """Loaded from the folder and fed raw uint8 images; fp32 here as in training."""
    data = program.load(small())
    model = load_model(finished)
    with torch.no_grad():
        right = (model(data.test_x).argmax(1) == data.test_y).double().mean().item()
    result = runs.read(finished).result
    assert result is not None
    assert 100 * right == pytest.approx(result["top1"])


@pytest.fixture
def no_data(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> Data:
        raise AssertionError("data were read")

    monkeypatch.setattr("torchdfa.train.datasets.load", load)


@pytest.mark.usefixtures("no_data")
def test_folders_are_refused_before_data_are_read(finished: Path, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match="holds a finished run, which is never overwritten"):
        train(small(), finished)
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"not a run's \(mine\.txt\)"):
        train(small(), tmp_path)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


@pytest.mark.usefixtures("no_data")
def test_a_gpu_that_is_not_there_is_refused_before_data_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="--device cuda needs a GPU"):
        train(small(device="cuda"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.usefixtures("no_data")
def test_a_second_folder_in_use_is_found_before_the_first_run_trains(tmp_path: Path) -> None:
    configs = [small(rule="bp"), small(rule="dfa")]
    folders = program.folders(configs, tmp_path)
    folders[1].mkdir()
    (folders[1] / "mine.txt").write_text("")
    with pytest.raises(UsageError, match="CDFA-product-s0 holds files"):
        program.train_all(configs, folders)


def test_a_model_that_does_not_fit_the_images_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="multiple of 32; got 8; take --image-size 32"):
        train(small(model="vgg16"), tmp_path / "runs" / "run")
    assert not (tmp_path / "runs").exists(), "folders on the way go too, as the runs of the default"
    (tmp_path / "mine").mkdir()
    with pytest.raises(UsageError, match="take --image-size 32"):
        program.train_all(
            [small(model="vgg16", rule=rule) for rule in ("bp", "dfa")], [tmp_path / "mine" / name for name in "ab"]
        )
    assert not any((tmp_path / "mine").iterdir()), "a folder that was there stays"


def test_a_last_batch_of_one_image_is_refused_where_it_cannot_be_normalised(tmp_path: Path) -> None:
    data = program.load(small(subset=65))
    with pytest.raises(UsageError, match="--batch-size 32 leaves a last batch of one image out of 65"):
        program.check(small(subset=65, fc_batch_norm=True), data, 1)
    train(small(subset=65, epochs=1), tmp_path / "run")


def test_batches_are_shared_evenly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UsageError, match="--batch-size 32 must be a multiple of the 3 processes that share it"):
        program.launch(small(), program.machine.resolve(small()), tmp_path)


def test_several_rules_get_a_folder_each() -> None:
    configs = [small(rule=rule) for rule in ("bp", "bdfa")]
    assert program.folders(configs, None) == [Path("runs/digits-cnn-BP-s0"), Path("runs/digits-cnn-CBDFA-product-s0")]
    assert program.folders(configs, "here") == [Path("here/digits-cnn-BP-s0"), Path("here/digits-cnn-CBDFA-product-s0")]
    assert program.folders(configs[:1], "here") == [Path("here")]
    with pytest.raises(UsageError, match="--rule names a rule twice: bp, bp"):
        program.folders([configs[0]] * 2, None)


def test_seeds_share_their_images() -> None:
    a, b = (program.load(small(seed=seed, validate=0.1)) for seed in (0, 1))
    assert torch.equal(a.train_x, b.train_x)
    assert torch.equal(a.test_x, b.test_x)


def test_resuming_a_finished_run_changes_nothing(finished: Path) -> None:
    before = {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()}
    assert program.resume(finished) == runs.read(finished)
    assert {path: path.read_bytes() for path in finished.rglob("*") if path.is_file()} == before


def test_resuming_with_another_setting_changes_nothing(finished: Path) -> None:
    before = weights(finished)
    with pytest.raises(UsageError, match="--rule bp conflicts with the run to resume, which has bdfa"):
        program.resume(finished, {"rule": "bp"})
    with pytest.raises(UsageError, match=r"--epochs 9 conflicts .* cosine schedule"):
        program.resume(finished, {"epochs": 9})
    assert weights(finished) == before


@pytest.fixture
def unfinished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two epochs trained, the disk full as the second is saved."""
    save = program.checkpoint.save

    def full(path: Path, state: dict[str, Any]) -> None:
        if state["epoch"] == 2:
            raise RunError("disk full")
        save(path, state)

    monkeypatch.setattr(program.checkpoint, "save", full)
    monkeypatch.setattr("torchdfa.train.loop.SECONDS_BETWEEN_EPOCHS_SAVED", 0.0)
    with pytest.raises(RunError, match="disk full"):
        train(small(epochs=3), tmp_path / "run")
    monkeypatch.setattr(program.checkpoint, "save", save)
    return tmp_path / "run"


def test_a_full_disk_loses_nothing_that_was_saved(unfinished: Path, tmp_path: Path) -> None:
    """The second epoch's line was written before its checkpoint failed: it is trained, and written, again."""
    assert [line["epoch"] for line in figures(unfinished)] == [1, 2]
    program.resume(unfinished)
    train(small(epochs=3), tmp_path / "whole")
    assert weights(unfinished) == weights(tmp_path / "whole")
    assert figures(unfinished) == figures(tmp_path / "whole")


def test_a_run_without_pictures_is_finished_all_the_same(tmp_path: Path) -> None:
    run = train(small(epochs=1), tmp_path / "run", pictures=False)
    assert run.result is not None
    assert not list(run.folder.glob("*.png"))
    assert runs.verify(run.folder) == 6


def test_a_run_whose_finish_failed_is_finished_by_resuming(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise RunError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr("torchdfa.train.plots.curves", full)
        with pytest.raises(RunError, match="disk full"):
            train(small(epochs=1), tmp_path / "run")
    assert program.resume(tmp_path / "run").result is not None
    assert runs.verify(tmp_path / "run") == 9
    assert len(figures(tmp_path / "run")) == 1


@pytest.mark.parametrize("began", ["torch", "winograd"])
def test_a_run_goes_on_with_the_convolutions_it_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, began: str
) -> None:
    """Though another machine would have chosen others."""
    flags = {"torch": ["avx512f", "avx2"], "winograd": ["avx2"]}
    other = {"torch": "winograd", "winograd": "torch"}[began]
    config = small(schedule="constant", epochs=1)
    monkeypatch.setattr(program.machine, "cpu_info", lambda: {"cpu": "x", "cpu_flags": flags[began]})
    train(config, tmp_path / "run")
    monkeypatch.setattr(program.machine, "cpu_info", lambda: {"cpu": "x", "cpu_flags": flags[other]})
    assert program.machine.resolve(config).convolutions == other
    used = []
    use = winograd.use_
    monkeypatch.setattr(winograd, "use_", lambda net: used.append(use(net)))
    program.resume(tmp_path / "run", {"epochs": 2})
    assert used == {"torch": [], "winograd": [1]}[began]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["resolved"]["convolutions"] == began


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_torch_compile_that_fails_is_told_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor.exc import InvalidCxxCompiler

    def fail(*_: Any) -> None:
        raise InvalidCxxCompiler

    monkeypatch.setattr(program.Trainer, "fit", fail)
    with pytest.raises(RunError, match=r"^torch\.compile failed \(No working C\+\+ compiler.*\); leave --compile out$"):
        train(small(compile=True), tmp_path / "run")


def test_other_images_are_refused(unfinished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = program.load

    def changed(config: Any) -> Data:
        data = load(config)
        data.train_x[0, 0, 0, 0] ^= 1
        return data

    monkeypatch.setattr(program, "load", changed)
    with pytest.raises(UsageError, match="was trained on other images than digits now holds"):
        program.resume(unfinished)


def test_another_number_of_processes_is_refused(unfinished: Path) -> None:
    state = program.checkpoint.load(unfinished / "checkpoint.pt")
    program.checkpoint.save(unfinished / "checkpoint.pt", {**state, "world_size": 4})
    with pytest.raises(UsageError, match=r"by 4 process\(es\) and is now resumed by 1; start as many as before"):
        program.resume(unfinished)


@pytest.mark.parametrize("key, value", [
    ("model", {}), ("optimizer", {}), ("rng", {}), ("epoch_rng", torch.zeros(3)), ("sums", torch.zeros(0)),
    ("seconds", 3), ("config", {"rule": "dfaa"}), ("config", 3),
])  # fmt: skip
def test_a_checkpoint_that_does_not_fit_is_refused(unfinished: Path, key: str, value: Any) -> None:
    state: dict[str, Any] = program.checkpoint.load(unfinished / "checkpoint.pt")
    program.checkpoint.save(unfinished / "checkpoint.pt", {**state, key: value})
    with pytest.raises(UsageError):
        program.resume(unfinished)


def test_the_digest_is_of_every_image_and_label() -> None:
    def changed(name: str) -> str:
        data = program.load(small())
        tensor: Tensor = getattr(data, name)
        tensor.view(-1)[-1] += 1
        return program.digest(data)

    names = ("train_x", "train_y", "test_x", "test_y")
    assert len({program.digest(program.load(small())), *map(changed, names)}) == 5


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_torch_compile_trains(tmp_path: Path) -> None:
    """With the backend that needs no C++ compiler; the weights are those of the run without it."""
    with pytest.MonkeyPatch.context() as patch:
        compile_ = torch.compile
        patch.setattr(torch, "compile", lambda net, **_: compile_(net, backend="eager", fullgraph=True))
        train(small(epochs=1, compile=True), tmp_path / "compiled")
    train(small(epochs=1, convolutions="torch"), tmp_path / "plain")
    assert weights(tmp_path / "compiled") == weights(tmp_path / "plain")


def test_a_disk_without_room_is_refused_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkpoints with momentum and the exported model take five times the weights."""
    net = program.build(small(), program.load(small()))
    size = 4 * sum(p.numel() for p in net.parameters())
    usage = type(shutil.disk_usage(tmp_path))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 5 * size - 1))
    with pytest.raises(RunError, match=r"run has 1 MB left and the run needs about 1 MB; free some, or take another"):
        train(small(), tmp_path / "run")
    assert not (tmp_path / "run" / "checkpoint.pt").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 5 * size))
    train(small(epochs=1), tmp_path / "run")


def test_tensorboard_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_TENSORBOARD_AVAILABLE", "_TENSORBOARDX_AVAILABLE"):
        monkeypatch.setattr(f"lightning_fabric.loggers.tensorboard.{name}", False)
    with pytest.raises(UsageError, match=r"pip install 'torchdfa\[tensorboard\]'"):
        train(small(tensorboard=True), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_rule_that_diverges_leaves_the_others_finished_and_names_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = program.Trainer.fit

    def diverging(self: program.Trainer, *arguments: Any) -> None:
        if self.config.rule == "dfa":
            raise RunError("training diverged")
        fit(self, *arguments)

    monkeypatch.setattr(program.Trainer, "fit", diverging)
    configs = [small(rule=rule, epochs=1) for rule in ("bp", "dfa", "fa", "bdfa")]
    folders = program.folders(configs, tmp_path)
    sentence = "^training diverged; the rest can be trained with --rule fa,bdfa and the other flags as before$"
    with pytest.raises(RunError, match=sentence):
        program.train_all(configs, folders)
    assert runs.verify(folders[0]) == 9
    assert not list(folders[2].iterdir())
