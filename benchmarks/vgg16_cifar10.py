"""VGG-16 on CIFAR-10 without augmentation: BP, CDFA product, CBDFA product, CBDFA random (10,000 training images).

    python benchmarks/vgg16_cifar10.py sweep --data-dir DIR     each arm's learning rate, on held-out training images
    python benchmarks/vgg16_cifar10.py final --data-dir DIR     10 epochs at the best of them, tested on all test images
    python benchmarks/vgg16_cifar10.py record                   the records of both into docs/results, table and curves

Runs that are finished are skipped, runs that were interrupted continue. One thread a run; --workers runs at once.
"""

from __future__ import annotations

import argparse
import csv
import json
import shutil
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
SHOWN_STEPS = (100, 300, 500, 700, 1000)
RECORDS = Path("docs/results/vgg16-cifar10")
SWEEP = ("--validate", "0.04", "--epochs", "2")
FINAL = ("--epochs", "10", "--log-alignment", "100")


def train(arguments: tuple[str, ...], folder: Path) -> str:
    if (folder / "result.json").exists():
        return f"{folder}: finished before"
    started = (folder / "checkpoint.pt").exists()
    command = ["--resume", str(folder)] if started else [*arguments, "--out", str(folder)]
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "torchdfa", "train", *command]
    with (folder.parent / f"{folder.name}.log").open("a") as log:
        done = subprocess.run(command, stdout=log, stderr=log, check=False)
    return f"{folder}: exit code {done.returncode}"


def best_rate(out: Path, arm: str) -> float:
    scores = {}
    for rate in RATES:
        result = out / "sweep" / f"{arm}-lr{rate}" / "result.json"
        if result.exists():  # a rate at which the run diverged has no result
            scores[rate] = json.loads(result.read_text())["top1"]
    if not scores:
        raise SystemExit(f"no run of {arm} in {out / 'sweep'} has finished; run 'sweep' first")
    return max(scores, key=lambda rate: scores[rate])


def sweep_line(folder: Path, arm: str, rate: float) -> dict[str, object]:
    """What a run of the sweep came to; a run that diverged has no result."""
    config = json.loads((folder / "config.json").read_text())
    line = {"arm": arm, "lr": rate, "machine": config["machine"], "resolved": config["resolved"]}
    if not (folder / "result.json").exists():
        log = folder.parent / f"{folder.name}.log"
        if not log.exists() or "training diverged" not in log.read_text():
            raise SystemExit(f"{folder} was interrupted; run 'sweep' again, which finishes it")
        return line | {"diverged": True}
    result = json.loads((folder / "result.json").read_text())
    return line | {"diverged": False} | {key: result[key] for key in ("top1", "test_loss", "train_top1", "train_loss")}


def record(out: Path) -> None:
    RECORDS.mkdir(parents=True, exist_ok=True)
    swept = [sweep_line(out / "sweep" / f"{arm}-lr{rate}", arm, rate) for arm in ARMS for rate in RATES]
    (RECORDS / "sweep.jsonl").write_text("".join(json.dumps(line) + "\n" for line in swept))
    table = ["arm," + ",".join(f"lr {rate}" for rate in RATES)]
    for arm in ARMS:
        cells = ["diverged" if x["diverged"] else f"{x['top1']:.2f}" for x in swept if x["arm"] == arm]
        table.append(",".join([arm, *cells]))
    (RECORDS / "sweep.csv").write_text("\n".join(table) + "\n")
    for arm in ARMS:
        (RECORDS / arm).mkdir(exist_ok=True)
        for name in ("config.json", "metrics.jsonl", "result.json"):
            shutil.copyfile(out / arm / name, RECORDS / arm / name)
    runs = [str(RECORDS / arm) for arm in ARMS]
    picture = str(RECORDS / "compare.png")
    subprocess.run([sys.executable, "-m", "torchdfa", "compare", *runs, "--out", picture], check=True)
    steps = ",".join(f"step {step}" for step in SHOWN_STEPS)
    lines = [f"arm,{steps}", *(boundary(arm) for arm in ARMS if arm != "bp")]
    (RECORDS / "boundary.csv").write_text("\n".join(lines) + "\n")
    summarise(RECORDS / "compare.csv", RECORDS / "table.csv")


def boundary(arm: str) -> str:
    """Size and angle of the error at the convolutions' output, relative to back-propagation's, at some steps."""
    cells = [arm]
    for line in map(json.loads, (RECORDS / arm / "metrics.jsonl").read_text().splitlines()):
        if line.get("kind") == "alignment" and line["step"] in SHOWN_STEPS:
            cells += [f"{a['norm_ratio']:.2f} at {a['degrees']:.0f}°" for a in line["boundary"].values()]
    return ",".join(cells)


def summarise(source: Path, target: Path) -> None:
    """The columns of the comparison that a page shows, rounded."""
    lines = ["rule,lr,top-1 %,95 % interval,top-5 %,seconds,images/s,feedback bytes (in memory)"]
    with source.open() as file:
        for row in csv.DictReader(file):
            interval = f"{float(row['interval_low']):.1f} to {float(row['interval_high']):.1f}"
            size = f"{row['feedback_bytes']} ({row['feedback_bytes_actual']})"
            speed = f"{float(row['seconds']):.0f},{float(row['images_per_second']):.0f}"
            top = f"{float(row['top1']):.2f},{interval},{float(row['top5']):.2f}"
            lines.append(f"{row['rule']},{row['lr']},{top},{speed},{size}")
    target.write_text("\n".join(lines) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=("sweep", "final", "record"))
    parser.add_argument("--data-dir", default="data")
    parser.add_argument("--out", type=Path, default=Path("runs/vgg16-cifar10"))
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    if options.stage == "record":
        record(options.out)
        return
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
