"""One of two processes of test_ddp.py: `python ddp_worker.py RANK FOLDER`. Writes what it saw to FOLDER/RANK.pt."""

from __future__ import annotations

import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import torchdfa


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(144, 16), nn.ReLU(), nn.Linear(16, 12), nn.ReLU(),
        nn.Linear(12, 5),
    ).double()  # fmt: skip


def batch(rank: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(4, 1, 8, 8, generator=generator).double(), torch.randint(5, (4,), generator=generator)


def feedback(model: nn.Module) -> dict[str, Tensor]:
    return {n.removeprefix("module."): b.clone() for n, b in model.named_buffers() if "feedback" in n}


def train(model: nn.Module, rank: int, steps: int = 3) -> dict[str, Any]:
    """Gradients of the first step, and the weights after all."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    seen: dict[str, Any] = {}
    for _ in range(steps):
        optimizer.zero_grad()
        x, y = batch(rank)
        F.cross_entropy(model(x), y).backward()
        named = [(n.removeprefix("module."), p) for n, p in model.named_parameters()]
        seen.setdefault("gradients", {n: None if p.grad is None else p.grad.clone() for n, p in named})
        optimizer.step()
    return seen | {"weights": {n: p.detach().clone() for n, p in named}, "feedback": feedback(model)}


def main(rank: int, folder: Path) -> None:
    torch.set_num_threads(1)
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    torch.manual_seed(100 + rank)
    seen: dict[str, Any] = {}
    for rule in ("fa", "dfa", "bdfa", "frozen"):
        model = torchdfa.convert_(network(), rule)
        seen[rule] = train(DistributedDataParallel(model), rank)
    # Feedback that a careless program draws from a seed of its own on each rank:
    model = torchdfa.convert_(network(), "bdfa", seed=rank)
    seen["drawn"] = feedback(model)
    seen["careless"] = train(DistributedDataParallel(model), rank)
    # Accumulation without synchronising, and a forward without gradients in the wrapper.
    model = DistributedDataParallel(torchdfa.convert_(network(), "dfa"))
    with model.no_sync():
        F.cross_entropy(model(batch(rank)[0]), batch(rank)[1]).backward()
    with torch.no_grad():
        model(batch(5)[0])
    F.cross_entropy(model(batch(rank + 2)[0]), batch(rank + 2)[1]).backward()
    seen["accumulated"] = {n.removeprefix("module."): p.grad for n, p in model.named_parameters()}
    torch.save(seen, folder / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
