"""Backward passes and whole training steps: back-propagation, dense and one-bit feedback, peers."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import torchdfa
from torchdfa.bench.harness import Case, Job
from torchdfa.bench.peers import HookedDFA
from torchdfa.train import models


@dataclass(frozen=True)
class Head:
    """Widths from input to output, rows of a batch, and whether layers before it wait for an error."""

    widths: tuple[int, ...]
    batch: int
    trunk: bool

    @property
    def classes(self) -> int:
        return self.widths[-1]

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


@dataclass(frozen=True)
class Vgg16:
    """The network of Figure 3 for 32 x 32 images and 10 classes, and rows of a batch."""

    batch: int
    classes: int = 10

    @property
    def name(self) -> str:
        return f"VGG-16, batch {self.batch}"

    def build(self) -> nn.Sequential:
        """Of the same weights every time."""
        torch.manual_seed(0)
        model = models.build("vgg16", classes=self.classes, channels=3, image_size=32)
        return nn.Sequential(*[layer for part in model.children() for layer in part.children()])

    def data(self) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(self.batch, 3, 32, 32, generator=generator)
        return x, torch.randint(self.classes, (self.batch,), generator=generator)


VGG = Head((512, 4096, 4096, 10), 100, trunk=True)
MLP = Head((784, 2048, 2048, 2048, 2048, 2048, 10), 128, trunk=False)
IMAGENET = Head((25088, 4096, 4096, 1000), 32, trunk=True)
VOCABULARY = Head((4096, 4096, 4096, 32000), 32, trunk=True)
TINY = Head((64, 128, 128, 10), 32, trunk=True)
HEADS = {"small": [TINY, VGG], "full": [VGG, MLP, IMAGENET, VOCABULARY]}
NETWORKS: dict[str, Sequence[Head | Vgg16]] = {"small": [TINY, VGG], "full": [VGG, MLP, Vgg16(16)]}

_RULES = (("bp / bdfa", "bp", "bdfa"), ("dfa / bdfa", "dfa", "bdfa"), ("bp / dfa", "bp", "dfa"))
_PEERS = (*_RULES, ("hooked dfa / dfa", "hooked dfa", "dfa"), ("biotorch dfa / dfa", "biotorch dfa", "dfa"))


def cases(size: str) -> Iterator[Case]:
    """The backward pass alone of every head; whole steps of networks of moderate size, beside peers."""
    for head in HEADS[size]:
        yield Case("backward", head.name, partial(_backwards, head), _RULES)
    for network in NETWORKS[size]:
        yield Case("step", network.name, partial(_steps, network), _PEERS)


def _models(network: Head | Vgg16) -> dict[str, nn.Module]:
    return {rule: torchdfa.convert_(network.build(), rule) for rule in ("bp", "dfa", "bdfa")}


def _backwards(head: Head) -> dict[str, Job]:
    x, y = head.data()

    def job(model: nn.Module) -> Job:
        def forward() -> Tensor:
            model.zero_grad()
            return F.cross_entropy(model(x), y)

        return forward, lambda loss: loss.backward()

    return {name: job(model) for name, model in _models(head).items()}


def _steps(network: Head | Vgg16) -> dict[str, Job]:
    """Forward, backward and SGD with momentum."""
    found = _models(network) | {"hooked dfa": HookedDFA(network.build())}
    forwards: dict[str, Callable[[Tensor, Tensor], Tensor]] = {name: _plain(model) for name, model in found.items()}
    if importlib.util.find_spec("biotorch") is not None:  # pragma: no cover
        found["biotorch dfa"] = model = _biotorch(network)
        forwards["biotorch dfa"] = lambda x, y: model(x, targets=y, loss_function=F.cross_entropy)
    return {name: _step(network, model, forwards[name]) for name, model in found.items()}


def _plain(model: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, y: model(x)


def _step(network: Head | Vgg16, model: nn.Module, forward: Callable[[Tensor, Tensor], Tensor]) -> Job:
    x, y = network.data()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9)

    def step(_: Any) -> None:
        optimizer.zero_grad()
        F.cross_entropy(forward(x, y), y).backward()
        optimizer.step()

    return (lambda: None), step


def _biotorch(network: Head | Vgg16) -> nn.Module:  # pragma: no cover
    from biotorch.module.biomodule import BioModule

    model = BioModule(network.build(), mode="dfa", output_dim=network.classes)
    assert isinstance(model, nn.Module)
    return model
