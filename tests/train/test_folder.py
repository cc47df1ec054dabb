"""A folder of photos from disk to tensors: the split, the copies, what was left out, and the folder itself."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from torchdfa.errors import UsageError
from torchdfa.train import duplicates, folder


def scene(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize((80, 60), Image.Resampling.BICUBIC)


def photos(root: Path, **counts: int) -> Path:
    """``counts`` different photos in each class folder."""
    for k, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            scene(1000 * k + i).save(root / name / f"{i:03}.jpg")
    return root


def load(root: Path, seed: int = 0, size: int = 16) -> folder.Folder:
    return folder.load(root, image_size=size, seed=seed)


def tree_digest(root: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*")):
        info = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        digest.update(f"{path}|{info.st_mode}|{info.st_mtime_ns}|{info.st_size}|".encode() + content)
    return digest.hexdigest()


def test_photos_become_tensors_with_the_label_of_their_folder(tmp_path: Path) -> None:
    for name, colour in [("blue", (0, 0, 200)), ("red", (200, 0, 0))]:
        (tmp_path / name).mkdir()
        for i in range(5):  # thin lines in different places: not copies of each other
            image = Image.new("RGB", (60, 60), colour)
            image.paste((255, 255, 255), (10 * i, 0, 10 * i + 6, 60))
            image.save(tmp_path / name / f"{i}.png")
    data = load(tmp_path)
    assert data.classes == ("blue", "red")
    assert (data.train_x.shape, data.test_x.shape) == ((8, 3, 16, 16), (2, 3, 16, 16))
    assert (data.train_x.dtype, data.train_y.dtype) == (torch.uint8, torch.int64)
    for x, y in [(data.train_x, data.train_y), (data.test_x, data.test_y)]:
        redder = x[:, 0].float().mean((1, 2)) > x[:, 2].float().mean((1, 2))
        assert torch.equal(redder.long(), y)


def test_the_split_is_stratified_seeded_listed_and_disjoint(tmp_path: Path) -> None:
    photos(tmp_path, a=20, b=10, c=3)
    data = load(tmp_path)
    assert data.test_y.bincount().tolist() == [4, 2, 1]
    train, test = data.source["train_files"], data.source["test_files"]
    assert sorted(train + test) == sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.glob("*/*"))
    for names, y in [(train, data.train_y), (test, data.test_y)]:
        assert [name.split("/")[0] for name in names] == [data.classes[label] for label in y]
    again, other = load(tmp_path), load(tmp_path, seed=1)
    assert again.source == data.source
    assert torch.equal(again.test_x, data.test_x)
    assert other.source["test_files"] != test
    assert data.source["split"] == {"by": "class, copies together", "test_fraction": 0.2, "seed": 0}
    first = folder.decode(tmp_path / test[0], 16)
    assert torch.equal(first, data.test_x[0])


def test_the_source_can_be_written_as_json_and_names_the_content(tmp_path: Path) -> None:
    photos(tmp_path, a=3, b=3)
    source = load(tmp_path).source
    assert json.loads(json.dumps(source)) == source
    files = sorted(tmp_path.glob("*/*"))
    lines = "".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.relative_to(tmp_path)}\n" for f in files)
    assert source["sha256"] == hashlib.sha256(lines.encode()).hexdigest()
    assert source["path"] == str(tmp_path)
    assert source["warnings"] == []


def test_nothing_in_the_folder_changes(tmp_path: Path) -> None:
    photos(tmp_path, a=4, b=4)
    (tmp_path / "a/broken.jpg").write_bytes(b"no photo")
    (tmp_path / "b/link.jpg").symlink_to("000.jpg")
    before = tree_digest(tmp_path)
    load(tmp_path)
    assert tree_digest(tmp_path) == before


def test_a_ready_made_split_is_kept(tmp_path: Path) -> None:
    photos(tmp_path / "train", a=3, b=2)
    for name in "ab":
        (tmp_path / "val" / name).mkdir(parents=True)
        scene(50 + ord(name)).save(tmp_path / "val" / name / "x.png")
    data = load(tmp_path)
    assert data.source["test_files"] == ["val/a/x.png", "val/b/x.png"]
    assert data.train_y.tolist() == [0, 0, 0, 1, 1]
    assert data.source["split"] == {"by": "ready-made folders"}


def test_broken_photos_are_named_counted_and_left_out(tmp_path: Path) -> None:
    photos(tmp_path, a=6, b=6)
    whole = (tmp_path / "a/000.jpg").read_bytes()
    (tmp_path / "a/000.jpg").write_bytes(whole[:-100])
    for k in range(6):
        (tmp_path / f"b/{k}.png").write_bytes(b"<html>")
    data = load(tmp_path)
    assert len(data.train_y) + len(data.test_y) == 11
    assert [item["file"] for item in data.source["skipped"]] == ["a/000.jpg", *(f"b/{k}.png" for k in range(6))]
    assert data.source["skipped"][0]["reason"].startswith("it is broken (OSError: image file is truncated")
    (warning,) = data.source["warnings"]
    assert warning.startswith("7 photo(s) were left out: a/000.jpg (it is broken")
    assert warning.endswith("b/3.png (its content is no image of a format that can be read); and 2 more.")


def test_image_bombs_are_left_out_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path, a=4, b=4)
    Image.new("1", (300, 300)).save(tmp_path / "a/bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 80 * 60)
    assert load(tmp_path).source["skipped"] == [{"file": "a/bomb.png", "reason": "it has more than 4,800 pixels"}]


@pytest.mark.parametrize("broken, usable, reads", [(0, 1, ""), (3, 1, r" \(3 could not be read\)"), (2, 0, r" \(2 c")])
def test_a_class_with_too_few_usable_photos_is_named(broken: int, usable: int, reads: str, tmp_path: Path) -> None:
    photos(tmp_path, a=4, dog=usable)
    for k in range(broken):
        (tmp_path / f"dog/broken{k}.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match=rf"class dog has {usable} usable photo\(s\){reads}.*; it needs at least 2"):
        load(tmp_path)


def test_a_ready_made_class_whose_test_photos_are_all_broken_is_named(tmp_path: Path) -> None:
    photos(tmp_path / "train", a=2, b=2)
    photos(tmp_path / "test", a=1, b=0)
    (tmp_path / "test/b/x.jpg").write_bytes(b"")
    with pytest.raises(UsageError, match=r"class b has 0 usable photo\(s\) in the test folder \(1 could not be read\)"):
        load(tmp_path)


def test_copies_and_near_copies_stay_on_one_side(tmp_path: Path) -> None:
    photos(tmp_path, a=8, b=8)
    for i in range(8):
        (tmp_path / f"a/copy{i}.jpg").write_bytes((tmp_path / f"a/{i:03}.jpg").read_bytes())
        scene(1000 + i).save(tmp_path / f"b/near{i}.jpg", quality=40)
    for seed in range(5):
        source = load(tmp_path, seed).source
        assert source["duplicates"] == {"pairs": 16, "across": [], "near_copies_looked_for": True}
        assert source["warnings"] == []
        test = set(source["test_files"])
        assert len(test) == 4  # 20 % of 16 is 3: one pair of each class
        for i in range(8):
            assert (f"a/{i:03}.jpg" in test) == (f"a/copy{i}.jpg" in test)
            assert (f"b/{i:03}.jpg" in test) == (f"b/near{i}.jpg" in test)


def test_copies_across_a_ready_made_split_are_told_by_name(tmp_path: Path) -> None:
    photos(tmp_path / "train", a=3, b=3)
    photos(tmp_path / "test", a=0, b=0)
    (tmp_path / "test/a/x.jpg").write_bytes((tmp_path / "train/a/001.jpg").read_bytes())
    scene(1002).save(tmp_path / "test/b/y.jpg", quality=40)
    data = load(tmp_path)
    assert data.source["duplicates"]["across"] == [
        ["train/a/001.jpg", "test/a/x.jpg"],
        ["train/b/002.jpg", "test/b/y.jpg"],
    ]
    (warning,) = data.source["warnings"]
    assert warning.startswith("2 pair(s) of copies or near-copies lie across training and test")
    assert "train/a/001.jpg ~ test/a/x.jpg" in warning


def test_one_photo_in_two_classes_is_told_and_never_tested_on(tmp_path: Path) -> None:
    photos(tmp_path, a=5, b=5)
    (tmp_path / "b/same.jpg").write_bytes((tmp_path / "a/002.jpg").read_bytes())
    for seed in range(5):
        source = load(tmp_path, seed).source
        assert source["warnings"] == ["1 pair(s) of copies or near-copies are of two classes: a/002.jpg ~ b/same.jpg."]
        assert {"a/002.jpg", "b/same.jpg"} <= set(source["train_files"])


def test_a_class_of_near_copies_is_split_all_the_same_and_told(tmp_path: Path) -> None:
    photos(tmp_path, a=5, b=0)
    for quality in (30, 50, 70, 90):
        scene(7).save(tmp_path / f"b/{quality}.jpg", quality=quality)
    data = load(tmp_path)
    assert data.test_y.bincount().tolist() == [1, 1]
    assert data.source["warnings"][0].startswith("A class consists of near-copies of one photo")
    assert data.source["warnings"][1].startswith("3 pair(s) of copies or near-copies lie across")


def test_a_class_of_copies_cannot_be_split(tmp_path: Path) -> None:
    photos(tmp_path, a=5, b=1)
    for k in range(3):
        (tmp_path / f"b/copy{k}.jpg").write_bytes((tmp_path / "b/000.jpg").read_bytes())
    with pytest.raises(UsageError, match=r"cannot be split: Class b has 4 .* Copies of one photo count once"):
        load(tmp_path)


def test_where_near_copies_were_not_looked_for_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "MAX_PHOTOS", 5)
    data = load(photos(tmp_path, a=3, b=3))
    assert data.source["duplicates"]["near_copies_looked_for"] is False
    assert data.source["warnings"][0].startswith("Near-copies were not looked for: more than 5 photos")


def test_more_pixels_than_the_machine_can_hold_are_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos(tmp_path, a=2, b=2)
    monkeypatch.setattr(os, "sysconf", {"SC_PHYS_PAGES": 4, "SC_PAGE_SIZE": 768}.__getitem__)
    assert load(tmp_path, size=11).train_x.shape == (2, 3, 11, 11)
    with pytest.raises(UsageError, match=r"4 photos of 12 x 12 pixels take .* choose a smaller image_size"):
        load(tmp_path, size=12)


def test_an_interrupt_is_not_held_up_by_the_photos_that_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    photos(tmp_path, a=100, b=100)
    read: list[Path] = []
    whole = folder.photos.read

    def note(path: Path) -> bytes:
        read.append(path)
        return whole(path)

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(folder.photos, "read", note)
    monkeypatch.setattr(folder, "track", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path)
    assert len(read) < 200
