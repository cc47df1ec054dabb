"""`torchdfa otb play`: stored boxes of several trackers in one picture."""

from __future__ import annotations

import itertools
from collections.abc import Sequence as Seq
from pathlib import Path

from torchdfa.errors import UsageError
from torchdfa.track import draw, results, video
from torchdfa.track.boxes import overlap
from torchdfa.track.frames import pixels
from torchdfa.track.reporting import tracker_folders
from torchdfa.track.sequences import OTB


def play(
    name: str, folders: Seq[Path], data: Path, out: Path, frames: int | None = None, *, truncate: bool = False
) -> int:
    """Draw into the frames of one sequence; returns their number. UsageError where a tracker has no result of it."""
    sequence = OTB(data, sequences=[name], truncate=truncate).sequences.popitem()[1]
    if not sequence.images:
        raise UsageError(f"{data} holds no images to draw into; --data must be a folder of sequences")
    found = [results.read(folder) for folder in tracker_folders(folders)]
    for one in found:
        if sequence.name not in one.boxes:
            raise UsageError(f"{one.tracker} has no result of {sequence.name}")
    boxes = [one.boxes[sequence.name][max(0, len(one.boxes[sequence.name]) - len(sequence)) :] for one in found]
    count = min(len(sequence), *(len(b) for b in boxes), frames or len(sequence))
    with video.writer(out) as writer:
        for k in range(count):
            truth = sequence.boxes[k]
            marks = [draw.Mark(truth, draw.TRUTH)]
            for one, rows, colour in zip(found, boxes, itertools.cycle(draw.COLOURS), strict=False):
                iou = float(overlap(rows[k], truth)[0])
                marks.append(draw.Mark(rows[k], colour, f"{one.tracker} {iou:.2f}"))
            frame = pixels(sequence.images[k]).permute(1, 2, 0).numpy()
            writer.write(draw.marked(frame, marks, f"{sequence.name} {k + 1}/{len(sequence)}"))
    return count
