"""Features of real images for benchmarks/online.py: a small CNN trained by BP on the classes 0..49 of CIFAR-100.

    python benchmarks/online_features.py --data-dir DIR [--epochs 5] [--out runs/online]

The trunk never sees an image of the classes 50..99. The 512 units of its first fully-connected layer, after their ReLU,
are the features of those classes' images: FOLDER/cifar100.npz with X, y (training images) and X_test, y_test.
FOLDER/digits.npz holds scikit-learn's digits as they are (64 pixels). Both can be made again, so neither is committed;
their sha256 and how the trunk did on its own classes stand in FOLDER/features.json.
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from torchdfa.train import batches, datasets, machine, program, runs
from torchdfa.train.config import TrainConfig
from torchdfa.train.datasets import Data
from torchdfa.train.loop import Trainer
from torchdfa.train.progress import Display
from torchdfa.train.stop import StopSignals

TRUNK_CLASSES = 50  # of CIFAR-100's 100; the streams are over the others


def of_classes(data: Data, first: int, last: int) -> Data:
    """The images of the classes ``first`` .. ``last - 1``, their labels counted from 0."""
    train, test = ((y >= first) & (y < last) for y in (data.train_y, data.test_y))
    part = replace(
        data,
        train_x=data.train_x[train],
        train_y=data.train_y[train] - first,
        test_x=data.test_x[test],
        test_y=data.test_y[test] - first,
        classes=data.classes[first:last],
    )
    mean, std = datasets.channel_statistics(part.train_x)
    return replace(part, mean=mean, std=std)


def train_trunk(data: Data, epochs: int, folder: Path) -> Trainer:
    config = TrainConfig(
        data="cifar100", model="cnn", rule="bp", epochs=epochs, lr=0.03, augment=True, threads=1, precision="fp32"
    )
    trainer = Trainer(config, data, program.launch(config, folder), folder, program.digest(data))
    with StopSignals() as signals, Display("trunk", epochs, len(trainer.batches), 0) as display:
        trainer.fit(display, signals)
    return trainer


@torch.inference_mode()
def features(net: nn.Module, x: Tensor, trunk: Data) -> np.ndarray:
    """(N, 512) float32: the trunk's first fully-connected layer, after its ReLU."""
    net.eval()
    classifier = net.get_submodule("classifier")
    assert isinstance(classifier, nn.Sequential)
    cut = nn.Sequential(net.get_submodule("features"), classifier[0], classifier[1])
    source = batches.Batches(
        x, torch.zeros(len(x), dtype=torch.int64), 250, mean=trunk.mean, std=trunk.std, augment=False, shuffle=False,
        generator=torch.Generator(), device=torch.device("cpu"), channels_last=True, rank=0, world_size=1,
    )  # fmt: skip
    return torch.cat([cut(images) for images, _ in source]).numpy()


def write_npz(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return hashlib.sha256(b"".join(a.tobytes() for a in arrays.values())).hexdigest()


def digits() -> dict[str, np.ndarray]:
    data = datasets.load("digits")
    pixels = [x.flatten(1).float().numpy() / 255 for x in (data.train_x, data.test_x)]
    return {"X": pixels[0], "y": data.train_y.numpy(), "X_test": pixels[1], "y_test": data.test_y.numpy()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/online"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    data = datasets.load("cifar100", data_dir=options.data_dir)
    known, new = of_classes(data, 0, TRUNK_CLASSES), of_classes(data, TRUNK_CLASSES, 100)
    trainer = train_trunk(known, options.epochs, options.out)
    record = runs.read_lines(options.out / runs.METRICS)[-1]
    arrays = {"y": new.train_y.numpy(), "y_test": new.test_y.numpy()}
    arrays |= {"X": features(trainer.net, new.train_x, known), "X_test": features(trainer.net, new.test_x, known)}
    sha = {"cifar100": write_npz(options.out / "cifar100.npz", **arrays)}
    sha["digits"] = write_npz(options.out / "digits.npz", **digits())
    runs.write_json(
        options.out / "features.json",
        {"trunk": record, "config": trainer.config.to_dict(), "sha256": sha, "machine": machine.describe()},
    )


if __name__ == "__main__":
    main()
