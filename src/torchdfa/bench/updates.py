"""Backward and update of fully-connected heads: ``torch.optim.SGD`` beside updates within backward, and their peaks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchdfa
from torchdfa.bench.harness import Case, Job
from torchdfa.bench.heads import MLP, TINY, VGG, Head
from torchdfa.bench.memory import in_process

MDNET = [Head((4608, 512, 512, 2), batch, trunk=False) for batch in (32, 128)]
SIZES = {"small": [TINY, MDNET[0]], "full": [VGG, *MDNET, MLP]}
RULES = ("bp", "bdfa")
KINDS = ("SGD", "fused SGD", "in backward")

_SCRIPT = """
import json, sys
import torch
from torchdfa.bench import updates
from torchdfa.bench.memory import resident

torch.set_num_threads(1)
kind, rule, *shape = sys.argv[1:]
*widths, batch, trunk = map(int, shape)

def trained(head):
    model, optimizer, x, y = updates.prepared(head, rule, kind, 0.9)
    for _ in range(2):
        updates.step(optimizer, updates.forward(model, x, y))
    return model, optimizer, x, y

trained(updates.TINY)  # libraries and threads
before = resident("VmRSS")
model, optimizer, x, y = trained(updates.Head(tuple(widths), batch, bool(trunk)))
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak starts anew
updates.step(optimizer, updates.forward(model, x, y))
kept = [*model.parameters(), *model.buffers(), *(state["momentum_buffer"] for state in optimizer.state.values())]
held = sum(t.numel() * t.element_size() for t in kept)
print(json.dumps({"held_bytes": held, "extra_peak_bytes": max(0, resident("VmHWM") - before - held)}))
"""


def cases(size: str) -> Iterator[Case]:
    """Every head with and without momentum."""
    pairs = [(f"{rule}, {kind}", f"{rule}, in backward") for rule in RULES for kind in KINDS[:2]]
    ratios = tuple((f"{slower} / in backward", slower, faster) for slower, faster in pairs)
    for head in SIZES[size]:
        for momentum in (0.9, 0.0):
            yield Case("update", f"{head.name}, momentum {momentum:g}", partial(_jobs, head, momentum), ratios)


def memory(head: Head, rules: Sequence[str] = RULES) -> dict[str, dict[str, int]]:
    """What weights, feedback and momentum hold, and resident memory that a whole step adds at most."""
    found = {}
    for rule in rules:
        for kind in KINDS[1:]:
            shape = (*head.widths, head.batch, int(head.trunk))
            found[f"{rule}, {kind}"] = in_process(_SCRIPT, kind, rule, *shape)
    return found


def prepared(head: Head, rule: str, kind: str, momentum: float) -> tuple[nn.Module, Any, Tensor, Tensor]:
    """A converted head, its optimizer, and a batch."""
    model = torchdfa.convert_(head.build(), rule)
    arguments: dict[str, Any] = {"lr": 1e-4, "momentum": momentum}
    if kind == "in backward":
        return model, torchdfa.InBackwardSGD(model, **arguments), *head.data()
    return model, torch.optim.SGD(model.parameters(), fused=kind == "fused SGD", **arguments), *head.data()


def forward(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """The loss."""
    return F.cross_entropy(model(x), y)


def step(optimizer: Any, loss: Tensor) -> None:
    """What is measured: backward, update, and gradients given back."""
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()


def _jobs(head: Head, momentum: float) -> dict[str, Job]:
    def job(rule: str, kind: str) -> Job:
        model, optimizer, x, y = prepared(head, rule, kind, momentum)
        return partial(forward, model, x, y), partial(step, optimizer)

    return {f"{rule}, {kind}": job(rule, kind) for rule in RULES for kind in KINDS}
