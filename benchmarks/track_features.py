"""Time of MDNet's convolutional features, ours over the straightforward form with torch's LocalResponseNorm.

    python benchmarks/track_features.py [--crops 256] [--rounds 7] [--out benchmarks/results/track_features.jsonl]

All compute the same features of the same crops with the same weights, in turns within one process, and the largest
relative difference of ours stands in the record. The straightforward form is one batch in torch's default memory layout
with torch.nn.LocalResponseNorm; ours is what the tracker runs: channels last, a few crops at a time, ReLU, norm and
pooling in one pass, and Winograd's convolutions where the tracker takes them; "layers" is ours without that pass.
Times are of the process's own CPU time (all threads), which other work disturbs less than the clock on the wall.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchdfa.track import mdnet
from torchdfa.track.lrn import NORMS, Norm
from torchdfa.track.mdnet import CHUNK, CROP, VGGM, fast, initialise_
from torchdfa.train import machine


def fresh(norm: str) -> VGGM:
    """The same weights each time, in memory of their own."""
    network = VGGM(NORMS[norm]).eval()
    initialise_(network, torch.Generator().manual_seed(0))
    return network


def straightforward(network: VGGM, norm: Norm) -> Callable[[Tensor], Tensor]:
    lrn = nn.LocalResponseNorm(norm.size, norm.alpha, norm.beta, norm.k)
    weights = [(layer.weight.contiguous(), layer.bias) for layer in (network.conv1, network.conv2, network.conv3)]

    def features(x: Tensor) -> Tensor:
        for k, (weight, bias) in enumerate(weights):
            x = torch.relu(F.conv2d(x, weight, bias, stride=2 if k < 2 else 1))
            if k < 2:
                x = F.max_pool2d(lrn(x), 3, 2)
        return x.flatten(1)

    return features


def ours(network: VGGM, bf16: bool, *, one_pass: bool = True) -> Callable[[Tensor], Tensor]:
    if machine.choose_convolutions("auto", "cpu", "bf16" if bf16 else "fp32") == "winograd":
        network = fast(network)
    network = network.to(memory_format=torch.channels_last)

    def features(x: Tensor) -> Tensor:
        pass_or_layers = nullcontext() if one_pass else patch.object(mdnet, "norm_pool", lambda *_, **__: None)
        with pass_or_layers, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return torch.cat([
                network(part.contiguous(memory_format=torch.channels_last)).float() for part in x.split(CHUNK)
            ])  # fmt: skip

    return features


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


@torch.no_grad()
def measure(crops: int, rounds: int, norm: str, bf16: bool) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(crops, 3, CROP, CROP, generator=generator) * 60
    forms = {
        "straightforward": straightforward(fresh(norm), NORMS[norm]),
        "layers": ours(fresh(norm), bf16, one_pass=False),
        "ours": ours(fresh(norm), bf16),
    }
    expected, _, found = (form(x) for form in forms.values())
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in forms}
    before = os.getloadavg()
    for _ in range(rounds):
        for name, form in forms.items():
            times[name].append(timed(lambda form=form: form(x)))  # type: ignore[misc]
    wall, cpu = ({n: statistics.median(t[k] for t in v) for n, v in times.items()} for k in (0, 1))
    ratios = sorted(a[1] / b[1] for a, b in zip(times["straightforward"], times["ours"], strict=True))
    return {
        "bench": "track_features",
        "crops": crops,
        "rounds": rounds,
        "norm": norm,
        "ours_in": "bf16" if bf16 else "fp32",
        "cpu_seconds": {name: round(value, 4) for name, value in cpu.items()},
        "wall_seconds": {name: round(value, 4) for name, value in wall.items()},
        "ratio_of_median_cpu_seconds": round(cpu["straightforward"] / cpu["ours"], 3),
        "ratio_least_and_most": [round(ratios[0], 3), round(ratios[-1], 3)],
        "largest_relative_difference": float((expected - found).abs().max() / expected.abs().max()),
        "load_average": {"before": before, "after": os.getloadavg()},
        "machine": machine.describe(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crops", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--norm", choices=NORMS, default="pymdnet-2019")
    parser.add_argument("--bf16", action="store_true", help="ours in bf16, as on processors with AMX")
    parser.add_argument("--out", type=Path, help="append the record to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    record = measure(options.crops, options.rounds, options.norm, options.bf16)
    print(json.dumps(record, indent=2))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
