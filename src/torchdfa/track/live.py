"""`torchdfa track`: one or several trackers over a video, with boxes as text and an annotated copy."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchdfa.errors import RunError, UsageError
from torchdfa.track import cost, draw, truth, video
from torchdfa.track.boxes import overlap
from torchdfa.track.boxfile import write_boxes
from torchdfa.track.checks import checked_box
from torchdfa.track.stopping import TrackingStopped
from torchdfa.track.tracker import Tracker
from torchdfa.track.truth import Truth
from torchdfa.track.watching import Watch
from torchdfa.train import machine, runs
from torchdfa.train.csvfile import to_csv
from torchdfa.train.stop import ALARM, StopSignals

_HEADER = ("frame", "x", "y", "w", "h", "score", "lost", "seconds")
_SUMMARY = "summary.json"


def parse_box(text: str) -> tuple[float, ...]:
    """Four numbers from "x,y,w,h"; UsageError otherwise."""
    try:
        values = tuple(float(part) for part in text.replace(";", ",").split(","))
    except ValueError:
        values = ()
    if len(values) != 4:
        raise UsageError(f"--box must be four numbers x,y,w,h in pixels; got {text!r}")
    return values


class _Line:
    """One tracker and what it said of each frame."""

    def __init__(self, tracker: Tracker, colour: str) -> None:
        self.tracker, self.colour = tracker, colour
        self.rows: list[list[Any]] = []

    def see(self, frame: NDArray[np.uint8], box: Any) -> None:
        began, t = time.perf_counter(), self.tracker
        if self.rows:
            t.update(frame)
        else:
            t.init(frame, box)
        seconds = time.perf_counter() - began
        self.rows.append(
            [len(self.rows) + 1, *t.box.round(3).tolist(), round(t.score, 4), int(t.lost), round(seconds, 4)]
        )

    def mark(self) -> draw.Mark:
        t = self.tracker
        score = "first frame" if len(self.rows) == 1 else f"{'lost' if t.lost else 'seen'}, score {t.score:+.2f}"
        return draw.Mark(t.box, self.colour, f"{t.name}: {score}", t.lost)

    @property
    def boxes(self) -> NDArray[np.float64]:
        return np.array([row[1:5] for row in self.rows], dtype=np.float64)


def track(
    source: str, trackers: Seq[Tracker], out: Path, *, box: Any = None, video_out: Path | None = None,
    select: bool = False, frames: int | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Track through ``source`` with all ``trackers``; returns and writes the summary.

    ``out`` gets, for each tracker, <name>.txt (a line x,y,w,h for each frame) and <name>.csv (with score, lost and
    seconds), and summary.json. ``box`` defaults to the folder's ground truth where it has one. ``video_out``: a video
    file or a folder of annotated frames, several trackers side by side.
    """
    check_outputs(out, [t.name for t in trackers], video_out)
    known = truth.of_folder(source, needed=box is None and not select)
    stream = itertools.islice(video.read(source), frames)
    first = next(iter(stream), None)
    if first is None:
        raise UsageError(f"{source} gives no frame to track in (0 frames)")
    box = _first_box(box, select, first, known)
    checked_box(box, (first.shape[1], first.shape[0]))
    made = runs.absent(out)
    runs.make(out)
    lines = [_Line(t, colour) for t, colour in zip(trackers, itertools.cycle(draw.COLOURS), strict=False)]
    signum: int | None = None
    try:
        writer = video.writer(video_out, video.rate(source))
        signum = _go(lines, itertools.chain([first], stream), box, writer, _total(source, frames))
    except (UsageError, RunError) as error:  # such as a frame that cannot be read, or a full disk
        if not lines[0].rows:
            raise
        kept = f"What was tracked before, {len(lines[0].rows)} frames, is in {out}"
        raise RunError(f"{str(error).rstrip('.')}. {kept}") from None
    finally:
        summary = _write(out, lines, source, known, stopped=signum != 0)
        if not summary["trackers"]:
            runs.discard(made)
    if signum:
        raise TrackingStopped(signum, out, f"stopped after {len(lines[0].rows)} frames; {_kept(summary, out)}")
    return summary


def _kept(summary: dict[str, Any], out: Path) -> str:
    return f"what was tracked is in {out}" if summary["trackers"] else "nothing was tracked"


def check_outputs(out: Path, names: Seq[str], video_out: Path | None) -> None:
    """UsageError where tracking would write over something that exists."""
    files = [_SUMMARY, *(f"{name}{end}" for name in names for end in (".txt", ".csv"))]
    taken = next((name for name in files if (out / name).exists()), None)
    if taken is not None:
        raise UsageError(f"{out} holds a track already ({taken}), which is never overwritten; take another --out")
    if out.exists() and not out.is_dir():
        raise UsageError(f"--out {out} is a file; take another, for a folder")
    video.require_free(video_out)


def _total(source: str, frames: int | None) -> int | None:
    lengths = [length for length in (video.length(source), frames) if length is not None]
    return min(lengths, default=None)


def _first_box(box: Any, select: bool, first: NDArray[np.uint8], known: Truth | None) -> Any:
    if box is not None:
        return box
    if select:
        from torchdfa.track.select import select as draw_box

        return draw_box(first)
    if known is None:
        raise UsageError("where is the target? pass --box x,y,w,h of the first frame, or --select to draw it")
    return known.first


def _go(lines: Seq[_Line], stream: Any, box: Any, writer: video.Writer, total: int | None) -> int:
    with StopSignals() as signals, writer as out, Watch("tracking", total) as watch:
        try:
            for frame in stream:
                began = time.perf_counter()
                for line in lines:
                    line.see(frame, box)
                marks = [line.mark() for line in lines]
                out.write(draw.side_by_side([draw.marked(frame, [mark]) for mark in marks]))
                seconds = time.perf_counter() - began
                watch.step(len(lines[0].rows), f"{1 / seconds:.2f} frames/s  {'  '.join(m.label for m in marks)}")
                if signals.signum:
                    return signals.signum if signals.signum != ALARM else 0
        except KeyboardInterrupt:
            return 2
    return 0


def _write(out: Path, lines: Seq[_Line], source: str, known: Truth | None, *, stopped: bool) -> dict[str, Any]:
    summary: dict[str, Any] = {"source": Path(source).name, "frames": len(lines[0].rows), "stopped": stopped,
                               "machine": machine.describe(), "trackers": {}}  # fmt: skip
    for line in lines:
        if not line.rows:  # stopped before it saw a frame
            continue
        t = line.tracker
        write_boxes(out / f"{t.name}.txt", line.boxes)
        runs.write(out / f"{t.name}.csv", to_csv(_HEADER, line.rows))
        seconds = sum(row[-1] for row in line.rows)
        figures: dict[str, Any] = {
            "frames_per_second": round(len(line.rows) / seconds, 3),
            "lost_frames": sum(row[6] for row in line.rows), "updates": dict(t.counts),
            "restored_updates": t.learner.restored, "time_shares": cost.shares(t.seconds),
            "error_path": cost.error_path(t.learner), "config": t.config.to_dict(),
            "weights": t.weights.origin if t.weights else "untrained",
        }  # fmt: skip
        if known is not None and known.boxes is not None:
            figures["mean_overlap"] = round(float(overlap(line.boxes, known.boxes[: len(line.rows)]).mean()), 4)
        summary["trackers"][t.name] = figures
    if summary["trackers"]:
        runs.write_json(out / _SUMMARY, summary)
    return summary
