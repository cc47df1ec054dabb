from __future__ import annotations

import numpy as np
import pytest
import torch

from torchdfa.errors import UsageError
from torchdfa.paper import near_duplicates


def photos(n: int, seed: int) -> torch.Tensor:
    """Smooth random pictures, as photos are."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(n, 3, 6, 6, generator=generator)
    fine = torch.nn.functional.interpolate(coarse, (32, 32), mode="bicubic").clamp(0, 1)
    return (fine * 255).to(torch.uint8)


def test_copies_with_noise_are_found_and_others_are_not():
    train, test = photos(600, 0), photos(40, 1)
    noise = torch.randint(-2, 3, (10, 3, 32, 32), generator=torch.Generator().manual_seed(2))
    test[:10] = (train[590:].int() + noise).clamp(0, 255).to(torch.uint8)
    assert near_duplicates.matches(test, train).tolist() == [True] * 10 + [False] * 30


def test_a_copy_in_other_colours_is_none():
    train = photos(1, 0)
    grey = train.float().mean(1, keepdim=True).expand(-1, 3, -1, -1).to(torch.uint8)
    assert near_duplicates.matches(train, train).all()
    assert not near_duplicates.matches((grey // 3), train).any()


def test_the_list_is_read_as_it_was_written(tmp_path):
    path = near_duplicates.path(tmp_path, "cifar10")
    near_duplicates.write(path, {"test_images": 20, "found": [3, 7]})
    mask = near_duplicates.read("cifar10", tmp_path)
    assert mask is not None
    assert np.flatnonzero(mask).tolist() == [3, 7]
    assert near_duplicates.read("cifar100", tmp_path) is None


@pytest.mark.parametrize(
    "value", [{}, {"test_images": 5, "found": [9]}, {"test_images": -1, "found": []}, {"test_images": 5, "found": "x"}]
)
def test_a_damaged_list_is_named(tmp_path, value):
    near_duplicates.write(near_duplicates.path(tmp_path, "cifar10"), value)
    with pytest.raises(UsageError, match=r"cifar10-near-duplicates\.json is damaged"):
        near_duplicates.read("cifar10", tmp_path)


@pytest.mark.parametrize("data, known_percent", [("cifar10", 3.3), ("cifar100", 10)])
def test_the_lists_that_come_with_the_package_are_plausible(data, known_percent):
    mask = near_duplicates.read(data)
    assert mask is not None
    assert 0.3 * known_percent / 4 < 100 * mask.mean() < known_percent
