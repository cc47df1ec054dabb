"""Time of a training step of `torchdfa train` over that of a bare PyTorch loop, and images/s before and after tuning.

    python benchmarks/step_overhead.py [--model vgg16] [--rounds 10] [--out benchmarks/results/step_overhead.jsonl]

Both loops train the same network at the same precision and batch size, in turns within one process, so that whatever
else the machine does falls on both. The bare loop has its batches ready as floats on the device and counts nothing;
ours gathers and normalises uint8 images, counts loss and hits, watches for divergence and signals. A third loop, fp32
with torch's default memory layout, is what one writes first; on a CPU a fourth is ours with other convolutions:
Winograd's in fp32, im2col in bf16. Run it on an otherwise idle machine; the load average before and after is in the
record.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchdfa.train import machine, models, program
from torchdfa.train.config import TrainConfig
from torchdfa.train.datasets import Data
from torchdfa.train.loop import Trainer, model_args
from torchdfa.train.progress import Display
from torchdfa.train.stop import StopSignals

OTHER_CONVOLUTIONS = {"fp32": "winograd", "bf16": "im2col"}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def random_data(images: int, size: int, channels: int) -> Data:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(256, (images, channels, size, size), generator=generator, dtype=torch.uint8)
    y = torch.randint(10, (images,), generator=generator)
    values = (0.5,) * channels
    return Data("random", x, y, x[:10], y[:10], tuple("0123456789"), mean=values, std=values)


def our_loop(config: TrainConfig, data: Data) -> Callable[[], None]:
    folder = Path(tempfile.gettempdir())
    resolved = machine.resolve(config)
    fabric = program.launch(config, resolved, folder)
    trainer = Trainer(config, data, fabric, folder, "", convolutions=resolved.convolutions)
    display = Display(config.label, config.epochs, len(trainer.batches), 0, shown=False)

    def steps() -> None:
        trainer.done = 0
        trainer.train_epoch(display, StopSignals())

    return steps


def bare_loop(config: TrainConfig, data: Data, dtype: torch.dtype, layout: torch.memory_format) -> Callable[[], None]:
    device = machine.choose_device(config.device)
    torch.manual_seed(config.seed)
    model = models.build(config.model, **model_args(config, data)).to(device).to(memory_format=layout).train()
    optimizer = torch.optim.SGD(model.parameters(), config.base_lr, config.momentum, weight_decay=config.weight_decay)
    batches: list[tuple[Tensor, Tensor]] = [
        ((x.float() / 127.5 - 1).to(device).contiguous(memory_format=layout), y.to(device))
        for x, y in zip(data.train_x.split(config.batch_size), data.train_y.split(config.batch_size), strict=True)
    ]

    def steps() -> None:
        for x, y in batches:
            with torch.autocast(device, dtype, enabled=dtype != torch.float32):
                logits = model(x)
            F.cross_entropy(logits.float(), y).backward()
            optimizer.step()
            optimizer.zero_grad()

    return steps


def timed(steps: Callable[[], None], device: str) -> float:
    began = time.perf_counter()
    steps()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


def measure(config: TrainConfig, *, size: int, channels: int, steps: int, rounds: int) -> dict[str, Any]:
    device = machine.choose_device(config.device)
    precision = machine.choose_precision(config.precision, device)
    data = random_data(steps * config.batch_size, size, channels)
    plain = replace(config, precision=precision, convolutions="torch")
    loops = {
        "ours": our_loop(plain, data),
        "bare": bare_loop(config, data, DTYPES[precision], torch.channels_last),
        "first": bare_loop(config, data, torch.float32, torch.contiguous_format),
    }
    other = OTHER_CONVOLUTIONS[precision] if device == "cpu" else None
    if other:
        loops[other] = our_loop(replace(plain, convolutions=other), data)
    for loop in loops.values():
        loop()
    load_before = os.getloadavg()
    times: dict[str, list[float]] = {name: [] for name in loops}
    for _ in range(rounds):
        for name, loop in loops.items():
            times[name].append(timed(loop, device) / steps)
    median = {name: statistics.median(values) for name, values in times.items()}
    images = {name: round(config.batch_size / seconds, 2) for name, seconds in median.items()}
    ratios = _ratios(times["ours"], times["bare"])
    of_other = {f"torch_over_{other}": _spread(_ratios(times["ours"], times[other]))} if other else {}
    return {
        "bench": "step_overhead",
        "model": config.model,
        "image_size": size,
        "batch_size": config.batch_size,
        "precision": precision,
        "rounds": rounds,
        "steps_a_round": steps,
        "ratio_of_medians": round(median["ours"] / median["bare"], 4),
        "median_ratio": _spread(ratios)[1],
        "p20_p80_ratio": _spread(ratios)[::2],
        **of_other,
        "milliseconds_a_step": {name: round(1000 * seconds, 3) for name, seconds in median.items()},
        "images_per_second": {"fp32_default_layout": images["first"], "bare": images["bare"], "ours": images["ours"]},
        "load_average": {"before": load_before, "after": os.getloadavg()},
        "machine": machine.describe(),
    }


def _ratios(times: list[float], of: list[float]) -> list[float]:
    return [a / b for a, b in zip(times, of, strict=True)]


def _spread(ratios: list[float]) -> list[float]:
    """Their 20 % quantile, median and 80 % quantile."""
    fifths = statistics.quantiles(ratios, n=5)
    return [round(q, 4) for q in (fifths[0], statistics.median(ratios), fifths[3])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=models.NAMES, default="vgg16")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--steps", type=int, help="steps a round; by default 3 of VGG-16, 30 of the others")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path, help="append the record to this file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    config = TrainConfig(
        data="cifar10", model=options.model, rule="bp", precision=options.precision, schedule="constant"
    )
    steps = options.steps or (3 if options.model == "vgg16" else 30)
    record = measure(config, size=32, channels=3, steps=steps, rounds=options.rounds)
    print(json.dumps(record, indent=2))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        with options.out.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()
