"""Threads, and forwards that meet in the middle: what one call passes on is never seen by another."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cases
import gradients
import torchdfa
from torchdfa import convert_

RULES = ["fa", "dfa", "bdfa"]
CALLS = 8


def batch(seed: int) -> tuple[Tensor, Tensor]:
    x, y = cases.batch(seed=seed)
    return x.double(), y


def loss_of(model: nn.Module, seed: int) -> Tensor:
    x, y = batch(seed)
    return F.cross_entropy(model(x), y)


def side_by_side(first: Callable[[], Any], second: Callable[[], Any]) -> list[Any]:
    with ThreadPoolExecutor(2) as pool:
        return [future.result(timeout=60) for future in (pool.submit(first), pool.submit(second))]


class Meet(nn.Module):
    """An identity in the middle of a head where both threads wait for each other."""

    def __init__(self, barrier: threading.Barrier):
        super().__init__()
        self.wait = barrier.wait

    def forward(self, x: Tensor) -> Tensor:
        self.wait(timeout=30)
        return x


def meeting(rule: str, barrier: threading.Barrier) -> nn.Sequential:
    model = convert_(cases.make("mlp").double(), rule)
    return nn.Sequential(*model[:3], Meet(barrier), *model[3:])


@pytest.mark.parametrize("rule", RULES)
def test_one_model_in_two_threads(rule: str) -> None:
    """Both threads are inside the head at once, with different batches; the weights are shared."""
    alone = meeting(rule, threading.Barrier(1))
    expected = {seed: gradients.of(alone, loss_of(alone, seed)) for seed in range(2 * CALLS)}
    model = meeting(rule, threading.Barrier(2))
    names, parameters = zip(*model.named_parameters(), strict=True)

    def work(thread: int) -> list[tuple[Tensor, ...]]:
        return [torch.autograd.grad(loss_of(model, 2 * call + thread), parameters) for call in range(CALLS)]

    for thread, found in enumerate(side_by_side(lambda: work(0), lambda: work(1))):
        for call, tensors in enumerate(found):
            gradients.assert_equal(dict(zip(names, tensors, strict=True)), expected[2 * call + thread])


@pytest.mark.parametrize("rule", RULES)
def test_two_models_in_two_threads(rule: str) -> None:
    barrier = threading.Barrier(2)
    models = [meeting(rule, barrier), meeting(rule, barrier)]
    alone = meeting(rule, threading.Barrier(1))
    expected = [gradients.of(alone, loss_of(alone, seed)) for seed in (0, 1)]

    def train(index: int) -> dict[str, Tensor | None]:
        for _ in range(CALLS):
            found = gradients.of(models[index], loss_of(models[index], index))
        return found

    for index, found in enumerate(side_by_side(lambda: train(0), lambda: train(1))):
        gradients.assert_equal(found, expected[index])


def test_forward_in_one_thread_and_backward_in_another() -> None:
    model = convert_(cases.make("vgg").double(), "dfa").eval()
    expected = gradients.of(model, loss_of(model, 0))
    loss = loss_of(model, 0)
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(gradients.of, model, loss).result(timeout=60)
    gradients.assert_equal(found, expected)


def test_backprop_context_concerns_the_thread_that_asked() -> None:
    """A saliency map in one thread does not change what another thread trains on."""
    model = convert_(cases.make("mlp").double(), "dfa")
    rule = gradients.of(model, loss_of(model, 0))
    with torchdfa.backprop(model):
        true = gradients.of(model, loss_of(model, 0))
        with ThreadPoolExecutor(1) as pool:
            other = pool.submit(lambda: gradients.of(model, loss_of(model, 0))).result(timeout=60)
        gradients.assert_equal(gradients.of(model, loss_of(model, 0)), true)
    gradients.assert_equal(other, rule)
    gradients.assert_equal(gradients.of(model, loss_of(model, 0)), rule)
    assert not torch.equal(true["1.weight"], rule["1.weight"])


def test_backprop_context_ends_with_an_exception_and_nests() -> None:
    model = convert_(cases.make("mlp").double(), "dfa")
    rule = gradients.of(model, loss_of(model, 0))
    with torchdfa.backprop(model):
        with torchdfa.backprop(model):
            pass
        true = gradients.of(model, loss_of(model, 0))
    assert not torch.equal(true["1.weight"], rule["1.weight"])
    with pytest.raises(ValueError, match="size"), torchdfa.backprop(model):
        F.cross_entropy(model(batch(0)[0]), batch(0)[1][:2])
    gradients.assert_equal(gradients.of(model, loss_of(model, 0)), rule)


@pytest.mark.parametrize("rule", RULES)
def test_replicas_that_share_all_but_their_tensors(rule: str) -> None:
    """What nn.DataParallel does: shallow replicas, each with its own thread and a part of the batch."""
    model = convert_(cases.make("vgg").double(), rule).eval()
    x, y = batch(0)
    whole = gradients.of(model, F.cross_entropy(model(x), y, reduction="sum"))
    names, parameters = zip(*model.named_parameters(), strict=True)

    def replica(module: nn.Module) -> nn.Module:
        twin = module._replicate_for_data_parallel()
        for name, child in module.named_children():
            setattr(twin, name, replica(child))
        for name, p in module.named_parameters(recurse=False):
            setattr(twin, name, p)
        return twin

    def part(rows: slice) -> tuple[Tensor, ...]:
        twin = replica(model)
        return torch.autograd.grad(F.cross_entropy(twin(x[rows]), y[rows], reduction="sum"), parameters)

    first, second = side_by_side(lambda: part(slice(0, 2)), lambda: part(slice(2, 6)))
    found = {name: a + b for name, a, b in zip(names, first, second, strict=True)}
    gradients.assert_close(found, whole)


class Stop(Exception):
    pass


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("where", ["classifier.1", "classifier.4"])
def test_a_forward_that_raises_inside_the_head_leaves_the_next_one_right(rule: str, where: str) -> None:
    model = convert_(cases.make("vgg").double(), rule).eval()
    expected = gradients.of(model, loss_of(model, 0))
    raising = True

    def fail(*_: Any) -> None:
        if raising:
            raise Stop

    model.get_submodule(where).register_forward_hook(fail)
    for _ in range(2):
        with pytest.raises(Stop):
            loss_of(model, 1)
    raising = False
    gradients.assert_equal(gradients.of(model, loss_of(model, 0)), expected)
    assert model._torchdfa.bus.taps == {}


@pytest.mark.parametrize("rule", RULES)
def test_a_forward_that_raises_with_gradients_then_one_without(rule: str) -> None:
    """Taps that wait from a broken forward are neither used by an evaluation nor by what follows it."""
    model = convert_(cases.make("vgg").double(), rule).eval()
    expected = gradients.of(model, loss_of(model, 0))
    handle = model.classifier[4].register_forward_hook(lambda *_: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        loss_of(model, 1)
    handle.remove()
    with torch.no_grad():
        loss_of(model, 2)
    with torchdfa.backprop(model):
        loss_of(model, 3).backward()
    gradients.assert_equal(gradients.of(model, loss_of(model, 0)), expected)


class OptionalMiddle(nn.Module):
    """A layer that some calls leave out."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(6, 7), nn.Linear(7, 7), nn.Linear(7, 5)

    def forward(self, x: Tensor, short: bool = False) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h if short else torch.tanh(self.middle(h)))


@pytest.mark.parametrize("rule", RULES)
def test_a_layer_that_a_call_leaves_out_is_not_joined_from_a_broken_one(rule: str) -> None:
    torch.manual_seed(0)
    model = convert_(OptionalMiddle().double(), rule)
    x = torch.randn(4, 6).double()
    expected = gradients.of(model, model(x, short=True).square().sum())
    assert expected["middle.weight"] is None
    handle = model.middle.register_forward_hook(lambda *_: (_ for _ in ()).throw(Stop))
    with pytest.raises(Stop):
        model(x)
    handle.remove()
    gradients.assert_equal(gradients.of(model, model(x, short=True).square().sum()), expected)
