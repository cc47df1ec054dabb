"""One door to every data set: digits, CIFAR-10, CIFAR-100, or a folder of photos."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from torchdfa.errors import UsageError
from torchdfa.train import cifar, folder, splits

DIGITS_TEST_FRACTION = 0.2
DIGITS_SPLIT_SEED = 0  # fixed: scikit-learn publishes no split, and runs of all seeds share one test set


@dataclass(frozen=True)
class Data:
    """Images in memory as uint8, labels, and what a run must record of them."""

    name: str  # "digits", "cifar10", "cifar100", or the folder's name
    train_x: Tensor  # uint8 (N, C, H, W), CPU
    train_y: Tensor  # int64 (N,)
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...]
    mean: tuple[float, ...]  # per channel, of pixel / 255, measured on the training images
    std: tuple[float, ...]
    source: dict[str, Any] = field(default_factory=dict)  # JSON-able: origin, sha256, splits, warnings


def load(
    data: str,
    *,
    data_dir: Path | None = None,
    image_size: int | None = None,
    download: bool = False,
    subset: int | None = None,
    validate: float = 0.0,
    seed: int = 0,
) -> Data:
    """Load "digits", "cifar10", "cifar100", or the image folder at the path ``data``.

    image_size: pixels of each side; None means the data set's own (digits 8, CIFAR 32) and 64 for folders.
    validate: this fraction of the training images, stratified, takes the place of the test images, which are then
    never looked at. subset: so many of the (remaining) training images, as many of each class; a larger one contains
    the smaller. Both, and the test part of a folder without one, depend on ``seed`` alone. Raises UsageError for wrong
    arguments and bad files, RunError where a download fails.
    """
    if image_size is not None and not 1 <= image_size <= folder.MAX_SIZE:
        raise UsageError(f"image_size must be in 1 .. {folder.MAX_SIZE} pixels, but is {image_size}.")
    if not 0 <= validate < 1:
        raise UsageError(f"validate must be a fraction of the training images in 0 .. 1, but is {validate}.")
    loaded, groups = _named(data, data_dir, image_size, download, seed)
    if validate:
        loaded = _hold_out(loaded, validate, seed, groups)
    if subset is not None:
        loaded = _take_subset(loaded, subset, seed)
    mean, std = channel_statistics(loaded.train_x)
    return replace(loaded, mean=mean, std=std)


def _named(
    data: str, data_dir: Path | None, image_size: int | None, download: bool, seed: int
) -> tuple[Data, NDArray[np.int64] | None]:
    """The whole data set, without its statistics, and which training images must stay together (None: no matter)."""
    if data == "digits":
        return _resized(_digits(), image_size), None
    if data in cifar.LAYOUTS:
        parts = cifar.load(data, data_dir=data_dir, download=download)
        return _resized(_from_parts(data, parts), image_size), None
    path = Path(data) if data_dir is None else data_dir / data
    if not path.is_dir():
        known = ", ".join(["digits", *cifar.LAYOUTS])
        raise UsageError(f"data must be {known} or a folder of photos, but {path.absolute()} is no folder.")
    photos = folder.load(path, image_size=image_size or folder.DEFAULT_SIZE, seed=seed)
    return _from_parts(path.resolve().name, photos), photos.train_groups


def _from_parts(name: str, parts: cifar.Cifar | folder.Folder) -> Data:
    arrays = (parts.train_x, parts.train_y, parts.test_x, parts.test_y)
    return Data(name, *arrays, parts.classes, mean=(), std=(), source={"warnings": [], **parts.source})


def _digits() -> Data:
    """scikit-learn's handwritten digits: 1797 grey images of 8 x 8 pixels, values 0 .. 16 spread over 0 .. 255."""
    import sklearn
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(np.round(bunch.images * (255 / 16)).astype(np.uint8))[:, None]
    y = torch.from_numpy(bunch.target.astype(np.int64))
    classes = tuple(str(name) for name in bunch.target_names)
    test = torch.from_numpy(splits.stratified(y.numpy(), DIGITS_TEST_FRACTION, DIGITS_SPLIT_SEED, classes))
    source = {
        "path": f"scikit-learn {sklearn.__version__} load_digits",
        "sha256": {"images": _sha256(x), "labels": _sha256(y)},
        "split": {"by": "class", "test_fraction": DIGITS_TEST_FRACTION, "seed": DIGITS_SPLIT_SEED},
        "warnings": [],
    }
    return Data("digits", x[~test], y[~test], x[test], y[test], classes, mean=(), std=(), source=source)


def _sha256(x: Tensor) -> str:
    return hashlib.sha256(x.contiguous().numpy().tobytes()).hexdigest()


def _resized(data: Data, size: int | None) -> Data:
    if size is None or data.train_x.shape[-2:] == (size, size):
        return data
    return replace(data, train_x=_resize(data.train_x, size), test_x=_resize(data.test_x, size))


def _resize(x: Tensor, size: int) -> Tensor:
    """Bilinear with antialias, in pieces: a float copy of a whole data set could be four times the memory."""
    parts = (
        functional.interpolate(part.float(), (size, size), mode="bilinear", antialias=True, align_corners=False)
        for part in x.split(4096)
    )
    return torch.cat([part.round_().clamp_(0, 255).to(torch.uint8) for part in parts])


def _hold_out(data: Data, fraction: float, seed: int, groups: NDArray[np.int64] | None) -> Data:
    held_out = splits.stratified(data.train_y.numpy(), fraction, seed, data.classes, groups=groups)
    keep, test = (torch.from_numpy(np.flatnonzero(mask)) for mask in (~held_out, held_out))
    source = data.source | {"validate": {"fraction": fraction, "seed": seed, "images": len(test)}}
    if "train_files" in source:
        source["test_files"] = [source["train_files"][i] for i in test.tolist()]
    held = replace(data, test_x=data.train_x[test], test_y=data.train_y[test], source=source)
    return _keep_training_images(held, keep)


def _take_subset(data: Data, size: int, seed: int) -> Data:
    keep = torch.from_numpy(splits.subset(data.train_y.numpy(), size, seed, data.classes))
    data = replace(data, source=data.source | {"subset": {"images": size, "seed": seed}})
    return _keep_training_images(data, keep)


def _keep_training_images(data: Data, keep: Tensor) -> Data:
    source = dict(data.source)
    if "train_files" in source:
        source["train_files"] = [source["train_files"][i] for i in keep.tolist()]
    return replace(data, train_x=data.train_x[keep], train_y=data.train_y[keep], source=source)


def channel_statistics(x: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of pixel / 255 per channel, exact, from the counts of the 256 values.

    A channel of one single value gets the deviation of one grey level, so that dividing by it is harmless.
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    mean, std = [], []
    for channel in x.unbind(1):
        weights = torch.bincount(channel.flatten(), minlength=256).double() / channel.numel()
        mean.append(float(weights @ values))
        std.append(max(float(weights @ (values - mean[-1]) ** 2) ** 0.5, 1 / 255))
    return tuple(mean), tuple(std)
