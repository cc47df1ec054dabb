"""What a folder of frames says of its target: where it begins, and where it is in each frame."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path

from torchdfa.errors import UsageError
from torchdfa.track import table
from torchdfa.track.boxes import Boxes
from torchdfa.track.boxfile import read_boxes
from torchdfa.track.sequences import find_ground_truth, frame_files


@dataclass(frozen=True)
class Truth:
    """The box (4,) of the first image, and those (n, 4) of all n images, None where the file has another number."""

    first: Boxes
    boxes: Boxes | None


def of_folder(source: str, *, needed: bool) -> Truth | None:
    """The ground truth that lies in a folder of frames; None where ``source`` has none.

    All images count, whatever the folder's name: the benchmark's cuts are a matter of ``torchdfa otb``. A file that
    cannot be used is a UsageError where the first box is ``needed``, and else a warning.
    """
    folder = Path(source)
    file = find_ground_truth(folder) if folder.is_dir() else None
    if file is None:
        return None
    try:
        return _read(folder, file)
    except UsageError as error:
        if needed:
            raise
        warnings.warn(f"the folder's ground truth is not used: {error}.", stacklevel=3)
        return None


def _read(folder: Path, file: Path) -> Truth:
    boxes, images = read_boxes(file), len(frame_files(folder))
    if len(boxes) == images:
        return Truth(boxes[0], boxes)
    target = table.find(folder.name)
    if target is not None and (target.first or 1) > 1:
        raise UsageError(
            f"{file} begins at frame {target.first} of {target.name}, not at the first of the {images} images here; "
            "pass --box of the first image, or use 'torchdfa otb run', which leaves the frames before out"
        )
    if len(boxes) > 1:
        warnings.warn(
            f"{folder} has {images} images and {len(boxes)} boxes of ground truth; only the first box is used.",
            stacklevel=4,
        )
    return Truth(boxes[0], None)
