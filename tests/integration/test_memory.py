"""Nothing of a step outlives it: storages of activations are followed by weak references, without the collector."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F

import cases
import torchdfa
from live_memory import LiveMemory
from torchdfa import convert_


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """A reference cycle would hold activations until the collector happens to run, so it counts as a leak."""
    torch.compiler.reset()  # the first use of the compiler imports it, and the frames of that hold tensors for a while
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def follow(model: nn.Module) -> list[tuple[str, StorageWeakRef]]:
    """A list that fills with a weak reference to the storage of every activation."""
    found: list[tuple[str, StorageWeakRef]] = []

    def note(module: nn.Module, args: Any, output: Any, name: str) -> None:
        for x in (*args, *(output if isinstance(output, tuple) else (output,))):
            if isinstance(x, Tensor):
                found.append((name, StorageWeakRef(x.untyped_storage())))

    for name, module in model.named_modules():
        if name and "feedback" not in name:
            module.register_forward_hook(lambda m, a, o, name=name: note(m, a, o, name))
    return found


def alive(found: list[tuple[str, StorageWeakRef]]) -> set[str]:
    return {name for name, reference in found if not reference.expired()}


def step(model: nn.Module) -> None:
    x, y = cases.batch()
    F.cross_entropy(model(x), y).backward()


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "bdfa", "frozen"])
@pytest.mark.parametrize("name", list(cases.MODELS))
def test_no_activation_outlives_the_backward(name: str, rule: str) -> None:
    model = convert_(cases.make(name), rule, example_input=cases.batch()[0])
    found = follow(model)
    step(model)
    assert found
    assert alive(found) == set()


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_with_feedback_to_every_layer(rule: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    convert_(model, rule, layers="all", example_input=cases.batch()[0])
    found = follow(model)
    step(model)
    assert alive(found) == set()


@pytest.mark.parametrize("rule", ["fa", "dfa", "bdfa"])
def test_no_activation_outlives_a_forward_whose_output_is_dropped(rule: str) -> None:
    model = convert_(cases.make("vgg"), rule)
    found = follow(model)
    model(cases.batch()[0])
    assert alive(found) == set()
    with torch.no_grad():
        model(cases.batch()[0])
    assert alive(found) == set()


def test_an_output_holds_its_own_graph_and_no_more() -> None:
    """What the graph keeps for direct feedback is what it keeps for back-propagation."""
    kept = {}
    for rule in ("bp", "dfa"):
        model = convert_(cases.make("vgg"), rule)
        found = follow(model)
        output = model(cases.batch()[0])
        kept[rule] = alive(found)
        del output
        assert alive(found) == set()
    assert kept["dfa"] == kept["bp"]


class Stop(Exception):
    pass


def test_a_forward_that_raises_leaves_at_most_its_inputs_until_the_next_one() -> None:
    model = convert_(cases.make("vgg"), "dfa")
    found = follow(model)
    handle = model.classifier[4].register_forward_hook(lambda *_: (_ for _ in ()).throw(Stop))
    for _ in range(3):
        with pytest.raises(Stop):
            model(cases.batch()[0])
        assert set(model._torchdfa.bus.taps) <= {"classifier.0", "classifier.3"}
    handle.remove()
    step(model)
    assert model._torchdfa.bus.taps == {}
    assert alive(found) == set()


def test_a_branch_that_is_not_used_leaves_no_activation() -> None:
    class OneBranch(cases.TwoBranch):
        def forward(self, x: Tensor, branch: str = "") -> Any:
            if not branch:
                return super().forward(x)
            return getattr(self, branch)(torch.tanh(self.shared(self.trunk(x))))

    torch.manual_seed(0)
    model = convert_(OneBranch(), "dfa")
    found = follow(model)
    for branch in ("actor", "critic") * 3:
        model(cases.batch()[0], branch).square().mean().backward()
        assert set(model._torchdfa.bus.taps) == {"shared"}  # it waits for the other branch
        assert alive(found) == set()
    both = model(cases.batch()[0])
    assert model._torchdfa.bus.taps == {}
    both[0].square().mean().backward()
    del both
    assert alive(found) == set()


def test_diagnostics_hold_nothing() -> None:
    model = convert_(cases.make("vgg"), "dfa")
    found = follow(model)
    torchdfa.diagnostics.measure(model, lambda: F.cross_entropy(model(cases.batch()[0]), cases.batch()[1]))
    assert model._torchdfa.bus.watched is None
    assert model._torchdfa.bus.taps == {}
    assert alive(found) == set()


WIDTHS, ROWS = (64, 256, 256, 256, 10), 128
SENT = [("dfa", {}), ("bdfa", {}), ("dfa", {"store": "seed"}), ("bdfa", {"store": "seed"})]


def peak_and_rest(rule: str, gradients: bool, trunk: bool, **arguments: Any) -> tuple[int, int]:
    """Bytes of a backward's tensors at most, and those of the step that are left when it is over.

    Gradients stand before and are written into, or they are made anew and left.
    """
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 64)), nn.Conv1d(1, 1, 3, padding=1), nn.Flatten()] if trunk else []
    for n, m in itertools.pairwise(WIDTHS):
        layers += [nn.Linear(n, m), nn.ReLU()]
    model = convert_(nn.Sequential(*layers[:-1]), rule, **arguments)
    x, y = torch.randn(ROWS, 64), torch.arange(ROWS) % 10
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if gradients else None
    with LiveMemory() as memory:
        loss = F.cross_entropy(model(x), y)
        memory.peak = 0
        loss.backward()
        del loss
        rest = memory.now()
    return memory.peak, rest


@pytest.mark.parametrize("trunk", [False, True])
@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "bdfa"])
@pytest.mark.parametrize("store", ["buffers", "seed"])
def test_a_step_leaves_as_much_memory_as_it_found(rule: str, store: Any, trunk: bool) -> None:
    assert peak_and_rest(rule, True, trunk, store=store)[1] == 0
    weights = sum((n + 1) * m for n, m in itertools.pairwise(WIDTHS)) + 4 * trunk
    assert peak_and_rest(rule, False, trunk, store=store)[1] == 4 * weights


@pytest.mark.parametrize("trunk", [False, True])
@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("rule, arguments", [("fa", {}), *SENT])
def test_the_peak_of_a_backward_is_no_higher_than_that_of_backprop(
    rule: str, arguments: dict[str, Any], gradients: bool, trunk: bool
) -> None:
    """Errors are sent one after the other: none waits for the layers above, only the output's own (ROWS x 10).

    That one adds to the peak where this lies at the last projection: new gradients, and an error for a trunk.
    """
    found, backprop = peak_and_rest(rule, gradients, trunk, **arguments)[0], peak_and_rest("bp", gradients, trunk)[0]
    if trunk and not gradients and rule != "fa":
        assert found == backprop + 4 * ROWS * WIDTHS[-1]
    else:
        assert found <= backprop
