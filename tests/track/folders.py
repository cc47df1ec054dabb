"""Folders as OTB has them, made on the spot."""

from __future__ import annotations

import csv
from pathlib import Path

from PIL import Image


def make(root: Path, name: str, first: int, last: int, boxes: int | dict[str, int], digits: int = 4) -> Path:
    """A folder of images (blank, 8 x 6) numbered first to last; line k of its ground truth is k+1,2,3,4."""
    folder = root / name
    (folder / "img").mkdir(parents=True)
    Image.new("RGB", (8, 6)).save(folder / "img" / f"{first:0{digits}d}.jpg")
    content = (folder / "img" / f"{first:0{digits}d}.jpg").read_bytes()
    for number in range(first + 1, last + 1):
        (folder / "img" / f"{number:0{digits}d}.jpg").write_bytes(content)
    files = {"groundtruth_rect.txt": boxes} if isinstance(boxes, int) else boxes
    for file, count in files.items():
        (folder / file).write_text("".join(f"{k + 1},2,3,4\n" for k in range(count)))
    return folder


def table(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file by column."""
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
