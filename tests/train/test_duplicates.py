"""Copies and near-copies: found after the changes that photos go through, and only then."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from torchdfa.train import duplicates


def scene(seed: int, side: int = 96) -> Image.Image:
    """A smooth random picture, as photos are smooth at the scale of a thumbnail."""
    coarse = np.random.default_rng(seed).integers(0, 256, (9, 9, 3), np.uint8)
    return Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)


def tensor(*images: Image.Image, side: int = 64) -> Tensor:
    arrays = [np.array(image.resize((side, side), Image.Resampling.BILINEAR)) for image in images]
    return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)


def compressed(image: Image.Image, quality: int) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file)


@pytest.mark.parametrize(
    "change",
    [
        lambda image: compressed(image, 30),
        lambda image: image.resize((48, 48)),
        lambda image: ImageEnhance.Brightness(image).enhance(1.04),
        lambda image: image.crop((1, 1, 95, 95)),
    ],
    ids=["compressed", "resized", "brighter", "cropped"],
)
def test_a_changed_copy_is_found_and_no_other(change) -> None:  # type: ignore[no-untyped-def]
    scenes = [scene(seed) for seed in range(40)]
    pairs = duplicates.near_pairs(tensor(*scenes, change(scenes[7]), change(scenes[20])))
    assert pairs is not None
    assert pairs.tolist() == [[7, 40], [20, 41]]


def test_plain_surfaces_of_different_colours_are_no_copies() -> None:
    colours = [(0, 0, 0), (255, 255, 255), (200, 30, 30), (30, 200, 30), (200, 30, 36)]
    pairs = duplicates.near_pairs(tensor(*(Image.new("RGB", (8, 8), colour) for colour in colours)))
    assert pairs is not None
    assert pairs.tolist() == [[2, 4]]


def test_pairs_are_found_across_pieces_of_the_comparison() -> None:
    x = torch.randint(256, (1300, 3, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    x[1299], x[1025], x[600] = x[3], x[513], x[511]
    pairs = duplicates.near_pairs(x)
    assert pairs is not None
    assert sorted(pairs.tolist()) == [[3, 1299], [511, 600], [513, 1025]]


def test_the_hash_says_where_it_gets_brighter_to_the_right() -> None:
    rising = torch.arange(0, 250, 10, dtype=torch.uint8).expand(1, 1, 25, 25)
    assert duplicates.difference_hash(rising).tolist() == [[1.0] * 64]
    assert duplicates.difference_hash(rising.flip(-1)).tolist() == [[-1.0] * 64]


def test_exact_copies_group_by_their_files_and_join_the_near_ones() -> None:
    a, b, c = scene(1), scene(2), scene(3)
    x = tensor(a, b, a, c, compressed(a, 40))
    found = duplicates.find(x, ["a", "b", "a", "c", "a as jpeg"])
    assert found.exact.tolist() == [0, 1, 0, 3, 4]
    assert found.near.tolist() == [0, 1, 0, 3, 0]
    assert found.pairs.tolist() == [[0, 2], [0, 4], [2, 4]]
    assert found.complete


def test_chains_of_pairs_are_one_group() -> None:
    chain = np.array([[5, 9], [9, 2], [2, 7], [3, 4]])
    assert duplicates.connected(10, chain).tolist() == [0, 1, 2, 3, 3, 2, 6, 2, 8, 2]
    n = 300
    order = np.random.default_rng(0).permutation(n)
    assert set(duplicates.connected(n, np.stack([order[:-1], order[1:]], axis=1)).tolist()) == {0}
    assert duplicates.connected(3, np.empty((0, 2), np.int64)).tolist() == [0, 1, 2]


def test_too_many_to_compare_leaves_the_exact_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    x = tensor(scene(1), scene(1), scene(1))
    monkeypatch.setattr(duplicates, "MAX_PAIRS", 2)
    found = duplicates.find(x, ["a", "b", "b"])
    assert (found.complete, found.near.tolist(), found.pairs.tolist()) == (False, [0, 1, 1], [[1, 2]])
    monkeypatch.undo()
    assert duplicates.find(x, ["a", "b", "b"]).near.tolist() == [0, 0, 0]
    monkeypatch.setattr(duplicates, "MAX_PHOTOS", 2)
    assert not duplicates.find(x, ["a", "b", "b"]).complete
