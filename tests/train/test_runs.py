"""Run folders: read whatever lies there, written whole or not at all, damage seen."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchdfa.errors import RunError, UsageError
from torchdfa.train import runs


@pytest.fixture
def finished(tmp_path: Path) -> Path:
    runs.write_json(tmp_path / "config.json", {"format": 1, "config": {}})
    runs.append(tmp_path / "metrics.jsonl", {"epoch": 1, "step": 10})
    runs.append(tmp_path / "metrics.jsonl", {"kind": "alignment", "step": 15})
    runs.append(tmp_path / "metrics.jsonl", {"epoch": 2, "step": 20})
    runs.write_json(tmp_path / "result.json", {"top1": 50.0})
    (tmp_path / "checkpoint.pt").write_bytes(bytes(range(256)))
    runs.write_manifest(tmp_path)
    return tmp_path


def test_a_run_is_read_back(finished: Path) -> None:
    run = runs.read(finished)
    assert run.config == {"format": 1, "config": {}}
    assert run.epochs == [{"epoch": 1, "step": 10}, {"epoch": 2, "step": 20}]
    assert run.alignment == [{"kind": "alignment", "step": 15}]
    assert run.result == {"top1": 50.0}


def test_a_line_that_a_crash_cut_short_is_left_out(finished: Path) -> None:
    with (finished / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "st')
    assert len(runs.read(finished).epochs) == 2


def test_a_run_without_result_has_not_finished(finished: Path) -> None:
    (finished / "result.json").unlink()
    assert runs.read(finished).result is None


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"is not a run folder: it holds no config\.json"):
        runs.read(tmp_path / "nowhere")


def test_a_newer_format_is_refused_by_its_number(finished: Path) -> None:
    runs.write_json(finished / "config.json", {"format": 7})
    with pytest.raises(UsageError, match="has format 7, and this version of torchdfa reads up to 1"):
        runs.read(finished)


@pytest.mark.parametrize(
    "name, text, sentence",
    [
        ("config.json", "{", r"config\.json is damaged: it is not valid JSON"),
        ("config.json", "[]", r"config\.json is damaged: it should hold a JSON object, not a list"),
        ("config.json", "{}", r"config\.json is damaged: it names no format"),
        ("config.json", "[" * 100_000, r"config\.json is damaged: it is not valid JSON"),
        ("metrics.jsonl", "{}\nnope\n", r"metrics\.jsonl is damaged: it holds a line that is not valid JSON"),
        ("metrics.jsonl", "3\n", r"metrics\.jsonl is damaged: it holds a line that is not a JSON object"),
        ("result.json", "\x00", r"result\.json is damaged: it is not valid JSON"),
    ],
)
def test_damaged_json_is_named(finished: Path, name: str, text: str, sentence: str) -> None:
    (finished / name).write_text(text)
    with pytest.raises(UsageError, match=sentence):
        runs.read(finished)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50)
@given(st.sampled_from(["config.json", "metrics.jsonl", "result.json", "manifest.json"]), st.binary(max_size=60))
def test_any_bytes_raise_our_errors_only(finished: Path, name: str, content: bytes) -> None:
    kept = (finished / name).read_bytes()
    (finished / name).write_bytes(content)
    try:
        runs.read(finished)
        runs.verify(finished)
    except (UsageError, RunError) as error:
        assert str(finished) in str(error)
    finally:
        (finished / name).write_bytes(kept)


def test_verify_counts_the_files_that_are_right(finished: Path) -> None:
    assert runs.verify(finished) == 4


@pytest.mark.parametrize("byte, bit", [(0, 0), (137, 5), (255, 7)])
def test_verify_finds_a_flipped_bit(finished: Path, byte: int, bit: int) -> None:
    content = bytearray((finished / "checkpoint.pt").read_bytes())
    content[byte] ^= 1 << bit
    (finished / "checkpoint.pt").write_bytes(content)
    with pytest.raises(RunError, match=r"changed: checkpoint\.pt\)"):
        runs.verify(finished)


def test_verify_names_missing_and_added_files(finished: Path) -> None:
    (finished / "result.json").unlink()
    (finished / "note.txt").write_text("mine")
    with pytest.raises(RunError, match=r"missing: result\.json; added: note\.txt"):
        runs.verify(finished)


def test_verify_needs_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no manifest\.json"):
        runs.verify(tmp_path)


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is found at the latest when the data go to it."""
    path = tmp_path / "checkpoint.pt"
    runs.write(path, b"old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"checkpoint\.pt cannot be written: No space left on device; free space"):
        runs.write(path, b"new")
    with pytest.raises(RunError, match="No space left on device"):
        runs.append(tmp_path / "metrics.jsonl", {})
    assert path.read_bytes() == b"old"
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint.pt", "metrics.jsonl"}


def test_a_file_that_fails_its_check_does_not_replace_the_old(tmp_path: Path) -> None:
    def check(path: Path) -> None:
        assert path.read_bytes() == b"new"
        raise RunError("reads back differently")

    runs.write(tmp_path / "a", b"old")
    with pytest.raises(RunError, match="differently"):
        runs.write(tmp_path / "a", b"new", check=check)
    assert (tmp_path / "a").read_bytes() == b"old"


def test_a_removed_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="gone/a cannot be written: No such file or directory"):
        runs.write(tmp_path / "gone" / "a", b"")


@pytest.mark.parametrize(
    "present, sentence",
    [
        ({"config.json", "checkpoint.pt", "result.json"}, "holds a finished run, which is never overwritten"),
        ({"config.json", "checkpoint.pt"}, "holds a run that has begun; continue it with"),
        ({"holiday.jpg"}, r"holds files that are not a run's \(holiday\.jpg\)"),
    ],
)
def test_what_lies_in_a_folder_is_not_overwritten(tmp_path: Path, present: set[str], sentence: str) -> None:
    for name in present:
        (tmp_path / name).write_text("precious")
    with pytest.raises(UsageError, match=sentence):
        runs.create(tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(present, "precious")


def test_a_run_that_died_before_its_first_checkpoint_can_be_begun_again(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "metrics.jsonl").write_text("")
    runs.create(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="file/run cannot be written: Not a directory; take another --out"):
        runs.create(tmp_path / "file" / "run")


def test_the_probe_finds_a_read_only_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may write anywhere, so the refusal itself is played here."""

    def refuse(self: Path, *_: Any) -> int:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(UsageError, match="cannot be written: Permission denied; take another --out"):
        runs.create(tmp_path / "new")


def test_folders_that_were_made_are_taken_away_unless_they_hold_something(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b" / "c"
    made = runs.absent(deep)
    assert made == [deep, deep.parent, deep.parent.parent]
    runs.create(deep)
    assert runs.absent(deep) == []
    (tmp_path / "a" / "mine.txt").write_text("")
    runs.discard(made)
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["mine.txt"]


def test_leftovers_of_dead_processes_are_cleared(tmp_path: Path) -> None:
    leftover = tmp_path / ".checkpoint.pt.123.torchdfa-tmp"
    leftover.write_bytes(b"half")
    runs.create(tmp_path)
    with runs.hold(tmp_path):
        assert not leftover.exists()


def test_two_processes_cannot_train_in_one_folder(tmp_path: Path) -> None:
    with runs.hold(tmp_path), pytest.raises(UsageError, match="in use by another process"), runs.hold(tmp_path):
        pass
    with runs.hold(tmp_path):
        pass


def test_lines_are_replaced_whole(tmp_path: Path) -> None:
    runs.write_lines(tmp_path / "m", [{"a": 1}, {"b": 2}])
    assert [json.loads(line) for line in (tmp_path / "m").read_text().splitlines()] == [{"a": 1}, {"b": 2}]


def test_lines_after_the_checkpoint_are_forgotten(finished: Path) -> None:
    """A test that was stopped has its epoch's steps behind it and its epoch before it."""
    runs.forget_after(finished, 20, 1)
    assert [line["step"] for line in runs.read_lines(finished / "metrics.jsonl")] == [10, 15]
    runs.forget_after(finished, 12, 1)
    assert [line["step"] for line in runs.read_lines(finished / "metrics.jsonl")] == [10]
    runs.append(finished / "metrics.jsonl", {"epoch": "2", "step": 20})
    with pytest.raises(UsageError, match="a line whose step or epoch is not a number"):
        runs.forget_after(finished, 12, 1)
