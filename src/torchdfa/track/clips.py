"""Videos to pretrain on: folders in the layout of OTB, VOT, TLP or GOT-10k, frames without a target left out."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np

from torchdfa.errors import UsageError
from torchdfa.track import table
from torchdfa.track.boxes import Boxes, enclosing
from torchdfa.track.boxfile import read_rows, read_times
from torchdfa.track.sequences import Sequence, frame_files, read_target

_COLUMNS = {4: "x,y,w,h", 6: "frame,x,y,w,h,lost as in TLP", 8: "a polygon"}


def read_clip(folder: Path) -> Sequence:
    """The frames of a folder that show the target, with its boxes (n, 4).

    OTB: groundtruth_rect.txt, img/; VOT: groundtruth.txt of boxes or polygons, frames beside it or in color/; TLP:
    groundtruth_rect.txt with frame number and lost flag, img/; GOT-10k: groundtruth.txt and absence.label.
    """
    name = table.known(folder.name)
    if name is not None and (folder / table.targets()[name].ground_truth).is_file():
        return _shown(read_target(folder, table.targets()[name]))
    truth = next((folder / n for n in ("groundtruth_rect.txt", "groundtruth.txt") if (folder / n).is_file()), None)
    if truth is None:
        raise UsageError(f"{folder} holds no groundtruth_rect.txt or groundtruth.txt")
    images = frame_files(folder)
    rows = read_rows(truth, _COLUMNS, gaps=(8,))
    boxes, seen = _boxes(rows)
    if len(boxes) != len(images):
        raise UsageError(f"{folder} has {len(images)} images but {len(boxes)} boxes")
    if (folder / "absence.label").is_file():
        absent = read_times(folder / "absence.label")
        if len(absent) != len(boxes):
            raise UsageError(f"{folder / 'absence.label'} has {len(absent)} lines for {len(boxes)} frames")
        seen = seen & (absent == 0)
    kept = np.flatnonzero(seen)
    return _shown(Sequence(folder.name, tuple(images[k] for k in kept), boxes[kept]))


def _boxes(rows: Boxes) -> tuple[Boxes, Any]:
    """Boxes, and which of them are of a target that is in view."""
    if rows.shape[1] == 6:
        return rows[:, 1:5], rows[:, 5] == 0
    if rows.shape[1] == 8:  # VOT writes NaN where the target is out of view
        return enclosing(rows), np.isfinite(rows).all(axis=1)
    return rows, np.ones(len(rows), dtype=bool)


def _shown(sequence: Sequence) -> Sequence:
    """Without frames whose box has no area; UsageError where none is left."""
    kept = np.flatnonzero((sequence.boxes[:, 2:] > 0).all(axis=1))
    if not len(kept):
        raise UsageError(f"{sequence.name} has no frame that shows its target")
    return Sequence(sequence.name, tuple(sequence.images[k] for k in kept), sequence.boxes[kept])


def find_clips(roots: list[Path]) -> list[Sequence]:
    """The clips of each folder: it itself, or each folder in it that holds a ground truth.

    Folders of a clip that cannot be used are left out with a warning; UsageError where none is left.
    """
    found: dict[str, Sequence] = {}
    for root in roots:
        if not root.is_dir():
            raise UsageError(f"{root} is not a folder of clips")
        folders = [root] if _is_clip(root) else [f for f in sorted(root.iterdir()) if f.is_dir() and _is_clip(f)]
        for folder in folders:
            try:
                clip = read_clip(folder)
            except UsageError as error:
                warnings.warn(f"left out: {error}.", stacklevel=2)
                continue
            if clip.name in found:
                raise UsageError(f"two clips are named {clip.name!r}; rename one")
            found[clip.name] = clip
    if not found:
        raise UsageError(
            f"no clip in {', '.join(map(str, roots))}: each should be a folder of frames with groundtruth_rect.txt or "
            "groundtruth.txt"
        )
    return list(found.values())


def _is_clip(folder: Path) -> bool:
    return any(folder.glob("groundtruth*.txt"))
