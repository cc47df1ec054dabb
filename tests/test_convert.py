from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import nn

import cases
import torchdfa
from torchdfa import ConversionError
from torchdfa.layers import FeedbackLinear


def loss(model: nn.Module, seed: int = 0) -> torch.Tensor:
    x, y = cases.batch(seed=seed)
    return nn.functional.cross_entropy(model(x), y)


def grads(model: nn.Module) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    loss(model).backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "bdfa", "frozen"])
@pytest.mark.parametrize("name", list(cases.MODELS))
def test_parameters_keep_identity_and_names_and_outputs_their_values(name: str, rule: str) -> None:
    model = cases.make(name)
    before = dict(model.named_parameters())
    out = model(cases.batch()[0])
    assert torchdfa.convert_(model, rule, example_input=cases.batch()[0]) is model
    after = dict(model.named_parameters())
    assert list(before) == list(after)
    assert all(before[k] is after[k] for k in before)
    assert torch.equal(model(cases.batch()[0]), out)


@pytest.mark.parametrize("rule", ["fa", "dfa", "bdfa", "frozen"])
@pytest.mark.parametrize("name", list(cases.MODELS))
def test_restore_brings_back_the_torch_model(name: str, rule: str) -> None:
    model = cases.make(name)
    text, state, true = str(model), copy.deepcopy(model.state_dict()), grads(model)
    torchdfa.convert_(model, rule, example_input=cases.batch()[0])
    changed = grads(model)
    assert any(changed[k] is None or not torch.equal(changed[k], true[k]) for k in true)
    torchdfa.restore_(model)
    model.load_state_dict(state)  # batch norm statistics moved
    assert str(model) == text
    again = grads(model)
    assert all(torch.equal(again[k], true[k]) for k in true)
    with pytest.raises(ConversionError, match="not converted"):
        torchdfa.restore_(model)


def head_with_more_that_learns() -> nn.Sequential:
    hidden = [nn.Linear(36, 8), nn.BatchNorm1d(8), nn.PReLU(), nn.Linear(8, 8), nn.LayerNorm(8), nn.ReLU()]
    return nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.BatchNorm2d(4), nn.Flatten(), *hidden, nn.Linear(8, 5), nn.PReLU())


class Unread(nn.Module):
    """Control flow on data around layers that are registered in the order in which they run."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x if x.sum() < 1e9 else x * 0)


@pytest.mark.parametrize("way", ["traced", "untraced", "head"])
def test_frozen_keeps_all_that_lies_between_the_heads_layers(way: str) -> None:
    layers = head_with_more_that_learns()
    model = Unread(layers) if way != "traced" else layers
    told = {"head": {"head": "layers"}, "untraced": {"example_input": torch.zeros(1, 1, 8, 8)}, "traced": {}}[way]
    torchdfa.convert_(model, "frozen", **told)
    assert [n for n, p in layers.named_parameters() if p.requires_grad] == [
        *("0.weight", "0.bias", "1.weight", "1.bias", "9.weight", "9.bias", "10.weight")
    ]
    assert {n for n, gradient in grads(model).items() if gradient is None} == {
        n for n, p in model.named_parameters() if not p.requires_grad
    }
    torchdfa.restore_(model)
    assert all(p.requires_grad for p in model.parameters())


def test_optimizer_built_before_conversion_goes_on() -> None:
    model = cases.make("vgg")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    grads(model)
    optimizer.step()
    torchdfa.convert_(model, "bdfa", init="product")
    weight = model.classifier[0].weight
    momentum = optimizer.state[weight]["momentum_buffer"].clone()
    before, gradient = weight.detach().clone(), grads(model)["classifier.0.weight"]
    optimizer.step()
    torch.testing.assert_close(weight, before - 0.1 * (0.9 * momentum + gradient))


def test_converting_twice_is_refused_and_changes_nothing() -> None:
    model = torchdfa.convert_(cases.make("vgg"), "dfa")
    with pytest.raises(ConversionError, match="restore_"):
        torchdfa.convert_(model, "bdfa")
    assert torchdfa.report(model).settings["rule"] == "dfa"


@pytest.mark.parametrize(
    "kwargs, sentence",
    [
        ({"rule": "ddfa"}, "rule='ddfa' must be one of 'bp', 'fa', 'dfa', 'bdfa', 'frozen'"),
        ({"init": "orthogonal"}, "init='orthogonal' must be one of 'random', 'product'"),
        ({"distribution": "cauchy"}, "distribution='cauchy'"),
        ({"scale": "large"}, "scale='large' must be a positive number or one of"),
        ({"scale": -1.0}, "scale=-1.0 must be a positive number"),
        ({"scale": float("nan")}, "scale=nan must be a positive number"),
        ({"scale": True}, "scale=True must be a positive number"),
        ({"boundary": "open"}, "boundary='open' must be one of 'direct', 'transpose'"),
        ({"boundary": "transpose", "layers": ["classifier.0"]}, "layers="),
        ({"seed": 0.5}, "seed=0.5 must be an integer"),
        ({"rule": "dfa", "layers": "all", "init": "product", "example_input": torch.zeros(1, 1, 8, 8)}, "Eq. 7"),
        ({"rule": "dfa", "layers": "all", "scale": "match", "example_input": torch.zeros(1, 1, 8, 8)}, 'scale="he"'),
    ],
)
def test_wrong_arguments_name_themselves_and_leave_the_model_alone(kwargs: dict[str, Any], sentence: str) -> None:
    model = cases.make("sequential") if kwargs.get("layers") == "all" else cases.make("vgg")
    text = str(model)
    with pytest.raises(ConversionError, match=sentence.replace("(", r"\(")):
        torchdfa.convert_(model, **{"rule": "bdfa", **kwargs})
    assert str(model) == text
    assert not hasattr(model, "_torchdfa")


def test_wrapped_models_are_refused() -> None:
    for wrapped in (torch.compile(cases.make("mlp"), backend="eager"), nn.DataParallel(cases.make("mlp"))):
        for model in (wrapped, nn.Sequential(wrapped)):
            with pytest.raises(ConversionError, match="convert what is inside"):
                torchdfa.convert_(model, "dfa")


def test_not_a_module() -> None:
    with pytest.raises(ConversionError, match=r"torch\.nn\.Module, found int"):
        torchdfa.convert_(3, "dfa")  # type: ignore[type-var]


def test_default_scales() -> None:
    """Product feedback is Eq. 7 itself; its signs have its norm; random feedback has He's variance."""
    product = torchdfa.convert_(cases.make("vgg"), "dfa", init="product").classifier[0].feedback.matrix
    signs = torchdfa.convert_(cases.make("vgg"), "bdfa", init="product").classifier[0].feedback
    torch.testing.assert_close(signs.dense().norm(), product.norm())
    assert torch.equal(signs.dense() > 0, product >= 0)
    random = torchdfa.convert_(cases.make("vgg"), "bdfa").classifier[0].feedback
    assert float(random.scale) == pytest.approx((2 / 36) ** 0.5)


def test_seed_decides_random_feedback_and_nothing_else_does() -> None:
    def bits(seed: int, torch_seed: int) -> torch.Tensor:
        model = cases.make("vgg")
        torch.manual_seed(torch_seed)
        return torchdfa.convert_(model, "bdfa", seed=seed).classifier[0].feedback.bits

    assert torch.equal(bits(1, 0), bits(1, 99))
    assert not torch.equal(bits(1, 0), bits(2, 0))


def test_conversion_does_not_touch_the_global_random_state() -> None:
    model = cases.make("vgg")
    state = torch.random.get_rng_state()
    torchdfa.convert_(model, "dfa", distribution="normal")
    assert torch.equal(torch.random.get_rng_state(), state)


def test_refresh_follows_the_present_weights_in_the_same_buffers() -> None:
    model = torchdfa.convert_(cases.make("vgg"), "bdfa", init="product")
    layers = [m for m in model.modules() if isinstance(m, FeedbackLinear)]
    pointers = [layer.feedback.bits.data_ptr() for layer in layers]
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-2)
    torchdfa.refresh_feedback_(model)
    fresh = torchdfa.convert_(torchdfa.restore_(copy.deepcopy(model)), "bdfa", init="product")
    for layer, other, pointer in zip(
        layers, (m for m in fresh.modules() if isinstance(m, FeedbackLinear)), pointers, strict=True
    ):
        assert layer.feedback.bits.data_ptr() == pointer
        assert torch.equal(layer.feedback.dense(), other.feedback.dense())
        assert torch.equal(layer.feedback.signs, other.feedback.signs)


def test_refresh_of_random_feedback_is_refused() -> None:
    with pytest.raises(ConversionError, match='init="product"'):
        torchdfa.refresh_feedback_(torchdfa.convert_(cases.make("vgg"), "bdfa"))


def test_zero_initialised_output_layer_is_refused_for_product_feedback() -> None:
    model = cases.make("vgg")
    nn.init.zeros_(model.classifier[5].weight)
    with pytest.raises(ConversionError, match="zero"):
        torchdfa.convert_(model, "bdfa", init="product")
    torchdfa.convert_(model, "bdfa")


def test_one_output_unit_warns() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    with pytest.warns(UserWarning, match="one output unit"):
        torchdfa.convert_(model, "dfa")


def test_feedback_is_state_and_no_parameter() -> None:
    model = torchdfa.convert_(cases.make("vgg"), "bdfa")
    names = [n for n in model.state_dict() if "feedback" in n]
    assert names == [f"classifier.{i}.feedback.{b}" for i in (0, 3, 5) for b in ("bits", "scale")]
    assert not [n for n, _ in model.named_parameters() if "feedback" in n]
    other = torchdfa.convert_(cases.make("vgg", seed=1), "bdfa", seed=5)
    other.load_state_dict(model.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(grads(model).values(), grads(other).values(), strict=True))


def test_two_branches_each_send_their_own_error() -> None:
    """The shared layer's error is the sum of both outputs' projections, as the rows of one matrix."""
    torch.manual_seed(0)
    model = torchdfa.convert_(cases.TwoBranch().double(), "dfa")
    x = cases.batch()[0].double()
    feedback = model.actor[0].feedback.matrix, model.critic.feedback.matrix, model.shared.feedback.matrix
    assert [tuple(f.shape) for f in feedback] == [(5, 16), (2, 16), (7, 144)]
    h = torch.tanh(model.shared(model.trunk(x)))
    e_actor, e_critic = torch.randn(6, 5, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    model.zero_grad()
    outputs = model(x)
    torch.autograd.backward(outputs, (e_actor, e_critic))
    e_shared = (e_actor @ feedback[0] + e_critic @ feedback[1]) * (1 - h**2)
    torch.testing.assert_close(model.shared.bias.grad, e_shared.sum(0), rtol=1e-13, atol=1e-13)
    (trunk_error,) = torch.autograd.grad(
        model.trunk(x), model.trunk[0].bias, torch.cat([e_actor, e_critic], 1) @ feedback[2]
    )
    torch.testing.assert_close(model.trunk[0].bias.grad, trunk_error, rtol=1e-13, atol=1e-13)
