"""Backward passes and whole steps of fully-connected heads: back-propagation, dense and one-bit feedback, peers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchdfa
from torchdfa.bench.harness import Case, Job
from torchdfa.bench.peers import HookedDFA


@dataclass(frozen=True)
class Head:
    """Widths from input to output, rows of a batch, and whether layers before it wait for an error."""

    widths: tuple[int, ...]
    batch: int
    trunk: bool

    @property
    def name(self) -> str:
        return f"{'-'.join(map(str, self.widths))}, batch {self.batch}"

    def build(self) -> nn.Sequential:
        """Of the same weights every time; a trunk is one number that multiplies the input, so that it costs nothing."""
        torch.manual_seed(0)
        layers: list[nn.Module] = []
        if self.trunk:
            layers += [nn.Unflatten(1, (1, self.widths[0])), nn.Conv1d(1, 1, 1, bias=False), nn.Flatten()]
        for n, m in zip(self.widths, self.widths[1:], strict=False):
            layers += [nn.Linear(n, m), nn.ReLU()]
        return nn.Sequential(*layers[:-1])

    def data(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(self.batch, self.widths[0], generator=generator)
        return x, torch.randint(self.widths[-1], (self.batch,), generator=generator)


VGG = Head((512, 4096, 4096, 10), 100, trunk=True)
MLP = Head((784, 2048, 2048, 2048, 2048, 2048, 10), 128, trunk=False)
IMAGENET = Head((25088, 4096, 4096, 1000), 32, trunk=True)
VOCABULARY = Head((4096, 4096, 4096, 32000), 32, trunk=True)
TINY = Head((64, 128, 128, 10), 32, trunk=True)
SIZES = {"small": [TINY, VGG], "full": [VGG, MLP, IMAGENET, VOCABULARY]}

_RULES = (("bp / bdfa", "bp", "bdfa"), ("dfa / bdfa", "dfa", "bdfa"), ("bp / dfa", "bp", "dfa"))
_PEERS = (*_RULES, ("hooked dfa / dfa", "hooked dfa", "dfa"), ("biotorch dfa / dfa", "biotorch dfa", "dfa"))


def cases(size: str) -> Iterator[Case]:
    """The backward pass alone of every head; whole steps of those of moderate size, beside peers."""
    for head in SIZES[size]:
        yield Case("backward", head.name, partial(_backwards, head), _RULES)
    for head in SIZES[size]:
        if head.widths[-1] <= 10:
            yield Case("step", head.name, partial(_steps, head), _PEERS)


def _models(head: Head) -> dict[str, nn.Module]:
    return {rule: torchdfa.convert_(head.build(), rule) for rule in ("bp", "dfa", "bdfa")}


def _backwards(head: Head) -> dict[str, Job]:
    x, y = head.data()

    def job(model: nn.Module) -> Job:
        def forward() -> Tensor:
            model.zero_grad()
            return F.cross_entropy(model(x), y)

        return forward, lambda loss: loss.backward()

    return {name: job(model) for name, model in _models(head).items()}


def _steps(head: Head) -> dict[str, Job]:
    """Forward, backward and SGD with momentum."""
    models = _models(head) | {"hooked dfa": HookedDFA(head.build())}
    forwards: dict[str, Callable[[Tensor, Tensor], Tensor]] = {name: _plain(model) for name, model in models.items()}
    if importlib.util.find_spec("biotorch") is not None:  # pragma: no cover
        models["biotorch dfa"] = model = _biotorch(head)
        forwards["biotorch dfa"] = lambda x, y: model(x, targets=y, loss_function=F.cross_entropy)
    return {name: _step(head, model, forwards[name]) for name, model in models.items()}


def _plain(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: model(x)


def _step(head: Head, model: nn.Module, forward: Callable[[Tensor, Tensor], Tensor]) -> Job:
    x, y = head.data()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step(_: Any) -> None:
        optimizer.zero_grad()
        F.cross_entropy(forward(x, y), y).backward()
        optimizer.step()

    return (lambda: None), step


def _biotorch(head: Head) -> nn.Module:  # pragma: no cover
    from biotorch.module.biomodule import BioModule

    model = BioModule(head.build(), mode="dfa", output_dim=head.widths[-1])
    assert isinstance(model, nn.Module)
    return model
