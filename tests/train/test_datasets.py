"""The one door: digits, subsets, held-out parts, sizes and statistics; CIFAR and folders have tests of their own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from torchdfa.errors import UsageError
from torchdfa.train import cifar, datasets


def images_of(x: Tensor) -> list[bytes]:
    return [image.numpy().tobytes() for image in x]


def scenes(root: Path, **counts: int) -> Path:
    for k, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            coarse = np.random.default_rng(1000 * k + i).integers(0, 256, (9, 9, 3), np.uint8)
            Image.fromarray(coarse).resize((40, 40), Image.Resampling.BICUBIC).save(root / name / f"{i}.png")
    return root


def small_cifar(monkeypatch: pytest.MonkeyPatch) -> cifar.Cifar:
    g = torch.Generator().manual_seed(0)
    x = torch.randint(256, (600, 3, 32, 32), generator=g).to(torch.uint8)
    y = torch.arange(600) % 10
    parts = cifar.Cifar(x[:500], y[:500], x[500:], y[500:], tuple("abcdefghij"), {"path": "somewhere"})
    monkeypatch.setattr(cifar, "load", lambda *_, **__: parts)
    return parts


def test_digits_are_scikit_learns_with_a_fixed_stratified_test_part() -> None:
    data = datasets.load("digits")
    assert (data.name, data.classes) == ("digits", tuple("0123456789"))
    assert (data.train_x.shape, data.test_x.shape) == ((1438, 1, 8, 8), (359, 1, 8, 8))
    assert (data.train_x.dtype, data.train_y.dtype) == (torch.uint8, torch.int64)
    assert (int(data.train_x.min()), int(data.train_x.max())) == (0, 255)
    assert data.test_y.bincount().tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert len(set(images_of(data.train_x)) & set(images_of(data.test_x))) == 0
    other = datasets.load("digits", seed=5)
    assert torch.equal(other.test_x, data.test_x)
    assert other.source == data.source
    assert data.source["sha256"]["images"].startswith("b41ca9fd335466ee")


def test_the_statistics_are_those_of_the_training_images(monkeypatch: pytest.MonkeyPatch) -> None:
    small_cifar(monkeypatch)
    for options in ({}, {"subset": 50}, {"validate": 0.3}):
        data = datasets.load("cifar10", **options)  # type: ignore[arg-type]
        pixels = data.train_x.double() / 255
        assert torch.allclose(torch.tensor(data.mean).double(), pixels.mean((0, 2, 3)), atol=1e-7)
        assert torch.allclose(torch.tensor(data.std).double(), pixels.std((0, 2, 3), correction=0), atol=1e-7)


def test_a_channel_of_one_value_can_still_be_divided_by() -> None:
    assert datasets.channel_statistics(torch.full((4, 1, 2, 2), 51, dtype=torch.uint8)) == ((0.2,), (1 / 255,))


def test_a_subset_is_balanced_fixed_and_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    small_cifar(monkeypatch)
    small, large = (datasets.load("cifar10", subset=size, seed=3) for size in (100, 200))
    assert small.train_y.bincount().tolist() == [10] * 10
    assert set(images_of(small.train_x)) < set(images_of(large.train_x))
    assert torch.equal(small.train_x, datasets.load("cifar10", subset=100, seed=3).train_x)
    assert not torch.equal(small.train_x, datasets.load("cifar10", subset=100, seed=4).train_x)
    assert torch.equal(small.test_x, large.test_x)
    assert small.source["subset"] == {"images": 100, "seed": 3}


def test_validation_comes_out_of_the_training_images_and_hides_the_test_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = small_cifar(monkeypatch)
    data = datasets.load("cifar10", validate=0.2, seed=1)
    assert data.test_y.bincount().tolist() == [10] * 10
    assert len(data.train_y) == 400
    assert sorted(images_of(data.train_x) + images_of(data.test_x)) == sorted(images_of(parts.train_x))
    assert set(images_of(data.test_x)).isdisjoint(images_of(parts.test_x))
    assert torch.equal(data.test_x, datasets.load("cifar10", validate=0.2, seed=1).test_x)
    assert not torch.equal(data.test_x, datasets.load("cifar10", validate=0.2, seed=2).test_x)
    assert data.source["validate"] == {"fraction": 0.2, "seed": 1, "images": 100}
    both = datasets.load("cifar10", validate=0.2, subset=50, seed=1)
    assert torch.equal(both.test_x, data.test_x)
    assert set(images_of(both.train_x)) < set(images_of(data.train_x))


def test_sizes_other_than_the_data_sets_own_are_resized_with_antialias(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = small_cifar(monkeypatch)
    assert torch.equal(datasets.load("cifar10", image_size=32).train_x, parts.train_x)
    half = datasets.load("cifar10", image_size=16)
    assert (half.train_x.shape, half.test_x.shape) == ((500, 3, 16, 16), (100, 3, 16, 16))
    assert half.train_x.float().std() < 0.7 * parts.train_x.float().std()  # noise is averaged, not picked
    assert datasets.load("digits", image_size=32).train_x.shape == (1438, 1, 32, 32)


def test_a_folder_has_64_pixels_unless_told_and_its_lists_follow_the_choices(tmp_path: Path) -> None:
    root = scenes(tmp_path / "pets", cat=20, dog=10)
    data = datasets.load(str(root))
    assert (data.name, data.classes) == ("pets", ("cat", "dog"))
    assert data.train_x.shape == (24, 3, 64, 64)
    chosen = datasets.load(str(root), image_size=16, validate=0.25, subset=4)
    assert chosen.train_x.shape == (4, 3, 16, 16)
    for x, y, files in [
        (chosen.train_x, chosen.train_y, chosen.source["train_files"]),
        (chosen.test_x, chosen.test_y, chosen.source["test_files"]),
    ]:
        assert [file.split("/")[0] for file in files] == [chosen.classes[label] for label in y]
        for image, file in zip(x, files, strict=True):
            assert torch.equal(image, datasets.folder.decode(root / file, 16))
    assert len(chosen.source["test_files"]) == 6
    assert set(chosen.source["test_files"]) < set(data.source["train_files"])


def test_validation_keeps_copies_together_too(tmp_path: Path) -> None:
    root = scenes(tmp_path / "pets", cat=10, dog=10)
    for path in list(root.glob("*/*.png")):
        path.with_name(f"copy of {path.name}").write_bytes(path.read_bytes())
    for seed in range(4):
        test = set(datasets.load(str(root), image_size=16, validate=0.3, seed=seed).source["test_files"])
        assert len(test) >= 4
        for file in test:
            folder, name = file.split("/")
            twin = name.removeprefix("copy of ") if name.startswith("copy of ") else f"copy of {name}"
            assert f"{folder}/{twin}" in test


def test_data_dir_says_where_a_folder_lies(tmp_path: Path) -> None:
    scenes(tmp_path / "pets", cat=3, dog=3)
    assert datasets.load("pets", data_dir=tmp_path).name == "pets"


@pytest.mark.parametrize("name", ["digits", "cifar10", "folder"])
def test_the_source_is_json_and_has_a_list_of_warnings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_cifar(monkeypatch)
    data = datasets.load(str(scenes(tmp_path / "pets", cat=3, dog=3)) if name == "folder" else name)
    assert json.loads(json.dumps(data.source)) == data.source
    assert data.source["warnings"] == []
    assert "path" in data.source


@pytest.mark.parametrize(
    "data, options, sentence",
    [
        ("digit", {}, r"data must be digits, cifar10, cifar100 or a folder of photos, but .*/digit is no folder"),
        ("digits", {"image_size": 0}, r"image_size must be in 1 \.\. 1024 pixels, but is 0"),
        ("digits", {"image_size": 5000}, "but is 5000"),
        ("digits", {"validate": 1.0}, r"validate must be a fraction .*, but is 1\.0"),
        ("digits", {"validate": -0.1}, "validate must be a fraction"),
        ("digits", {"validate": float("nan")}, "validate must be a fraction"),
        ("digits", {"subset": 9}, r"subset must be at least the number of classes \(10\)"),
        ("digits", {"subset": 1439}, r"number of training images \(1438\), but is 1439"),
    ],
)
def test_wrong_arguments_get_one_sentence(data: str, options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        datasets.load(data, **options)
