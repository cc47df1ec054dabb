"""Updates within backward equal those of torch.optim.SGD in float64, and what cannot be is refused by name."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import cases
import torchdfa
from live_memory import LiveMemory
from torchdfa import ConversionError, InBackwardSGD, RunError, convert_, restore_
from torchdfa.layers import FeedbackInBackwardLinear, FeedbackLinear
from torchdfa.optim import _descend_
from torchdfa.updates import InBackwardLinear, Product

SETTINGS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
]
RULES = ["bp", "fa", "dfa", "bdfa", "frozen"]


def batch(seed: int = 0, size: int = 6) -> tuple[Tensor, Tensor]:
    x, y = cases.batch(size, seed)
    return x.double(), y


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    x, y = batch(seed)
    return F.cross_entropy(model(x), y)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[nn.Module, int], Tensor], i: int) -> None:
    optimizer.zero_grad()
    loss(model, i).backward()
    if isinstance(optimizer, InBackwardSGD):
        assert all(p.grad is None for p in model.parameters())
    optimizer.step()


def assert_equal_weights(model: nn.Module, other: nn.Module, tolerance: float = 1e-12) -> None:
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert float((p - q).detach().norm()) <= tolerance * float(q.detach().norm()), name


def assert_equals_sgd(
    model: nn.Module,
    loss: Callable[[nn.Module, int], Tensor] = loss_of,
    steps: int = 6,
    tolerance: float = 1e-12,
    **arguments: Any,
) -> InBackwardSGD:
    """Train ``model`` and a copy of it with torch's optimizer, by the same losses; at the end they are the same."""
    arguments = {"lr": 0.05, "momentum": 0.9, "weight_decay": 0.01} | arguments
    twin = copy.deepcopy(model)
    before = [p.detach().clone() for p in model.parameters()]
    ours, theirs = InBackwardSGD(model, **arguments), torch.optim.SGD(twin.parameters(), **arguments)
    for i in range(steps):
        step(model, ours, loss, i)
        step(twin, theirs, loss, i)
    assert any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert_equal_weights(model, twin, tolerance)
    return ours


@pytest.fixture
def model() -> nn.Module:
    return cases.make("vgg").double()


@pytest.mark.parametrize("arguments", SETTINGS, ids=lambda a: "-".join(a) or "plain")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["vgg", "mlp"])
def test_equals_sgd(name: str, rule: str, arguments: dict[str, Any]) -> None:
    model = convert_(cases.make(name).double(), rule)
    assert_equals_sgd(model, steps=20, weight_decay=0.0, **{"momentum": 0.0} | arguments) if not arguments.get(
        "weight_decay"
    ) else assert_equals_sgd(model, steps=20, **{"momentum": 0.0} | arguments)
