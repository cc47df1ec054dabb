"""`torchdfa online`: streams in, a folder of figures out; wrong words end in one sentence and leave nothing."""

from __future__ import annotations

import csv
import io
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from online_cases import blobs
from torchdfa.cli import main
from torchdfa.online import OnlineHead
from torchdfa.train import runs


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = blobs(300)
    np.savez("f.npz", X=x[:200], y=y[:200], X_test=x[200:], y_test=y[200:])
    text = "".join(f"{'abc'[k]},{','.join(map(str, row))}\n" for row, k in zip(x.tolist(), y.tolist(), strict=True))
    (tmp_path / "s.csv").write_text(text)
    return tmp_path


def read_csv(path):
    return list(csv.DictReader(io.StringIO(path.read_text(), newline="")))


def test_an_archive_in_three_orders(here, capsys):
    arguments = ["--rule", "bp,bdfa", "--hidden", "16", "--repeats", "2", "--lr", "0.02", "--out", "o"]
    assert main(["online", "f.npz", *arguments]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert "no measure of what is kept" in out
    rows = read_csv(here / "o" / "table.csv")
    assert [(row["order"], row["number"], row["rule"]) for row in rows] == [
        (order, number, rule) for order in ("random", "class", "bursts") for number in "01" for rule in ("bp", "bdfa")
    ]
    assert all(float(row["test"]) > 85 for row in rows if row["order"] == "random")
    assert all(int(row["samples"]) == 200 for row in rows)
    assert int(rows[0]["bytes"]) > 4 * (8 * 16 + 16 + 16 * 3 + 3)
    curves = read_csv(here / "o" / "curves.csv")
    assert len(curves) == 12 * 20
    assert curves[19]["accuracy"] == str(
        json.loads((here / "o" / "result.json").read_text())["streams"][0]["points"][-1][2]
    )
    assert (here / "o" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert OnlineHead.load(here / "o" / "head.safetensors").rule == "bdfa"
    assert runs.verify(here / "o") == 6
    assert main(["online", "f.npz", *arguments]) == 2
    said = capsys.readouterr().err
    assert "holds a finished run, which is never overwritten" in said
    assert "torchdfa compare" not in said  # which reads other folders


def test_a_csv_stream_goes_on_with_a_saved_head(here, capsys):
    assert main(["online", "s.csv", "--hidden", "16", "--out", "first"]) == 0
    assert main(["online", "s.csv", "--load", "first/head.safetensors", "--out", "second"]) == 0
    out, _ = capsys.readouterr()
    assert "300 samples" in out
    first, second = (read_csv(here / name / "table.csv")[0] for name in ("first", "second"))
    assert float(second["accuracy"]) > float(first["accuracy"])
    head = OnlineHead.load(here / "second" / "head.safetensors")
    assert head.updates_ == 600
    assert sorted(head.classes_.tolist()) == ["a", "b", "c"]
    written = json.loads((here / "second" / "online.json").read_text())["settings"]
    assert written["head"] == json.loads(json.dumps(head.get_params()))
    assert not {"rule", "hidden", "lr", "momentum", "replay", "classes"} & set(written)


@pytest.mark.parametrize(
    "flag, value",
    [("rule", "bdfa"), ("hidden", "4"), ("lr", "1"), ("momentum", "0"), ("replay", "2"), ("classes", "a,b")],
)
def test_what_a_loaded_head_has_of_its_own_cannot_be_given(here, capsys, flag, value):
    assert main(["online", "s.csv", "--load", "head.safetensors", f"--{flag}", value]) == 2
    assert f"--{flag} conflicts with --load, whose head has its own; leave it out" in capsys.readouterr().err
    assert not (here / "runs").exists()


def test_lines_that_are_no_samples_are_counted(here, capsys):
    text = (here / "s.csv").read_text()
    (here / "s.csv").write_text(f"{text}a,nan,1\nb,1\n")
    assert main(["online", "s.csv", "--hidden", "16", "--out", "o"]) == 0
    assert "warning: 2 samples could not be used" in capsys.readouterr().err
    assert read_csv(here / "o" / "table.csv")[0]["refused"] == "2"


def test_a_byte_that_is_no_text_costs_one_line_of_stdin(here, capsys, monkeypatch):
    lines = (here / "s.csv").read_bytes().splitlines(keepends=True)
    lines[100] = b"a,\xff" + lines[100][2:]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"".join(lines)), encoding="utf-8"))
    assert main(["online", "-", "--hidden", "4", "--out", "o"]) == 0
    assert "warning: 1 samples could not be used: line 101 is not a label and numbers" in capsys.readouterr().err
    assert OnlineHead.load(here / "o" / "head.safetensors").updates_ == 299


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["nothing.npz"], "nothing.npz cannot be read: No such file or directory"),
        (["nothing.csv"], "nothing.csv cannot be read: No such file or directory"),
        (
            ["s.csv", "--order", "class"],
            "--order must be left out for a stream that is read once",
        ),
        (["s.csv", "--repeats", "5"], "--repeats must be left out for a stream"),
        (["s.csv", "--rule", "bp,dfa"], "--rule must be one alone for a stream"),
        (["f.npz", "--rule", "dfaa"], "rule='dfaa' must be one of"),
        (["f.npz", "--order", "sorted"], "--order must be one of random, class, bursts, given; got 'sorted'"),
        (["f.npz", "--hidden", "wide"], "--hidden must be widths with commas, or \"none\"; got 'wide'"),
        (["f.npz", "--lr", "0"], "learning_rate must be a positive number; got 0.0"),
        (["f.npz", "--repeats", "0"], "--repeats must be at least 1; got 0"),
        (["f.npz", "--load", "nothing"], "nothing does not exist"),
        (["s.csv.npz"], "cannot be read"),
        (["broken.npz"], "broken.npz is damaged or no NPZ of plain arrays"),
        ([], "Missing argument"),
    ],
)
def test_wrong_words(here, capsys, arguments, sentence):
    (here / "broken.npz").write_bytes((here / "f.npz").read_bytes()[:500])
    before = sorted(path.name for path in here.iterdir())
    assert main(["online", *arguments]) == 2
    out, err = capsys.readouterr()
    assert sentence in err
    assert (err.count("\n"), out) == (1, "")
    assert sorted(path.name for path in here.iterdir()) == before


def test_a_stream_without_samples(here, capsys):
    (here / "empty.csv").write_text("label,a,b\n")
    assert main(["online", "empty.csv"]) == 2
    assert "empty.csv holds no sample that could be learned; lines must be label,number" in capsys.readouterr().err
    (here / "empty.csv").write_text("label;a;b\nx;1;2\n")
    assert main(["online", "empty.csv"]) == 2
    assert "could be learned (line 2 lacks finite numbers); lines must be" in capsys.readouterr().err
    (here / "empty.csv").write_text("label,a,b\nx,1,2\ny,2,1\n")
    assert main(["online", "empty.csv", "--hidden", "4"]) == 0
    assert "table, curves and the last head" in capsys.readouterr().out  # too few samples for a picture


def test_a_byte_order_mark_is_no_part_of_the_first_label(here):
    text = "x,1,2\ny,2,1\nx,1,1\n"
    (here / "marked.csv").write_text(text, encoding="utf-8-sig")
    assert main(["online", "marked.csv", "--hidden", "4", "--out", "o"]) == 0
    assert OnlineHead.load("o/head.safetensors").classes_.tolist() == ["x", "y"]


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX signals")
def test_a_signal_ends_an_endless_stream_and_keeps_the_head(here):
    command = [sys.executable, "-m", "torchdfa", "online", "-", "--hidden", "16", "--out", "o"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    child = subprocess.Popen(command, **pipes)
    line = (here / "s.csv").read_text()
    child.stdin.write(line)
    child.stdin.flush()
    assert child.stdout.readline().startswith("100 samples")
    child.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    _, err = child.communicate(line, timeout=60)
    assert child.returncode == 128 + signal.SIGTERM, err
    assert "go on with --load o/head.safetensors" in err
    assert 100 <= OnlineHead.load(here / "o" / "head.safetensors").updates_ < 600
    assert runs.verify(here / "o") >= 5
