"""Frames from a folder, a video file or a webcam, and annotated frames into a folder or a video file."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from torchdfa.errors import RunError, UsageError
from torchdfa.track.frames import pixels
from torchdfa.track.sequences import frame_files
from torchdfa.train import runs

Pixels = NDArray[np.uint8]
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
WRITTEN = (".mp4", ".avi", ".mov", ".mkv", ".m4v")  # OpenCV writes the others with frames missing, or not at all
FPS = 25.0


def _cv2() -> Any:
    try:
        import cv2
    except ModuleNotFoundError:
        raise UsageError(
            "video files and webcams need a package that is missing: pip install 'torchdfa[video]'; a folder of frames "
            "needs none"
        ) from None
    return cv2


def is_webcam(source: str) -> bool:
    return source.isdecimal() or source.lower() == "webcam"


def read(source: str) -> Iterator[Pixels]:
    """RGB frames (H, W, 3) of a folder, a video file, or a webcam ("webcam", or its number).

    Raises UsageError where the source is none of these or cannot be opened, RunError where it holds no frame.
    """
    path = Path(source)
    if path.is_dir():
        return (pixels(file).permute(1, 2, 0).numpy() for file in frame_files(path))
    if is_webcam(source):
        return _captured(0 if source.lower() == "webcam" else int(source), f"webcam {source}")
    if not path.is_file():
        raise UsageError(f"{source} is no folder of frames, no video file and no number of a webcam")
    if path.suffix.lower() not in VIDEOS:
        raise UsageError(f"{source}: video files end in {', '.join(VIDEOS)}; a sequence is a folder of frames")
    return _captured(str(path), source)


def length(source: str) -> int | None:
    """Number of frames, where it is known beforehand."""
    path = Path(source)
    return len(frame_files(path)) if path.is_dir() else None


def rate(source: str) -> float:
    """Frames a second of a video file; 25 where the source has no rate of its own."""
    if not Path(source).is_file():
        return FPS
    capture = _cv2().VideoCapture(source)
    try:
        found = float(capture.get(_cv2().CAP_PROP_FPS))
    finally:
        capture.release()
    return found if 0 < found <= 1000 else FPS  # OpenCV gives 0, or the clock's ticks, where it does not know


def _captured(what: str | int, name: str) -> Iterator[Pixels]:
    cv2 = _cv2()
    capture = cv2.VideoCapture(what)
    if not capture.isOpened():
        raise UsageError(f"{name} cannot be opened: it is damaged, of a kind that OpenCV does not read, or in use")
    return _frames(cv2, capture, name)


def _frames(cv2: Any, capture: Any, name: str) -> Iterator[Pixels]:
    seen = 0
    try:
        while True:
            there, frame = capture.read()
            if not there:
                break
            seen += 1
            yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
    finally:
        capture.release()
    if not seen:
        raise RunError(f"{name} gives no frame")


class Writer(Protocol):
    """Takes frames one by one."""

    def write(self, frame: Pixels) -> None: ...
    def __enter__(self) -> Writer: ...
    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: TracebackType | None) -> None: ...


def require_free(path: Path | None) -> None:
    """UsageError where no annotated video may go: what exists, the source above all, is never written over."""
    if path is None:
        return
    if path.suffix and path.suffix.lower() not in WRITTEN:
        raise UsageError(f"{path}: the annotated video must end in .mp4 or .avi, or be a folder for frames")
    if not path.suffix and path.is_dir():
        if any(path.iterdir()):
            raise UsageError(f"{path} holds files already; take an empty or new folder for the annotated frames")
    elif os.path.lexists(path):
        raise UsageError(f"{path} exists already and is never overwritten; take a new name for the annotated video")


def writer(path: Path | None, fps: float = FPS) -> Writer:
    """What takes annotated frames: nothing, a new video file (.mp4, .avi) or an empty folder, for JPEG files.

    UsageError where ``path`` is something that exists already.
    """
    require_free(path)
    if path is None:
        return _Nowhere()
    return _File(path, fps) if path.suffix else _Folder(path)


class _Nowhere:
    def write(self, frame: Pixels) -> None:
        pass

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        pass


class _Folder(_Nowhere):
    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        runs.make(folder)

    def write(self, frame: Pixels) -> None:
        self._count += 1
        path = self._folder / f"{self._count:06d}.jpg"
        with runs.writing(path):
            Image.fromarray(frame).save(path, quality=90)


class _File(_Nowhere):
    """Written beside its name and renamed at the end: what bears the name is whole."""

    def __init__(self, path: Path, fps: float) -> None:
        self._cv2, self._path, self._fps = _cv2(), path, fps
        self._partial = path.with_name(f".{path.stem}.{os.getpid()}.partial{path.suffix}")
        self._open: Any = None
        self._size, self._count = (0, 0), 0
        runs.make(path.parent)

    def write(self, frame: Pixels) -> None:
        if self._open is None:
            self._size = (frame.shape[1], frame.shape[0])
            code = self._cv2.VideoWriter_fourcc(*("MJPG" if self._path.suffix.lower() == ".avi" else "mp4v"))
            self._open = self._cv2.VideoWriter(str(self._partial), code, self._fps, self._size)
            if not self._open.isOpened():
                raise RunError(f"{self._path} cannot be written as video; take .avi, or a folder for frames")
        if (frame.shape[1], frame.shape[0]) != self._size:  # of which OpenCV would drop the frame without a word
            frame = self._cv2.resize(frame, self._size, interpolation=self._cv2.INTER_AREA)
        self._open.write(self._cv2.cvtColor(np.ascontiguousarray(frame), self._cv2.COLOR_RGB2BGR))
        self._count += 1

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self._open is not None:
            self._open.release()
            if not self._is_whole():  # OpenCV says nothing of a full disk
                self._partial.unlink(missing_ok=True)
                raise RunError(f"{self._path} cannot be written; free space, or take another place")
            self._partial.replace(self._path)

    def _is_whole(self) -> bool:
        capture = self._cv2.VideoCapture(str(self._partial))
        try:
            return bool(capture.get(self._cv2.CAP_PROP_FRAME_COUNT) >= self._count)
        finally:
            capture.release()
