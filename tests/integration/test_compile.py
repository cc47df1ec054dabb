"""torch.compile without graph breaks: the same gradients, and feedback that is read anew at every call."""

from __future__ import annotations

import shutil
import sysconfig
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cases
import gradients
import torchdfa
from torchdfa import convert_

# What torch deprecates and warns of in itself as it compiles.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]
HAS_COMPILER = shutil.which("g++") is not None and Path(sysconfig.get_path("include"), "Python.h").is_file()


@pytest.fixture(autouse=True)
def fresh_cache() -> Iterator[None]:
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def compiled(model: nn.Module, backend: str = "aot_eager", **options: Any) -> Callable[..., Any]:
    return torch.compile(model, fullgraph=True, backend=backend, **options)


def loss_of(model: Callable[..., Any], size: int = 6, seed: int = 0) -> Tensor:
    x, y = cases.batch(size, seed)
    return F.cross_entropy(model(x), y)


def assert_same(model: nn.Module, forward: Callable[..., Any], size: int = 6) -> None:
    eager = gradients.of(model, loss_of(model, size))
    gradients.assert_close(gradients.of(model, loss_of(forward, size)), eager, rtol=1e-4, atol=1e-6)


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=2, bias=False), nn.ReLU(inplace=True), nn.Flatten(),
        nn.Linear(64, 16), nn.GELU(), nn.Linear(16, 5),
    )  # fmt: skip


@pytest.mark.parametrize(
    "rule, arguments",
    [
        ("fa", {"init": "product"}),
        ("dfa", {"init": "product", "boundary": "transpose"}),
        ("dfa", {"init": "product"}),
        ("bdfa", {}),
        ("frozen", {}),
    ],
)
def test_equals_eager(rule: str, arguments: dict[str, Any]) -> None:
    model = convert_(cases.make("vgg"), rule, **arguments).eval()
    assert_same(model, compiled(model))


def test_packed_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchdfa.feedback.UNPACKED_LIMIT_BYTES", 0)
    model = convert_(cases.make("mlp"), "bdfa", init="product")
    assert model[3].feedback.signs is None
    assert_same(model, compiled(model))


@pytest.mark.parametrize("bias", [True, False])
def test_three_dimensional_input(bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8, bias=bias), nn.ReLU(True), nn.Linear(8, 7, bias=bias), nn.Linear(7, 3, bias=bias)
    )
    convert_(model, "dfa")
    x = torch.randn(2, 5, 6)
    eager = gradients.of(model, model(x).square().sum())
    gradients.assert_close(gradients.of(model, compiled(model)(x).square().sum()), eager, rtol=1e-4, atol=1e-6)


def test_two_outputs_and_a_loss_on_one() -> None:
    torch.manual_seed(0)
    model = convert_(cases.TwoBranch(), "dfa")
    forward = compiled(model)
    x = cases.batch()[0]
    for weights in ((1.0, 1.0), (1.0, 0.0)):
        results = []
        for run in (model, forward):
            actor, critic = run(x)
            results.append(gradients.of(model, weights[0] * actor.square().sum() + weights[1] * critic.square().sum()))
        gradients.assert_close(results[1], results[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dynamic", [True, None])
@pytest.mark.parametrize("rule", ["fa", "dfa", "bdfa"])
def test_any_batch_size(rule: str, dynamic: bool | None) -> None:
    """Asked for, or found by torch when a second size comes: the last, smaller batch of an epoch."""
    model = convert_(conv_net(), rule, layers="all", example_input=cases.batch()[0])
    forward = compiled(model, dynamic=dynamic)
    for size in (6, 3, 11):
        assert_same(model, forward, size)


def test_feedback_changed_after_compiling_is_used() -> None:
    """Feedback is no constant of the graph."""
    model = convert_(cases.make("mlp"), "dfa", init="product")
    forward = compiled(model)
    old = gradients.of(model, loss_of(forward))
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(-1.5)
    torchdfa.refresh_feedback_(model)
    assert_same(model, forward)
    model[5].feedback.matrix.zero_()
    assert not gradients.of(model, loss_of(forward))["3.weight"].any()
    assert old["3.weight"].any()


def test_backprop_context() -> None:
    model = convert_(cases.make("mlp"), "dfa")
    forward = compiled(model)
    rule = gradients.of(model, loss_of(forward))
    with torchdfa.backprop(model):
        assert_same(model, forward)
        true = gradients.of(model, loss_of(forward))
    gradients.assert_close(gradients.of(model, loss_of(forward)), rule, rtol=1e-5, atol=1e-7)
    assert not torch.allclose(true["1.weight"], rule["1.weight"])


def test_several_forwards_and_passes_without_gradients() -> None:
    model = convert_(cases.make("vgg"), "dfa").eval()
    forward = compiled(model)
    expected = gradients.of(model, loss_of(model, 6, 0) + loss_of(model, 6, 1))
    first = loss_of(forward, 6, 0)
    with torch.no_grad():
        torch.testing.assert_close(forward(cases.batch(6, 2)[0]), model(cases.batch(6, 2)[0]))
    found = gradients.of(model, first + loss_of(forward, 6, 1))
    gradients.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert model._torchdfa.bus.taps == {}


def test_compiling_in_place_and_only_the_head() -> None:
    model = convert_(cases.make("vgg"), "bdfa").eval()
    eager = gradients.of(model, loss_of(model))
    model.classifier.compile(fullgraph=True, backend="aot_eager")
    gradients.assert_close(gradients.of(model, loss_of(model)), eager, rtol=1e-4, atol=1e-6)


def test_state_dict_restore_and_report_see_through_the_wrapper() -> None:
    model = convert_(cases.make("mlp"), "dfa")
    wrapped = torch.compile(model, backend="aot_eager")
    assert torchdfa.report(wrapped).rows == torchdfa.report(model).rows
    torchdfa.restore_(wrapped)
    assert type(model[3]) is nn.Linear
    plain = cases.make("mlp")
    found = gradients.of(model, loss_of(wrapped))
    gradients.assert_close(found, gradients.of(plain, loss_of(plain)), rtol=1e-4, atol=1e-6)


def test_diagnostics_see_through_the_wrapper() -> None:
    model = convert_(cases.make("vgg"), "dfa").eval()
    forward = compiled(model)
    eager = torchdfa.diagnostics.measure(model, lambda: loss_of(model))
    before = gradients.of(model, loss_of(forward))
    assert torchdfa.diagnostics.measure(model, lambda: loss_of(forward)) == eager
    assert eager.boundary["classifier.0"].degrees is not None
    gradients.assert_equal(gradients.of(model, loss_of(forward)), before)


@pytest.mark.slow
@pytest.mark.skipif(not HAS_COMPILER, reason="inductor needs a C++ compiler and Python.h")
def test_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    """The default backend, with one layer's signs packed and the other's not; small, because it calls a compiler."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 5))
    monkeypatch.setattr("torchdfa.feedback.UNPACKED_LIMIT_BYTES", 4 * 5 * 8)
    convert_(model, "bdfa")
    assert model[2].feedback.signs is None
    assert model[4].feedback.signs is not None
    x = torch.randn(8, 6)
    found = [gradients.of(model, run(x).square().mean()) for run in (model, compiled(model, "inductor"))]
    gradients.assert_close(found[1], found[0], rtol=1e-4, atol=1e-6)
