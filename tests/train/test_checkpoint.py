"""Resume files: no code runs on load, damage and newer formats are refused, a failed save keeps the last good one."""

from __future__ import annotations

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from torchdfa.errors import RunError, UsageError
from torchdfa.train import checkpoint


def state() -> dict[str, Any]:
    return {key: {"weights": torch.arange(50.0)} for key in checkpoint.KEYS if key != "format"}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    checkpoint.save(tmp_path / "checkpoint.pt", state())
    return tmp_path / "checkpoint.pt"


def test_what_was_saved_is_loaded(saved: Path) -> None:
    loaded = checkpoint.load(saved)
    assert set(loaded) == set(checkpoint.KEYS)
    assert loaded["format"] == 1
    assert torch.equal(loaded["model"]["weights"], torch.arange(50.0))


class Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.canary}",)


@pytest.mark.parametrize("protocol", [0, 2, 5])
@pytest.mark.parametrize("writer", ["pickle", "torch"])
def test_a_pickle_bomb_does_not_go_off(tmp_path: Path, writer: str, protocol: int) -> None:
    path, canary = tmp_path / "checkpoint.pt", tmp_path / "canary"
    content = {"format": 1, "model": Bomb(canary)}
    if writer == "pickle":
        path.write_bytes(pickle.dumps(content, protocol))
    else:
        torch.save(content, path, pickle_protocol=protocol)
    with pytest.raises(UsageError, match="is damaged or holds more than tensors and numbers, and is not loaded"):
        checkpoint.load(path)
    assert not canary.exists()
    if writer == "pickle":
        pickle.loads(path.read_bytes())
        assert canary.exists(), "the bomb must be a real one"


def test_a_newer_format_is_refused_by_its_number(tmp_path: Path) -> None:
    torch.save(state() | {"format": 2}, tmp_path / "c")
    with pytest.raises(UsageError, match="has format 2, and this version of torchdfa reads up to 1"):
        checkpoint.load(tmp_path / "c")


@pytest.mark.parametrize(
    "content, sentence",
    [
        ([1], "is not a resume file of torchdfa"),
        ({"format": "1"}, "is not a resume file of torchdfa"),
        ({"format": 1}, "is damaged: it lacks 'config'"),
    ],
)
def test_something_else_is_refused(tmp_path: Path, content: Any, sentence: str) -> None:
    torch.save(content, tmp_path / "c")
    with pytest.raises(UsageError, match=sentence):
        checkpoint.load(tmp_path / "c")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nothing\.pt is missing, so there is nothing to resume from"):
        checkpoint.load(tmp_path / "nothing.pt")


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(saved: Path, part: float) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[: int(part * len(content))])
    with pytest.raises(UsageError, match="is damaged"):
        checkpoint.load(saved)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60, deadline=None)
@given(st.data())
def test_changed_bytes_raise_our_error_or_load(saved: Path, data: st.DataObject) -> None:
    content = bytearray(saved.read_bytes())
    where = data.draw(st.integers(0, len(content) - 1))
    kept = content[where]
    content[where] = data.draw(st.integers(0, 255))
    saved.write_bytes(content)
    try:
        assert set(checkpoint.load(saved)) == set(checkpoint.KEYS)
    except UsageError as error:
        assert str(saved) in str(error)
    finally:
        content[where] = kept
        saved.write_bytes(content)


def test_a_full_disk_is_loud_and_keeps_the_last_good_file(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RunError, match=r"checkpoint\.pt cannot be written: No space left on device"):
        checkpoint.save(saved, state())
    assert saved.read_bytes() == before
    assert [p.name for p in saved.parent.iterdir()] == ["checkpoint.pt"]


def test_a_disk_that_does_not_keep_what_it_is_given_is_found_before_the_old_file_goes(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, fsync = saved.read_bytes(), os.fsync

    def flip(handle: int) -> None:
        fsync(handle)
        for temporary in saved.parent.glob(".*tmp"):
            content = bytearray(temporary.read_bytes())
            content[content.index(torch.arange(50.0).numpy().tobytes()) + 9] ^= 1
            temporary.write_bytes(content)

    monkeypatch.setattr(os, "fsync", flip)
    with pytest.raises(RunError, match="does not keep what is written to it"):
        checkpoint.save(saved, state())
    assert saved.read_bytes() == before
