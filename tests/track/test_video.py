from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from torchdfa.errors import RunError, UsageError
from torchdfa.track import draw, video


def frames(n=3):
    return [np.full((48, 64, 3), 40 * k + 20, np.uint8) for k in range(n)]


def test_a_folder_is_read_in_order_and_written_again(tmp_path):
    with video.writer(tmp_path / "out") as out:
        for frame in frames():
            out.write(frame)
    found = list(video.read(str(tmp_path / "out")))
    assert [int(f.mean()) for f in found] == [20, 60, 100]
    assert video.length(str(tmp_path / "out")) == 3
    with pytest.raises(UsageError, match="holds files already"):
        video.writer(tmp_path / "out")


def test_nothing_that_exists_is_written_over(tmp_path):
    """A user's video, or the folder of frames that is tracked in."""
    (tmp_path / "keep.mp4").write_bytes(b"film")
    (tmp_path / "notes").write_text("mine")
    (tmp_path / "img").mkdir()
    Image.fromarray(frames()[0]).save(tmp_path / "img" / "0001.png")
    (tmp_path / "link.avi").symlink_to(tmp_path / "gone.avi")
    for name, words in (("keep.mp4", "exists already"), ("notes", "exists already"), ("img", "holds files already"),
                        ("link.avi", "exists already")):  # fmt: skip
        with pytest.raises(UsageError, match=words):
            video.writer(tmp_path / name)
    assert (tmp_path / "keep.mp4").read_bytes() == b"film"
    assert [p.name for p in (tmp_path / "img").iterdir()] == ["0001.png"]


@pytest.mark.parametrize("name", ["v.avi", "v.mp4"])
def test_video_files_go_round(tmp_path, name):
    pytest.importorskip("cv2")
    with video.writer(tmp_path / name) as out:
        for frame in frames():
            out.write(frame)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    found = list(video.read(str(tmp_path / name)))
    assert [round(float(f.mean()), -1) for f in found] == [20, 60, 100]
    (tmp_path / "cut.mp4").write_bytes(b"\x00" * 50)
    with pytest.raises((UsageError, RunError)):
        list(video.read(str(tmp_path / "cut.mp4")))


@pytest.mark.parametrize("fps", [12.5, 29.97])
def test_an_annotated_video_is_as_fast_as_its_source(tmp_path, fps):
    pytest.importorskip("cv2")
    with video.writer(tmp_path / "v.mp4", fps) as out:
        for frame in frames():
            out.write(frame)
    assert video.rate(str(tmp_path / "v.mp4")) == pytest.approx(fps, abs=0.01)
    assert video.rate(str(tmp_path)) == video.rate("webcam") == 25


@pytest.mark.parametrize("name", ["v.avi", "v.mp4"])
def test_frames_of_another_size_are_not_dropped(tmp_path, name):
    pytest.importorskip("cv2")
    with video.writer(tmp_path / name) as out:
        for k, frame in enumerate(frames()):
            out.write(np.repeat(frame, 2, axis=1) if k == 1 else frame)
    found = list(video.read(str(tmp_path / name)))
    assert [f.shape for f in found] == [(48, 64, 3)] * 3
    assert [round(float(f.mean()), -1) for f in found] == [20, 60, 100]


@pytest.mark.parametrize("name", ["v.avi", "v.mp4"])
def test_a_video_that_the_disk_has_no_room_for_is_not_left_behind(tmp_path, name):
    """OpenCV goes on as if nothing had happened; the system's limit on a file's size stands for a full disk."""
    pytest.importorskip("cv2")
    resource = pytest.importorskip("resource")
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), dtype=np.uint8)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def write():
        with video.writer(tmp_path / name) as out:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, hard))
            for _ in range(40):
                out.write(noise)

    try:
        with pytest.raises(RunError, match=f"{name} cannot be written; free space"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


class Camera:
    """What OpenCV gives for a camera that shows two blue frames (BGR) and is then pulled out."""

    released = 0

    def __init__(self, number):
        self.left = 2 if number == 0 else 0

    def isOpened(self):
        return self.left > 0

    def read(self):
        self.left -= 1
        return self.left >= 0, np.full((4, 6, 3), (200, 100, 0), np.uint8)

    def release(self):
        Camera.released += 1


def test_a_webcam_gives_rgb_frames_until_it_is_pulled_out(monkeypatch):
    cv2 = pytest.importorskip("cv2")
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    found = list(video.read("webcam"))
    assert [f[0, 0].tolist() for f in found] == [[0, 100, 200]] * 2
    assert Camera.released == 1, "the camera is free again"
    with pytest.raises(UsageError, match="webcam 3 cannot be opened"):
        video.read("3")


def test_without_opencv_the_way_out_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "cv2", None)
    (tmp_path / "v.mp4").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"pip install 'torchdfa\[video\]'"):
        video.read(str(tmp_path / "v.mp4"))
    with pytest.raises(UsageError, match="torchdfa"):
        video.writer(tmp_path / "w.mp4")


def test_what_is_no_video_is_named(tmp_path):
    with pytest.raises(UsageError, match="no folder of frames, no video file"):
        video.read(str(tmp_path / "none"))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(UsageError, match=r"video files end in \.mp4"):
        video.read(str(tmp_path / "a.txt"))
    for name in ("a.gif", "a.webm"):
        with pytest.raises(UsageError, match="must end in"):
            video.writer(tmp_path / name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no images"):
        video.read(str(tmp_path / "empty"))


def test_a_box_is_drawn_where_it_is():
    frame = np.zeros((48, 64, 3), np.uint8)
    found = draw.marked(frame, [draw.Mark(np.array([10.0, 20, 30, 15]), "#ff0000")])
    assert found[20, 25].tolist() == [255, 0, 0]
    assert found[27, 25].tolist() == [0, 0, 0]
    assert frame.sum() == 0
    dashed = draw.marked(frame, [draw.Mark(np.array([10.0, 20, 30, 15]), "#ff0000", lost=True)])
    assert 0 < dashed.sum() < found.sum()
    Image.fromarray(draw.side_by_side([found, dashed]))
