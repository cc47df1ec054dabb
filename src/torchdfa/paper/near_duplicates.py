"""Test images of CIFAR that have a near copy among the training images, which rewards memorising.

Barz & Denzler (2020) found 3.3 % of CIFAR-10's and 10 % of CIFAR-100's test images to be such, by features of a
network and by eye. Here a copy is found by a perceptual hash and the colours of a thumbnail, so fewer are.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from torchdfa.errors import UsageError
from torchdfa.paper import results
from torchdfa.train import cifar, runs
from torchdfa.train.duplicates import MAX_BITS, MAX_LEVELS, difference_hash, thumbnail

BLOCK = 512
TEST_IMAGES = 10_000


def matches(test: Tensor, train: Tensor) -> Tensor:
    """(N,) bool: has a test image (N, C, S, S) uint8 a near copy among the training images (M, C, S, S)?

    As `train.duplicates` judges photos: at most MAX_BITS of 64 bits of the difference hash differ, and thumbnails by
    at most MAX_LEVELS on average.
    """
    hashes, colours = _described(train)
    found = []
    for block in test.split(BLOCK):
        own_hashes, own_colours = _described(block)
        alike = own_hashes @ hashes.T >= own_hashes.shape[1] - 2 * MAX_BITS
        rows, columns = alike.nonzero(as_tuple=True)
        near = (own_colours[rows] - colours[columns]).abs().mean(1) <= MAX_LEVELS
        found.append(torch.zeros(len(block), dtype=torch.bool).index_fill_(0, rows[near], True))
    return torch.cat(found)


def _described(x: Tensor) -> tuple[Tensor, Tensor]:
    parts = [(difference_hash(part), thumbnail(part)) for part in x.split(1024)]
    return torch.cat([h for h, _ in parts]), torch.cat([t for _, t in parts])


def find(data: str, data_dir: Path | None) -> dict[str, Any]:
    """Which test images of "cifar10" or "cifar100" have near copies among all 50,000 training images, JSON-able."""
    parts = cifar.load(data, data_dir=data_dir, download=False)
    found = matches(parts.test_x, parts.train_x).nonzero().flatten().tolist()
    return {
        "data": data,
        "max_bits": MAX_BITS,
        "max_levels": MAX_LEVELS,
        "test_images": len(parts.test_x),
        "found": found,
    }


def listed(data: str, source: Path) -> dict[str, Any]:
    """As `find`, from a published list: a CSV file whose column TestID holds the numbers of test images (ciFAIR's)."""
    try:
        with source.open(newline="", encoding="utf-8-sig") as file:
            found = sorted({int(row["TestID"]) for row in csv.DictReader(file)})
    except OSError as error:
        raise UsageError(f"--list {source} cannot be read: {error.strerror}") from None
    except (KeyError, TypeError, ValueError, csv.Error):
        raise UsageError(f"--list {source} must be a CSV file with a column TestID of whole numbers") from None
    if not found or not 0 <= found[0] <= found[-1] < TEST_IMAGES:
        raise UsageError(f"--list {source} must name test images by numbers from 0 to {TEST_IMAGES - 1}")
    return {"data": data, "test_images": TEST_IMAGES, "found": found}


def write(path: Path, value: dict[str, Any]) -> None:
    runs.write(path, (json.dumps(value) + "\n").encode())


def path(folder: Path, data: str) -> Path:
    return folder / f"{data}-near-duplicates.json"


def read(data: str, folder: Path | None = None) -> NDArray[np.bool_] | None:
    """(10000,) True where a test image has a near copy; None where that was never looked for."""
    file = path(folder or results.shipped(), data)
    if not file.exists():
        return None
    value = runs.read_json(file)
    try:
        mask = np.zeros(value["test_images"], dtype=np.bool_)
        mask[np.asarray(value["found"], dtype=np.int64)] = True
    except (KeyError, TypeError, ValueError, IndexError, OverflowError):
        raise UsageError(f"{file} is damaged: it must name test images by their numbers") from None
    return mask
