"""Where --out cannot be a folder, one sentence says so, in every command."""

from __future__ import annotations

import pytest

from torchdfa.cli import main
from torchdfa.errors import UsageError
from torchdfa.track import figures, reporting, results, synthetic, video
from torchdfa.track.demo import demo


@pytest.mark.parametrize(
    "write",
    [
        demo,
        lambda out: reporting.write(out, []),
        lambda out: figures.attributes([], out),
        lambda out: results.write(out, results.Results("bp", {})),
        lambda out: video.writer(out / "frames"),
    ],
)
def test_a_file_is_no_folder(write, tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match=r"file(/\w+)? cannot be written: .*; take another --out"):
        write(tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_the_commands_say_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("mine")
    synthetic.write(tmp_path / "otb" / "Dog", 2, size=(96, 72), side=20, seed=1)
    for command in (["track", "otb/Dog"], ["pretrain", "otb"], ["otb", "run", "otb", "--missing", "skip"]):
        assert main([*command, "--out", "file"]) == 2
        assert "take another" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"
