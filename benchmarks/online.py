"""Learning from a stream of features: our head by several rules beside what people would use instead.

    python benchmarks/online_features.py --data-dir DIR     features of CIFAR-100's classes 50..99 and of the digits
    python benchmarks/online.py tune                         each method's learning rate, on images left out later
    python benchmarks/online.py compare                      three kinds of stream, three seeds of order and weights
    python benchmarks/online.py speed                        an update beside its bare matrix products, interleaved
    python benchmarks/online.py memory [--updates 1000000]   bytes stated and measured in fresh processes
    python benchmarks/online.py tables                       CSV tables and the picture, from the results' files alone

Results are lines of JSON in docs/results/online, each with its seed, versions and machine; lines that are there are not
measured again. Seconds are CPU time of one thread. Methods without random numbers are run once an order.
"""

from __future__ import annotations

import argparse
import itertools
import pickle
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from online_baselines import NearestMean, StreamingLDA, mlp, sgd
from sklearn.exceptions import ConvergenceWarning

from torchdfa.online import OnlineHead, evaluate, streams
from torchdfa.train import machine, runs

OUT, FEATURES = Path("docs/results/online"), Path("runs/online")
RATES = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3)
DATA, ORDERS = ("digits", "cifar100"), ("random", "class", "bursts")
SEEDS = range(3)  # each draws an order and the weights
ROWS = {"digits": 600, "cifar100": 1000}  # samples of a stream; as many others are for tuning
REPLAY = {"replay": 20, "replay_rows": 8}


def head(**parameters: Any) -> Callable[[float, int], OnlineHead]:
    return lambda rate, seed: OnlineHead(learning_rate=rate, seed=seed, **parameters)


METHODS: dict[str, Callable[[float, int], Any]] = {
    "nearest class mean": lambda _rate, _seed: NearestMean(),
    "streaming LDA": lambda _rate, _seed: StreamingLDA(),
    "head without hidden layer": head(rule="bp", hidden_layer_sizes=()),
    "head frozen": head(rule="frozen"),
    "head bp": head(rule="bp"),
    "head dfa": head(rule="dfa"),
    "head bdfa": head(rule="bdfa"),
    "head frozen, replay": head(rule="frozen", **REPLAY),
    "head bp, replay": head(rule="bp", **REPLAY),
    "head bdfa, replay": head(rule="bdfa", **REPLAY),
    "MLPClassifier": mlp,
    "SGDClassifier": sgd,
}
WITHOUT_RATE = ("nearest class mean", "streaming LDA")
SLOW = [("SGDClassifier", "cifar100")]  # fits fifty classifiers in turn at each sample: 40 ms


def load(name: str) -> dict[str, NDArray[Any]]:
    """The stream's half and the tuning half of the training images, a class-balanced draw, and the test images."""
    data = streams.read_npz(FEATURES / f"{name}.npz")
    mixed = np.random.default_rng(12345).permutation(len(data["y"]))
    by_class = mixed[np.argsort(data["y"][mixed], kind="stable")]
    rows = ROWS[name]
    places = np.linspace(0, len(by_class) - 1, 2 * rows).astype(int)  # evenly over the classes
    stream, tune = by_class[places[::2]], by_class[places[1::2]]
    rest = np.setdiff1d(mixed, np.concatenate([stream, tune]))[:: max(1, (len(mixed) - 2 * rows) // 2500)]
    held_out = rest if len(rest) else stream[:0]
    parts = {"stream": stream, "tune": tune, "held_out": held_out}
    arrays = {f"{key}_{part}": data[key][chosen] for part, chosen in parts.items() for key in ("X", "y")}
    return arrays | {"X_test": data["X_test"], "y_test": data["y_test"]}


def run(method: str, rate: float, seed: int, x: Any, y: Any, order: str, test: tuple[Any, Any]) -> dict[str, Any]:
    learner = METHODS[method](rate, seed)
    indices = streams.order(y, order, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        window = len(y) // 10
        record = evaluate(
            learner, streams.samples(x, y, indices), classes=np.unique(y), window=window, clock=time.thread_time
        )
    figures = record.figures() | {"points": record.points, "final": round(100 * learner.score(*test), 3)}
    return figures | {"state_bytes": len(pickle.dumps(learner)), "undone": getattr(learner, "undone_", 0)}


def pairs(slow: bool) -> list[tuple[str, str]]:
    """Methods and data; ``slow`` are those that take longer than all others together, left for last."""
    return [pair for pair in itertools.product(METHODS, DATA) if (pair in SLOW) == slow]


def tune(slow: bool) -> None:
    """By accuracy, after a stream in random order, on training images that neither stream holds."""
    loaded = {data: load(data) for data in DATA}
    for (method, data), rate in itertools.product(pairs(slow), RATES):
        if method in WITHOUT_RATE:
            continue
        arrays = loaded[data]
        test = (arrays["X_held_out"], arrays["y_held_out"])
        measure(
            OUT / "tuning.jsonl", {"data": data, "method": method, "rate": rate},
            lambda m=method, r=rate, a=arrays, t=test: run(m, r, 100, a["X_tune"], a["y_tune"], "random", t),
        )  # fmt: skip


def measure(path: Path, key: dict[str, Any], work: Callable[[], dict[str, Any]]) -> None:
    """Append what ``work`` measures, unless a line of that key is there."""
    if any(key.items() <= line.items() for line in runs.read_lines(path)):
        return
    record = key | work() | {"machine": machine.describe()}
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.append(path, record)
    print({name: record[name] for name in (*key, "accuracy", "final") if name in record}, flush=True)


def best_rates() -> dict[tuple[str, str], float]:
    best: dict[tuple[str, str], tuple[float, float]] = {}
    for line in runs.read_lines(OUT / "tuning.jsonl"):
        key = (line["data"], line["method"])
        best[key] = max(best.get(key, (-1.0, 0.0)), (line["final"], line["rate"]))
    return {key: rate for key, (_, rate) in best.items()}


def compare(slow: bool) -> None:
    """Every seed's runs before those of the next, so that a comparison cut short is whole for fewer seeds."""
    rates, loaded = best_rates(), {data: load(data) for data in DATA}
    for seed, (method, data), order in itertools.product(SEEDS, pairs(slow), ORDERS):
        rate = 0.0 if method in WITHOUT_RATE else rates[data, method]
        arrays = loaded[data]
        test = (arrays["X_test"], arrays["y_test"])
        measure(
            OUT / "compare.jsonl", {"data": data, "order": order, "seed": seed, "method": method},
            lambda m=method, r=rate, s=seed, a=arrays, o=order, t=test: {"rate": r}
            | run(m, r, s, a["X_stream"], a["y_stream"], o, t),
        )  # fmt: skip


def main() -> None:
    import online_measure
    import online_tables

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("tune", "compare", "speed", "memory", "tables"))
    parser.add_argument("--slow", action="store_true", help="tune and compare what is left out without it")
    parser.add_argument("--updates", type=int, default=1_000_000)
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    {
        "tune": lambda: tune(options.slow),
        "compare": lambda: compare(options.slow),
        "speed": lambda: online_measure.speed(OUT / "speed.jsonl"),
        "memory": lambda: online_measure.memory(OUT / "memory.jsonl", options.updates),
        "tables": lambda: online_tables.write(OUT),
    }[options.what]()


if __name__ == "__main__":
    main()
