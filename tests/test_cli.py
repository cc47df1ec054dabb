"""The command line: exit codes, one sentence on stderr, nothing read or written after a wrong word."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from small_runs import flags, weights
from torchdfa import __main__, cli
from torchdfa.errors import RunError
from torchdfa.train import program, runs
from torchdfa.train.loop import Trainer


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(list(arguments))
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return code, out, err


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["train", "--rule", "dfaa"], "--rule must be one of bp, fa, dfa, bdfa, frozen; got 'dfaa'"),
        (["train", "--rule", "bp,dfaa"], "--rule must be one of bp, fa, dfa, bdfa, frozen; got 'dfaa'"),
        (["train", "--rule", "bp,bp"], "--rule names a rule twice: bp, bp"),
        (["train", "--init", "zero"], "--init must be one of random, product; got 'zero'"),
        (["train", "--scale", "large"], "--scale must be a positive number or one of unit, he, match; got 'large'"),
        (["train", "--scale", "-2"], "--scale must be a positive number or one of unit, he, match; got -2.0"),
        (["train", "--model", "resnet"], "--model must be one of cnn, mlp, vgg16; got 'resnet'"),
        (["train", "--schedule", "none"], "--schedule must be one of cosine, step, constant; got 'none'"),
        (["train", "--lr", "0"], "--lr must be a positive number; got 0.0"),
        (["train", "--epoch", "3"], "see 'torchdfa train --help'"),
        (["train", "--epochs", "many"], "Invalid value for '--epochs'"),
        (["train", "extra"], "extra"),
        (["trian"], "No such command 'trian'"),
        (["train", "--resume", "nowhere"], "nowhere is not a run folder: it holds no config.json"),
        (["train", "--resume", "nowhere", "--out", "x"], "--out conflicts with --resume"),
        (["verify", "nowhere"], "nowhere holds no manifest.json: it is not the folder of a finished run"),
        (["verify"], "Missing argument"),
        (["compare", "nowhere"], "nowhere is not a run folder"),
    ],
)
def test_wrong_usage_is_one_sentence_and_code_2(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Path, arguments: list[str], sentence: str
) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr("torchdfa.train.datasets.load", load)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("torchdfa: ")
    assert err.count("\n") == 1
    assert sentence in err
    assert not list(here.iterdir())


def test_a_group_without_a_command_shows_its_help(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "otb")
    assert code == 2
    assert "report" in out + err
    assert "torchdfa: " not in err


def test_data_that_are_not_there(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    code, _, err = run(capsys, "train", "--data", "photoz")
    assert code == 2
    assert "photoz" in err
    assert err.count("\n") == 1
    assert not list(here.glob("runs/*"))  # no empty run folders for `compare runs/*` to stumble over


def test_compare_draws_without_being_asked(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    arguments = ("--model", "mlp", "--fc-width", "8", "--epochs", "1", "--rule", "bp", "--out", "run")
    assert run(capsys, "train", *arguments)[0] == 0
    assert run(capsys, "compare", "run")[0] == 0
    assert (here / "compare.png").stat().st_size > 10_000


def test_a_failure_is_one_sentence_and_code_1(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise RunError("no space")

    monkeypatch.setattr(program, "train_all", fail)
    assert run(capsys, "train") == (1, "", "torchdfa: no space\n")


def test_a_network_beyond_memory_is_one_sentence_and_leaves_no_folder(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    code, out, err = run(capsys, "train", "--rule", "bp", "--out", "run", "--fc-width", str(10**13))
    assert (code, out) == (1, "")
    assert err.startswith("torchdfa: not enough memory (")
    assert not (here / "run").exists()


def test_an_error_of_ours_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(program, "train_all", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["train"])


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_saves_and_says_how_to_go_on(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, here: Path, signum: int
) -> None:
    with monkeypatch.context() as patch:
        after_step = Trainer.after_step

        def interrupting(self: Trainer, *arguments: Any) -> None:
            if self.config.rule == "dfa" and self.step_number == 9:
                os.kill(os.getpid(), signum)
            after_step(self, *arguments)

        patch.setattr(Trainer, "after_step", interrupting)
        code, _, err = run(capsys, "train", *flags(rule="bp,dfa,bdfa", epochs=2, out="runs"))
    assert code == 128 + signum
    assert err == (
        "torchdfa: stopped at step 9 of 14; continue with 'torchdfa train --resume runs/digits-cnn-CDFA-product-s0'; "
        "the rest can be trained with --rule bdfa and the other flags as before\n"
    )
    assert signal.getsignal(signum) is not None
    code, out, _ = run(capsys, "train", "--resume", "runs/digits-cnn-CDFA-product-s0", "--rule", "dfa")
    assert code == 0
    assert "CDFA product  epoch 2/2" in out
    assert runs.verify("runs/digits-cnn-CDFA-product-s0") == 9


def test_ctrl_c_before_training_is_code_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "train_all", interrupt)
    assert run(capsys, "train")[0] == 130


def test_resume_with_another_flag(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *flags(epochs=1, out="run")]) == 0
    before = weights(Path("run"))
    capsys.readouterr()
    for given, found in (("--lr 0.5", "0.5 .* which has 0.01"), ("--rule bp,dfa", "bp,dfa .* which has bdfa"),
                         ("--scale he", "he .* which has None"), ("--no-augment", "False .* which has True"),
                         ("--epochs 3", "only runs with --schedule constant")):  # fmt: skip
        code, _, err = run(capsys, "train", "--resume", "run", *given.split())
        assert code == 2
        assert err.count("\n") == 1
        assert re.search(found, err), err
    assert weights(Path("run")) == before


def test_verify_finds_a_flipped_bit(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", *flags(epochs=1, out="run")]) == 0
    capsys.readouterr()
    assert run(capsys, "verify", "run") == (0, "run: 9 files are as the run left them\n", "")
    content = bytearray(weights(Path("run")))
    content[-1] ^= 1
    Path("run/model.safetensors").write_bytes(content)
    code, _, err = run(capsys, "verify", "run")
    assert code == 1
    assert "changed: model.safetensors" in err


@pytest.mark.parametrize("name", ["typer", "rich", "lightning_fabric", "matplotlib.pyplot"])
def test_a_missing_library_is_named_with_the_way_out(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def missing() -> int:
        raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    monkeypatch.setattr(cli, "main", missing)
    assert __main__.main() == 2
    assert capsys.readouterr().err == f"torchdfa: this command needs {name}: pip install 'torchdfa[train]'\n"


def test_a_missing_module_of_ours_is_not_taken_for_a_library(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> int:
        raise ModuleNotFoundError("No module named 'torchdfa.nothing'", name="torchdfa.nothing")

    monkeypatch.setattr(cli, "main", missing)
    with pytest.raises(ModuleNotFoundError):
        __main__.main()


def test_without_the_programs_libraries(tmp_path: Path) -> None:
    """A process in which none of them can be imported: the library works, the command says what to install."""
    script = (
        "import sys\n"
        "for name in ('typer', 'rich', 'lightning_fabric', 'matplotlib', 'sklearn', 'PIL', 'safetensors', 'pooch'):\n"
        "    sys.modules[name] = None\n"
        "import torchdfa, torchdfa.__main__\n"
        "sys.exit(torchdfa.__main__.main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False, timeout=200
    )
    assert done.returncode == 2
    assert "pip install 'torchdfa[train]'" in done.stderr
    assert "Traceback" not in done.stderr


def test_help_names_every_setting(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    code, out, _ = run(capsys, "train", "--help")
    assert code == 0
    for name in flags(**dict.fromkeys(torchdfa_settings(), "x"))[::2]:
        assert name in out


def torchdfa_settings() -> list[str]:
    from dataclasses import fields

    from torchdfa.train.config import TrainConfig

    return [field.name for field in fields(TrainConfig)]


def test_flags_and_settings_agree() -> None:
    """Each flag but three is a setting, with the same default; --rule trains three rules unless one is named."""
    import inspect

    found = {name: p.default for name, p in inspect.signature(cli.train).parameters.items() if name != "ctx"}
    defaults = {name: getattr(cli.TrainConfig(), name) for name in torchdfa_settings()}
    assert {name: found[name] for name in found if name not in ("rule", "out", "resume")} == {
        name: value for name, value in defaults.items() if name != "rule"
    }
    assert found["rule"] == "bp,dfa,bdfa"


def test_threads_are_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    assert cli.main(["train", *flags(epochs=1, out="run", threads=1)]) == 0
    assert asked == [1]
