"""What parts a direct backward of a fully-connected head has, what fusing them could save, and its peak of memory.

    python benchmarks/backward_parts.py [--heads 512 784] [--rounds 9] [--out benchmarks/results/backward_parts.jsonl]

The parts alone are timed in turns with the whole backward, within one process: the projections of the output's error to
every layer, the same as one product with the matrices side by side, and the derivatives of the activations
("masks"). What an epilogue of the projections could save is at most the masks. Malloc keeps freed memory meanwhile, as
with `torchdfa bench --keep-memory`. Peak memory is that of the tensors of one step, by torch's own accounts, above what
stands before it.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.profiler import ProfilerActivity, profile

import torchdfa
from torchdfa.bench import heads, memory
from torchdfa.bench.harness import Case, Job, record
from torchdfa.bench.heads import Head
from torchdfa.feedback import Feedback
from torchdfa.ops import sign_mm

HEADS = {str(head.widths[0]): head for head in (heads.VGG, heads.MLP, heads.IMAGENET, heads.VOCABULARY)}
ALL = slice(None)
RATIOS = (
    ("projections / backward", "projections", "backward"),
    ("masks / backward", "masks", "backward"),
    ("projections / one product", "projections", "one product"),
)


def nothing() -> None:
    return None


def converted(head: Head, rule: str) -> nn.Module:
    return torchdfa.convert_(head.build(), rule, distribution="sign")  # the quickest to draw


def jobs(head: Head) -> Mapping[str, Job]:
    """The backward of the one-bit rule, and its parts on data of the same shapes."""
    model = converted(head, "bdfa")
    x, y = head.data()
    feedbacks = [m for m in model.modules() if isinstance(m, Feedback)]
    error, *hidden = [torch.randn(head.batch, n) for n in (head.widths[-1], *head.widths[1:-1])]

    def forward() -> Tensor:
        model.zero_grad()
        return F.cross_entropy(model(x), y)

    def projections(_: Any) -> None:
        for feedback in feedbacks:
            feedback.project(error, feedback.tensors(), ALL, (-1, feedback.shape[1]))

    def masks(_: Any) -> None:
        for values in hidden:
            torch.ops.aten.threshold_backward(values, values, 0)

    return {
        "backward": (forward, lambda loss: loss.backward()),
        "projections": (nothing, projections),
        "one product": (nothing, one_product(feedbacks, error)),
        "masks": (nothing, masks),
    }


def one_product(feedbacks: list[Feedback], error: Tensor) -> Any:
    """All projections at once; the pieces are views of one result, as a fused projection would hand them out."""
    widths = [feedback.shape[1] for feedback in feedbacks]
    signs, scales = zip(*(feedback.tensors() for feedback in feedbacks), strict=True)
    if signs[0].dtype == torch.uint8:  # bits; the widths here are whole bytes
        beside = torch.cat(signs, 1)
        scale = scales[0]  # the kernel's work does not depend on it
        return lambda _: sign_mm(error * scale, beside, sum(widths)).split(widths, 1)
    beside = torch.cat([s * scale for s, scale in zip(signs, scales, strict=True)], 1)
    return lambda _: (error @ beside).split(widths, 1)


def peaks(head: Head, rule: str) -> dict[str, float]:
    """MiB that tensors of one step take at most; with gradients that stand before, and made anew."""
    model = converted(head, rule)
    return {name: peak(model, head, kept) for name, kept in (("kept gradients", True), ("new gradients", False))}


def peak(model: nn.Module, head: Head, kept: bool) -> float:
    x, y = head.data()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if kept else None
    F.cross_entropy(model(x), y)  # libraries
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        F.cross_entropy(model(x), y).backward()
    assert profiler.profiler is not None
    assert profiler.profiler.kineto_results is not None
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return round(max(itertools.accumulate(sizes)) / 2**20, 3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--heads", nargs="+", choices=list(HEADS), default=list(HEADS), help="by width of the input")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, help="append each record to this file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    memory.keep_freed()
    for head in (HEADS[name] for name in options.heads):
        case = Case("backward_parts", head.name, partial(jobs, head), RATIOS)
        value = record(case, options.rounds) | {"peak_mib": {rule: peaks(head, rule) for rule in ("bp", "bdfa")}}
        print(json.dumps(value, indent=2))
        if options.out is not None:
            with options.out.open("a", encoding="utf-8") as file:
                file.write(json.dumps(value) + "\n")


if __name__ == "__main__":
    main()
