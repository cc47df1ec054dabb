from __future__ import annotations

import errno
import json
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from torchdfa.errors import RunError, UsageError
from torchdfa.track import live, synthetic
from torchdfa.track.boxfile import read_boxes
from torchdfa.track.stopping import TrackingStopped
from track.folders import table
from track.small import frames, tracker


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return synthetic.write(tmp_path_factory.mktemp("clip") / "square", 5, size=(96, 72), side=20, seed=1)


def named(rule):
    t = tracker(rule=rule)
    t.name = rule
    return t


def test_two_rules_side_by_side(folder, tmp_path):
    out = tmp_path / "out"
    summary = live.track(str(folder), [named("bp"), named("bdfa")], out, video_out=tmp_path / "frames")
    assert summary["frames"] == 5
    assert sorted(p.name for p in out.iterdir()) == ["bdfa.csv", "bdfa.txt", "bp.csv", "bp.txt", "summary.json"]
    boxes = read_boxes(out / "bdfa.txt")
    rows = table(out / "bdfa.csv")
    assert boxes.shape == (5, 4)
    assert [float(row["x"]) for row in rows] == boxes[:, 0].tolist()
    assert set(rows[0]) == {"frame", "x", "y", "w", "h", "score", "lost", "seconds"}
    assert np.array_equal(boxes[0], read_boxes(folder / "groundtruth_rect.txt")[0]), "the folder's own first box"
    with Image.open(tmp_path / "frames" / "000005.jpg") as picture:
        assert picture.size == (2 * 96, 72)
    written = json.loads((out / "summary.json").read_text())
    assert written["trackers"]["bdfa"]["error_path"]["multiplies"] == 0
    assert 0 < written["trackers"]["bp"]["mean_overlap"] <= 1
    assert sum(written["trackers"]["bp"]["time_shares"].values()) == pytest.approx(100, abs=0.5)
    with pytest.raises(UsageError, match="never overwritten"):
        live.track(str(folder), [named("bp")], out)


@pytest.mark.parametrize("flags", [["--out", "clip.mp4"], ["--out", "new", "--video", "clip.mp4"],
                                   ["--out", "new", "--video", "frames/img"], ["--out", "boxes"]])  # fmt: skip
def test_the_users_own_files_stop_it_before_a_tracker_is_built(flags, folder, tmp_path, monkeypatch, capsys):
    from torchdfa.cli import main
    from torchdfa.track import tracker as module

    shutil.copytree(folder, tmp_path / "frames")
    (tmp_path / "clip.mp4").write_bytes(b"film")
    (tmp_path / "boxes").mkdir()
    (tmp_path / "boxes" / "bp.txt").write_text("mine")
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "Tracker", None)
    assert main(["track", "frames", "--rule", "bp", *flags]) == 2
    assert "already" in capsys.readouterr().err
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before


def test_a_stop_keeps_what_was_tracked(folder, tmp_path):
    t = named("bp")
    update = t.update

    def stop(image):
        if t.frame == 2:
            signal.raise_signal(signal.SIGTERM)
        return update(image)

    t.update = stop
    with pytest.raises(TrackingStopped, match="stopped after 3 frames"):
        live.track(str(folder), [t], tmp_path / "out")
    assert len(read_boxes(tmp_path / "out" / "bp.txt")) == 3
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["stopped"] is True


def test_a_broken_frame_in_the_middle_keeps_what_was_tracked(tmp_path):
    images, _ = frames(3)
    for k, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    whole = (tmp_path / "2.png").read_bytes()
    (tmp_path / "2.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match=r"2\.png cannot be used: .* What was tracked before, 2 frames"):
        live.track(str(tmp_path), [named("bp")], tmp_path / "out", box=(6, 8, 20, 22))
    assert len(read_boxes(tmp_path / "out" / "bp.txt")) == 2


def test_a_full_disk_keeps_what_was_tracked(folder, tmp_path, monkeypatch):
    save = Image.Image.save

    def full(image, path, **options):
        if path.name == "000003.jpg":
            raise OSError(errno.ENOSPC, "No space left on device")
        save(image, path, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(RunError, match=r"000003\.jpg cannot be written: No space .*tracked before, 3 frames"):
        live.track(str(folder), [named("bp")], tmp_path / "out", video_out=tmp_path / "frames")
    assert len(read_boxes(tmp_path / "out" / "bp.txt")) == 3
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["stopped"] is True
    with pytest.raises(UsageError, match="holds a track already"):
        live.track(str(folder), [named("bp")], tmp_path / "out")


def test_any_failure_keeps_what_was_tracked(folder, tmp_path):
    """Also where one of two trackers has seen a frame more than the other."""
    first, second = named("bp"), named("bdfa")
    second.update = lambda image: 1 // 0
    with pytest.raises(ZeroDivisionError):
        live.track(str(folder), [first, second], tmp_path / "out")
    assert len(read_boxes(tmp_path / "out" / "bp.txt")) == 2
    assert len(read_boxes(tmp_path / "out" / "bdfa.txt")) == 1


@pytest.fixture
def interruptible():
    """SIGINT as in a terminal: a process begun in the background of a shell is born ignoring it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_a_second_stop_in_the_first_frame_leaves_nothing(folder, tmp_path):
    t = named("bp")

    def stop(image, box):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    t.init = stop
    with pytest.raises(TrackingStopped, match="stopped after 0 frames; nothing was tracked") as stopped:
        live.track(str(folder), [t], tmp_path / "out")
    assert stopped.value.signum == 2
    assert not (tmp_path / "out").exists()


def test_where_the_target_is_must_be_said(tmp_path):
    images, _ = frames(2)
    for k, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{k}.png")
    with pytest.raises(UsageError, match="pass --box"):
        live.track(str(tmp_path), [named("bp")], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(UsageError, match="outside"):
        live.track(str(tmp_path), [named("bp")], tmp_path / "out", box=(500, 500, 20, 20))
    with pytest.raises(UsageError, match="no screen"):
        live.track(str(tmp_path), [named("bp")], tmp_path / "out", select=True)
    with pytest.raises(UsageError, match="0 frames"):
        live.track(str(tmp_path), [named("bp")], tmp_path / "out", box=(5, 5, 20, 20), frames=0)


@pytest.mark.parametrize("text", ["1,2,3", "a,b,c,d", "", "1,2,3,4,5"])
def test_a_box_that_is_no_box(text):
    with pytest.raises(UsageError, match="four numbers"):
        live.parse_box(text)
    assert live.parse_box("1,2.5,3,4") == (1, 2.5, 3, 4)
