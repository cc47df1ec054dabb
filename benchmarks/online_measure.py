"""Time and memory of one update: interleaved with the bare products, and in fresh processes."""

from __future__ import annotations

import ctypes
import gc
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from online_baselines import mlp
from torch import nn

from torchdfa.online import OnlineHead
from torchdfa.train import machine, runs

FEATURES, HIDDEN, CLASSES = 512, 512, 10
ARMS: dict[str, dict[str, Any]] = {
    "bp": {"rule": "bp"},
    "dfa": {"rule": "dfa"},
    "bdfa": {"rule": "bdfa"},
    "bdfa, bits alone": {"rule": "bdfa", "keep_signs": False},
    "bp, momentum": {"rule": "bp", "momentum": 0.9},
    "bdfa, momentum": {"rule": "bdfa", "momentum": 0.9},
}


def data(rows: int, features: int = FEATURES) -> tuple[Any, Any]:
    random = np.random.default_rng(0)
    return random.standard_normal((rows, features)).astype(np.float32), random.integers(0, CLASSES, rows)


def bare_products() -> Callable[[], None]:
    """The five matrix products of an update by direct feedback, by torch, into memory that is there."""
    weight, top, feedback = torch.randn(HIDDEN, FEATURES), torch.randn(CLASSES, HIDDEN), torch.randn(CLASSES, HIDDEN)
    x, hidden, logits = torch.randn(1, FEATURES), torch.randn(1, HIDDEN), torch.randn(1, CLASSES)
    error, sent, out = torch.randn(1, CLASSES), torch.randn(1, HIDDEN), torch.empty(1, HIDDEN)
    gradient, of_top = torch.empty_like(weight), torch.empty_like(top)

    def products() -> None:
        torch.mm(x, weight.T, out=hidden)
        torch.mm(hidden, top.T, out=logits)
        torch.mm(error, feedback, out=out)
        torch.mm(sent.T, x, out=gradient)
        torch.mm(error.T, hidden, out=of_top)

    return products


def autograd_step() -> Callable[[], None]:
    """What one writes in PyTorch: forward, backward, SGD."""
    model = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    x, y = (torch.from_numpy(part) for part in data(1))

    def step() -> None:
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def streaming(learner: Any) -> Callable[[], None]:
    x, y = data(2000)
    learner.partial_fit(x[:50], y[:50], classes=np.arange(CLASSES))
    places = iter(range(10**9))

    def update() -> None:
        i = next(places) % len(y)
        learner.partial_fit(x[i : i + 1], y[i : i + 1])

    return update


def network_alone(arm: dict[str, Any]) -> Callable[[], None]:
    """The update of the layers, without scikit-learn's checks and the scaling of inputs."""
    x, y = data(2000)
    network = OnlineHead(learning_rate=1e-3, **arm).partial_fit(x[:50], y[:50], classes=np.arange(CLASSES)).network_
    rows, labels, places = [x[i : i + 1] for i in range(len(y))], [[k] for k in y.tolist()], iter(range(10**9))
    momentum = arm.get("momentum", 0.0)

    def update() -> None:
        i = next(places) % len(y)
        network.update(rows[i], labels[i], None, 1e-3, momentum, 0.0)

    return update


def speed(path: Path, rounds: int = 150, calls: int = 10) -> None:
    """Median CPU time of each in turn, and of its ratio to the bare products of the same round."""
    works: dict[str, Callable[[], None]] = {"bare products": bare_products(), "autograd and SGD": autograd_step()}
    works |= {f"update: {name}": network_alone(arm) for name, arm in ARMS.items()}
    works |= {f"partial_fit: {name}": streaming(OnlineHead(learning_rate=1e-3, **arm)) for name, arm in ARMS.items()}
    works["partial_fit: MLPClassifier"] = streaming(mlp(1e-3, 0).estimator)
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            few = calls if "MLP" not in name else 1
            began = time.thread_time()
            for _ in range(few):
                work()
            times[name].append((time.thread_time() - began) / few)
    bare = times["bare products"]
    rows = {
        name: {
            "microseconds": round(1e6 * statistics.median(found), 1),
            "median_ratio": round(statistics.median(a / b for a, b in zip(found, bare, strict=True)), 3),
            "p20_p80_ratio": [
                round(q, 3) for q in statistics.quantiles([a / b for a, b in zip(found, bare, strict=True)], n=5)[::3]
            ],
        }
        for name, found in times.items()
    }
    record = {"bench": "one sample, 512-512-10", "rounds": rounds, "calls": calls, "seed": 0, "rows": rows}
    append(path, record | {"machine": machine.describe()})


def append(path: Path, record: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    runs.append(path, record)
    print(json.dumps({name: value for name, value in record.items() if name != "machine"}, indent=2), flush=True)


def memory(path: Path, updates: int) -> None:
    """Each arm in a process of its own; the long run, of one update a row in calls of 64 rows, last."""
    for width in (512, 4096):
        for name in (*ARMS, "autograd, SGD", "autograd, SGD in backward"):
            append(path, in_child({"arm": name, "width": width, "updates": 200}))
    append(path, in_child({"arm": "bdfa", "width": 64, "updates": updates, "rows": 64}))


def in_child(asked: dict[str, Any]) -> dict[str, Any]:
    command = [sys.executable, __file__, json.dumps(asked)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return asked | json.loads(done.stdout.splitlines()[-1]) | {"machine": machine.describe()}


def peak() -> int:
    """Bytes: the most that this process has held since ``reset_peak``."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except OSError:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def reset_peak() -> int:
    """Give freed memory back to the system, start the measurement of ``peak`` anew, and return what is held now."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


def child(asked: dict[str, Any]) -> dict[str, Any]:
    """Warm libraries up on a tiny head, then measure what a head and its updates add."""
    torch.set_num_threads(1)
    arm, width = asked["arm"], asked["width"]
    x, y = data(64, width)
    warm = learner(arm, 8, asked)
    for _ in range(20):
        warm(x[:1, :8], y[:1])
    if isinstance(warm, HeadUpdate):
        saved_size(warm)
    before = reset_peak()
    update = learner(arm, width, asked)
    update(x[:1], y[:1])
    making = peak() - before
    reset_peak()
    rows, sizes, held = asked.get("rows", 1), [], []
    calls = asked["updates"] // rows
    for i in range(calls):
        start = i * rows % 64
        update(x[start : start + rows], y[start : start + rows])
        if calls > 1000 and (i + 1) % (calls // 20) == 0:
            held.append(peak() - before)
            sizes += [saved_size(update)] if len(held) in (1, 20) else []
    found: dict[str, Any] = {
        "measured": peak() - before,
        "making": making,
        "peaks_along": held,
        "file_sizes_along": sizes,
        "seed": 0,
    }
    head = getattr(update, "head", None)
    return found | ({"stated": head.memory().to_dict(), "stated_total": head.memory().total} if head else {})


def learner(arm: str, width: int, asked: dict[str, Any]) -> Any:
    if arm.startswith("autograd"):
        return Autograd(width, in_backward=arm.endswith("in backward"))
    return HeadUpdate(OnlineHead(width, CLASSES, hidden_layer_sizes=(width,), learning_rate=1e-4,
                                 replay=asked.get("replay", 0), **ARMS[arm]))  # fmt: skip


class HeadUpdate:
    def __init__(self, head: OnlineHead) -> None:
        self.head = head

    def __call__(self, x: Any, y: Any) -> None:
        self.head.partial_fit(x, y)


class Autograd:
    """Back-propagation by autograd; with ``in_backward`` each weight is updated as soon as its gradient is there."""

    def __init__(self, width: int, *, in_backward: bool) -> None:
        self.model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, CLASSES))
        self.optimizers = {p: torch.optim.SGD([p], 1e-4) for p in self.model.parameters()}
        self.in_backward = in_backward
        for parameter in self.model.parameters() if in_backward else ():
            parameter.register_post_accumulate_grad_hook(self._update)

    def _update(self, parameter: Any) -> None:
        self.optimizers[parameter].step()
        self.optimizers[parameter].zero_grad()

    def __call__(self, x: Any, y: Any) -> None:
        nn.functional.cross_entropy(self.model(torch.from_numpy(x)), torch.from_numpy(y)).backward()
        for parameter in self.optimizers if not self.in_backward else ():
            self._update(parameter)


def saved_size(update: Any) -> int:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "head.safetensors"
        update.head.save(path)
        return path.stat().st_size


if __name__ == "__main__":
    print(json.dumps(child(json.loads(sys.argv[1]))))
