"""dev.py: what it does when something is wrong, and that a second call is quick."""

from __future__ import annotations

import builtins
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def dev(tmp_path, monkeypatch):
    """dev.py as a module whose repository is an empty copy, with pip installing nothing."""
    spec = importlib.util.spec_from_file_location("dev", ROOT / "dev.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "run.txt").write_text("torch==2.13.0\n")
    (tmp_path / "pyproject.toml").write_text("")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    return module


def test_unknown_command_is_a_usage_error(dev, capsys):
    assert dev.main(["tset"]) == 2
    assert "usage: python3 dev.py demo" in capsys.readouterr().err
    assert dev.main(["--help"]) == 0


def test_old_python_is_refused(dev, capsys, monkeypatch):
    monkeypatch.setattr(sys, "version_info", (3, 9, 18))
    assert dev.main(["demo"]) == 1
    assert capsys.readouterr().err == (
        "dev.py: Python 3.10 or newer is needed, this is 3.9.18; run it with a newer python3\n"
    )


def test_missing_venv_module_is_named(dev, capsys, monkeypatch):
    real = builtins.__import__

    def without_ensurepip(name, *rest):
        if name == "ensurepip":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_ensurepip)
    assert dev.main(["demo"]) == 1
    assert "has no venv module; install it" in capsys.readouterr().err


def test_failed_install_is_one_sentence_and_is_tried_again(dev, capsys, monkeypatch):
    monkeypatch.setattr(dev, "works", lambda python: True)
    monkeypatch.setattr(dev.subprocess, "call", lambda command, **_: 1)
    (dev.ROOT / ".venv").mkdir()
    assert dev.main(["demo"]) == 1
    assert "pip could not install the pinned packages" in capsys.readouterr().err
    assert not list((dev.ROOT / ".venv").iterdir())


def test_second_set_up_installs_nothing(dev, monkeypatch):
    commands = []
    monkeypatch.setattr(dev, "works", lambda python: True)
    monkeypatch.setattr(dev.subprocess, "call", lambda command, **_: commands.append(command) or 0)
    venv = dev.ROOT / ".venv"
    venv.mkdir()
    dev.set_up(venv, "run")
    assert len(commands) == 2
    dev.set_up(venv, "run")
    assert len(commands) == 2
    (dev.ROOT / "requirements" / "run.txt").write_text("torch==2.14.0\n")
    dev.set_up(venv, "run")
    assert len(commands) == 4


def test_broken_environment_is_made_anew(dev):
    venv = dev.ROOT / ".venv"
    venv.mkdir()
    (venv / "leftover").touch()
    dev.make_venv(venv)
    assert not (venv / "leftover").exists()
    assert dev.works(venv / "bin" / "python")


def test_demo_takes_a_new_folder_each_time(dev):
    (dev.ROOT / "runs" / "demo").mkdir(parents=True)
    assert dev.first_free(iter(["runs/demo", "runs/demo-2"])) == "runs/demo-2"


def test_every_check_runs_and_the_failed_ones_are_named(dev, capfd):
    checks = {"bad": ["nonexistent_module"], "good": ["this"]}
    assert dev.run_all(sys.executable, checks) == 1
    out = capfd.readouterr().out
    assert "Beautiful is better than ugly" in out
    assert out.endswith("dev.py: failed: bad\n")
