"""Sequences of frames with ground truth: the OTB sets in full, or one folder."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchdfa.errors import UsageError
from torchdfa.track import table
from torchdfa.track.boxes import Boxes, as_boxes
from torchdfa.track.boxfile import read_boxes
from torchdfa.train import runs
from torchdfa.train.photos import SUFFIXES

# Copies of these two differ by one line or image at the end.
_OFF_BY_ONE = ("Board", "Twinnings")
# Of these alone some copies have ground truth of frames that do not count, too.
_ALL_IN_TRUTH = ("Tiger1", "Football1", "Freeman3", "Freeman4", "Diving")


@dataclass(frozen=True)
class Sequence:
    """Frames and the target's true box in each; ``images`` is empty where only the boxes are at hand.

    ``omitted`` counts the frames that other copies have before the first of these (Tiger1: 5).
    """

    name: str
    images: tuple[Path, ...]
    boxes: Boxes = field(repr=False)
    attributes: tuple[str, ...] = ()
    omitted: int = 0

    def __len__(self) -> int:
        return len(self.boxes)

    def head(self, frames: int | None) -> Sequence:
        """Its first frames."""
        return Sequence(self.name, self.images[:frames], self.boxes[:frames], self.attributes, self.omitted)


class OTB:
    """A set of the Online Tracking Benchmark under ``root``: sequences by name, in the authors' order.

    Args:
        root: the folder of the sequence folders, or a .json file of ground truth alone (as pysot's).
        version: ``"OTB-2013"`` (51 targets), ``"OTB-50"`` (50) or ``"OTB-100"`` (100).
        sequences: names of those wanted, in any spelling; by default the whole set.
        missing: ``"error"``, or ``"skip"`` sequences that are not there; ``absent`` lists them.
        truncate: where images and boxes differ in number beyond what is known of the set, use as many as both have.
        omit: leave out Tiger1's first five frames, as the authors' toolkit does (got10k and vot-toolkit do not).
    """

    def __init__(
        self,
        root: str | Path,
        version: str = "OTB-100",
        *,
        sequences: Seq[str] | None = None,
        missing: str = "error",
        truncate: bool = False,
        omit: bool = True,
    ) -> None:
        self.root, self.version, self._set = Path(root), version, version
        if missing not in ("error", "skip"):
            raise UsageError(f'missing={missing!r} must be "error" or "skip"')
        self.wanted = _wanted(version, sequences)
        self._truncate, self._omit = truncate, omit
        source = _from_json(self.root, self.wanted) if self.root.suffix == ".json" else self._from_folders()
        self.sequences: dict[str, Sequence] = source
        self.absent = [name for name in self.wanted if name not in source]
        if self.absent and (missing == "error" or not source):
            raise UsageError(
                f"{self.root} lacks {len(self.absent)} of the {len(self.wanted)} sequences of {version}: "
                f"{', '.join(self.absent[:5])}{' ...' if len(self.absent) > 5 else ''}; "
                'name those wanted, or pass --missing skip (missing="skip")'
            )

    def __len__(self) -> int:
        return len(self.sequences)

    @property
    def size(self) -> int:
        """Targets of the whole set, however many of them were asked for or are there."""
        return len(table.names(self._set))

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self.sequences.values())

    def __getitem__(self, name: str) -> Sequence:
        found = self.sequences.get(table.canonical(name))
        if found is None:
            raise UsageError(f"{self.root} does not hold the sequence {name!r}")
        return found

    def head(self, frames: int) -> OTB:
        """The same set with the first frames of each sequence alone, which its version says."""
        cut = self.noted(f"first {frames} frames")
        cut.sequences = {name: sequence.head(frames) for name, sequence in self.sequences.items()}
        return cut

    def noted(self, condition: str) -> OTB:
        """The same set, whose version says under which condition results on it were made."""
        same = copy.copy(self)
        same.version = f"{self.version}, {condition}"
        return same

    def _from_folders(self) -> dict[str, Sequence]:
        if not self.root.is_dir():
            raise UsageError(f"{self.root} is not a folder of OTB sequences")
        folders = {table.fold(path.name): path for path in sorted(self.root.iterdir()) if path.is_dir()}
        found = {}
        for name in self.wanted:
            target = table.targets()[name]
            folder = folders.get(table.fold(name)) or folders.get(table.fold(target.folder))
            if folder is not None:
                found[name] = read_target(folder, target, truncate=self._truncate, omit=self._omit)
        return found


def _wanted(version: str, sequences: Seq[str] | None) -> list[str]:
    members = table.names(version)
    if sequences is None:
        return members
    chosen = [table.canonical(name) for name in sequences]
    for name in chosen:
        if name not in members:
            raise UsageError(f"{name} is not in {version}; take OTB-100")
        if chosen.count(name) > 1:
            raise UsageError(f"the sequence {name} is named twice")
    return [name for name in members if name in chosen]


def _from_json(path: Path, wanted: list[str]) -> dict[str, Sequence]:
    found: dict[str, Sequence] = {}
    for key, entry in runs.read_json(path).items():
        name = table.known(key)
        if name in wanted and name is not None:
            found[name] = _of_entry(path, key, table.targets()[name], entry)
    return {name: found[name] for name in wanted if name in found}


def _of_entry(path: Path, key: str, target: table.Target, entry: Any) -> Sequence:
    try:
        boxes = as_boxes(entry["gt_rect"])
        images = tuple(path.parent / target.folder / "img" / Path(n).name for n in entry.get("image_files") or ())
    except (KeyError, TypeError, ValueError, AttributeError):
        raise UsageError(f"{path} is damaged: {key!r} has no list gt_rect of boxes") from None
    return Sequence(
        target.name, images, boxes, target.attributes, omitted=(target.first or 1) - 1 if _omits(target) else 0
    )


def _omits(target: table.Target) -> bool:
    return target.name == "Tiger1"


def read_target(folder: Path, target: table.Target, *, truncate: bool = False, omit: bool = True) -> Sequence:
    """One target of OTB from its folder, cut to the frames that count."""
    images = frame_files(folder)
    boxes = read_boxes(_ground_truth(folder, target))
    omitted = (target.first or 1) - 1 if _omits(target) and omit else 0
    first = None if _omits(target) and not omit else target.first
    kept = list(range(len(images)))
    if not _only_those_that_count(target, first, len(images), len(boxes)):
        kept = [k for k, image in enumerate(images) if _counts(image, first, target.last)]
    if len(boxes) == len(images):
        boxes = boxes[kept]
    images = [images[k] for k in kept]
    if omitted and len(boxes) == len(images) + omitted:
        boxes = boxes[omitted:]
    if abs(len(images) - len(boxes)) == 1 and target.name in _OFF_BY_ONE:
        truncate = True
    return _paired(folder, Sequence(target.name, tuple(images), boxes, target.attributes, omitted), truncate)


def _only_those_that_count(target: table.Target, first: int | None, images: int, boxes: int) -> bool:
    """Whether a copy has no other frames; its files may be numbered anew from 1, so their numbers cannot tell."""
    if target.last is not None and images == target.last - (first or 1) + 1:
        return True
    return images <= boxes and target.name not in _ALL_IN_TRUTH


def _counts(image: Path, first: int | None, last: int | None) -> bool:
    digits = re.search(r"(\d+)$", image.stem)
    number = int(digits.group(1)) if digits else None
    return number is None or ((first or number) <= number <= (last or number))


def _paired(folder: Path, sequence: Sequence, truncate: bool) -> Sequence:
    images, boxes = len(sequence.images), len(sequence.boxes)
    if images == boxes:
        return sequence
    if not truncate:
        raise UsageError(
            f"{folder} has {images} images that count but {boxes} boxes; pass --truncate (truncate=True) to use the "
            f"first {min(images, boxes)}"
        )
    return sequence.head(min(images, boxes))


def frame_files(folder: Path) -> list[Path]:
    """The images of a folder of frames in the order of their numbers; UsageError where there are none."""
    for inside in ("img", "color", "."):
        place = folder / inside
        if place.is_dir():
            images = sorted((p for p in place.iterdir() if p.suffix.lower() in SUFFIXES), key=_natural)
            if images:
                return images
    raise UsageError(f"{folder} holds no images: they should lie in {folder / 'img'} or in the folder itself")


def _natural(path: Path) -> tuple[list[str | int], str]:
    """frame2 comes before frame10; the name itself decides between 2 and 02."""
    parts = re.split(r"(\d+)", path.stem)  # text and numbers in turns
    return [int(part) if k % 2 else part for k, part in enumerate(parts)], path.name


def _ground_truth(folder: Path, target: table.Target) -> Path:
    found = find_ground_truth(folder, target)
    if found is None:
        raise UsageError(
            f"{folder} holds no ground truth: a file {target.ground_truth} with a line x,y,w,h for each frame"
        )
    return found


def find_ground_truth(folder: Path, target: table.Target | None = None) -> Path | None:
    """The file of true boxes in a folder of frames, None where there is none; ``target`` by default as the folder's."""
    target = target or table.find(folder.name)
    candidates = [target.ground_truth] if target else []
    candidates += ["groundtruth_rect.txt", "groundtruth.txt"]
    return next((folder / name for name in candidates if (folder / name).is_file()), None)
