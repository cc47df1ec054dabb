"""VGG-16 on CIFAR-10 without augmentation: BP, CDFA product, CBDFA product, CBDFA random (10,000 training images).

    python benchmarks/vgg16_cifar10.py sweep --data-dir DIR     each arm's learning rate, on held-out training images
    python benchmarks/vgg16_cifar10.py final --data-dir DIR     10 epochs at the best of them, tested on all test images

Runs that are finished are skipped, runs that were interrupted continue. One thread a run; --workers runs at once.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ARMS = {
    "bp": ("--rule", "bp"),
    "cdfa-product": ("--rule", "dfa", "--init", "product"),
    "cbdfa-product": ("--rule", "bdfa", "--init", "product"),
    "cbdfa-random": ("--rule", "bdfa", "--init", "random"),
}
RATES = (0.001, 0.003, 0.01, 0.03, 0.1)
# The sweep is a fifth of the final training's length on the same number of images; its test images are
# 2,000 that the training never sees, none of them from the test set.
COMMON = ("--data", "cifar10", "--model", "vgg16", "--subset", "10000", "--threads", "1", "--seed", "0")
SWEEP = ("--validate", "0.04", "--epochs", "2")
FINAL = ("--epochs", "10", "--log-alignment", "100")


def train(arguments: tuple[str, ...], folder: Path) -> str:
    if (folder / "result.json").exists():
        return f"{folder}: finished before"
    started = (folder / "checkpoint.pt").exists()
    command = ["--resume", str(folder)] if started else [*arguments, "--out", str(folder)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        done = subprocess.run([sys.executable, "-m", "torchdfa", "train", *command], stdout=log, stderr=log, check=False)
    return f"{folder}: exit code {done.returncode}"


def best_rate(out: Path, arm: str) -> float:
    scores = {}
    for rate in RATES:
        result = out / "sweep" / f"{arm}-lr{rate}" / "result.json"
        if result.exists():  # a rate at which the run diverged has no result
            scores[rate] = json.loads(result.read_text())["top1"]
    return max(scores, key=lambda rate: scores[rate])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("sweep", "final"))
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--out", type=Path, default=Path("runs/vgg16-cifar10"))
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    common = (*COMMON, "--data-dir", options.data_dir)
    if options.stage == "sweep":
        jobs = [
            ((*common, *SWEEP, *ARMS[arm], "--lr", str(rate)), options.out / "sweep" / f"{arm}-lr{rate}")
            for rate in RATES
            for arm in ARMS
        ]
    else:
        jobs = [
            ((*common, *FINAL, *ARMS[arm], "--lr", str(best_rate(options.out, arm))), options.out / arm) for arm in ARMS
        ]
    with ThreadPoolExecutor(options.workers) as pool:
        for line in pool.map(lambda job: train(*job), jobs):
            print(line, flush=True)


if __name__ == "__main__":
    main()
