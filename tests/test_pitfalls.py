"""Mistakes made in other implementations of feedback alignment, by number; each must be impossible here.

What takes a whole training program (19: last-epoch figures) is tested with it.
"""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cases
import gradients
import torchdfa
from torchdfa import ConversionError, convert_
from torchdfa.diagnostics import measure

RULES = ["fa", "dfa", "bdfa"]


def made(name: str, rule: str, **arguments: Any) -> nn.Module:
    return convert_(cases.make(name).double(), rule, **arguments)


def inputs(size: int = 6, seed: int = 0) -> tuple[Tensor, Tensor]:
    x, y = cases.batch(size, seed)
    return x.double(), y


def step_loss(model: nn.Module, size: int = 6, seed: int = 0) -> Tensor:
    x, y = inputs(size, seed)
    return F.cross_entropy(model(x), y)


def conv_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(96, 5)
    ).double()


@pytest.mark.parametrize("rule", [*RULES, "frozen"])
def test_01_loss_scaling_scales_every_gradient(rule: str) -> None:
    model = made("vgg", rule).eval()  # batch statistics would add rounding of their own
    plain = gradients.of(model, step_loss(model))
    gradients.assert_equal(gradients.of(model, step_loss(model) * 4096), gradients.scaled(plain, 4096))
    gradients.assert_close(gradients.of(model, step_loss(model) / 3), gradients.scaled(plain, 1 / 3))


@pytest.mark.parametrize("rule", RULES)
def test_01_an_auxiliary_loss_adds_its_gradient_everywhere(rule: str) -> None:
    model = made("vgg", rule)
    x, y = inputs()
    logits = model(x)
    both = gradients.of(model, F.cross_entropy(logits, y) + 0.3 * logits.square().mean())
    first = gradients.of(model, F.cross_entropy(model(x), y))
    second = gradients.of(model, 0.3 * model(x).square().mean())
    gradients.assert_close(both, gradients.added(first, second))


@pytest.mark.parametrize("rule", RULES)
def test_02_hidden_errors_are_divided_by_the_batch_size_like_all_others(rule: str) -> None:
    model = made("mlp", rule)
    x, y = inputs()
    once = gradients.of(model, F.cross_entropy(model(x), y))
    eightfold = gradients.of(model, F.cross_entropy(model(x.repeat(8, 1, 1, 1)), y.repeat(8)))
    gradients.assert_close(eightfold, once)


def test_03_conv_feedback_has_a_weight_for_each_place() -> None:
    model = convert_(conv_net(), "dfa", layers="all", example_input=inputs()[0])
    seen: dict[str, Tensor] = {}

    def watch(module: nn.Module, args: Any, output: Tensor) -> None:
        output.register_hook(lambda error: seen.update(error=error))

    model[1].register_forward_hook(watch)
    x, y = inputs()
    logits = model(x)
    logits.retain_grad()
    F.cross_entropy(logits, y).backward()
    matrix = model[2].feedback.matrix
    assert matrix.shape == (5, 4 * 6 * 6)
    torch.testing.assert_close(seen["error"], (logits.grad @ matrix).view(6, 4, 6, 6))
    assert seen["error"].flatten(2).std(-1).min() > 0  # not one error for a whole channel


def test_04_a_skip_connection_does_not_add_errors_up() -> None:
    x = cases.batch()[0]
    with pytest.raises(ConversionError, match="skip connection"):
        convert_(cases.make("residual"), "dfa", layers="all", example_input=x)


def test_04_the_trunk_of_a_residual_network_gets_one_projection_of_the_error() -> None:
    model = made("residual", "dfa")
    features: list[Tensor] = []
    model.head[0].register_forward_hook(lambda m, i, output: features.append(output))
    x, y = inputs()
    logits = model(x)
    logits.retain_grad()
    found = gradients.of(model, F.cross_entropy(logits, y))
    model(x)
    trunk = [model.stem.weight, model.a.weight, model.b.weight]
    expected = torch.autograd.grad(features[1], trunk, logits.grad @ model.head[1].feedback.matrix)
    for name, gradient in zip(("stem", "a", "b"), expected, strict=True):
        torch.testing.assert_close(found[f"{name}.weight"], gradient)


@pytest.mark.parametrize("rule", [*RULES, "frozen"])
def test_05_the_optimizer_holds_the_weights_that_forward_uses(rule: str) -> None:
    model = cases.make("handwritten")
    before = {name: (id(p), p.detach().clone()) for name, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    convert_(model, rule)
    for step in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(cases.batch(seed=step)[0]), cases.batch(seed=step)[1]).backward()
        optimizer.step()
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for name, p in model.named_parameters():
        frozen = rule == "frozen" and name.startswith("fc1")
        assert id(p) == before[name][0]
        assert id(p) in held
        assert torch.equal(p, before[name][1]) == frozen, name


@pytest.mark.parametrize("rule", RULES)
def test_06_a_resumed_run_has_the_same_feedback(rule: str) -> None:
    first, second = made("vgg", rule, seed=1), made("vgg", rule, seed=2)
    assert any(not torch.equal(a, b) for a, b in zip(first.buffers(), second.buffers(), strict=True))
    second.load_state_dict(first.state_dict())
    gradients.assert_equal(gradients.of(second, step_loss(second)), gradients.of(first, step_loss(first)))


@pytest.mark.parametrize("rule", RULES)
def test_06_feedback_is_never_trained_decayed_or_counted(rule: str) -> None:
    model = made("vgg", rule)
    plain = cases.make("vgg")
    assert sum(p.numel() for p in model.parameters()) == sum(p.numel() for p in plain.parameters())
    feedback = {n: b.clone() for n, b in model.named_buffers() if "feedback" in n}
    assert feedback
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.5)
    for _ in range(3):
        gradients.of(model, step_loss(model))
        optimizer.step()
    for name, before in feedback.items():
        assert torch.equal(model.get_buffer(name), before)


def test_06_feedback_moves_with_the_model() -> None:
    model = convert_(cases.make("vgg"), "dfa").to(torch.float64)
    assert model.classifier[3].feedback.matrix.dtype == torch.float64
    assert all(b.is_meta for b in copy.deepcopy(model).to("meta").buffers())


def test_07_feedback_does_not_depend_on_the_state_of_a_rank() -> None:
    """Feedback comes from the named seed alone; two real processes are compared in integration/test_ddp.py."""
    states = []
    for rank in range(2):
        model = cases.make("vgg")
        torch.manual_seed(100 + rank)
        torch.randn(rank + 1)
        convert_(model, "dfa", seed=7)
        states.append({n: b for n, b in model.named_buffers() if "feedback" in n})
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


@pytest.mark.parametrize("rule", RULES)
def test_08_deepcopy_after_a_step_shares_nothing(rule: str) -> None:
    model = made("vgg", rule)
    gradients.of(model, step_loss(model))
    kept_alive = step_loss(model)  # a graph is pending while the copy is made
    twin = copy.deepcopy(model)
    pointers = {t.data_ptr() for t in (*model.parameters(), *model.buffers()) if t.numel()}
    assert not any(t.data_ptr() in pointers for t in (*twin.parameters(), *twin.buffers()) if t.numel())
    gradients.assert_equal(gradients.of(twin, step_loss(twin)), gradients.of(model, step_loss(model)))
    gradients.of(model, kept_alive)


@pytest.mark.parametrize("rule", RULES)
def test_09_true_input_gradients_are_one_context_away(rule: str) -> None:
    plain = cases.make("mlp").double().eval()
    model = made("mlp", rule).eval()
    x, y = inputs()
    x.requires_grad_()
    (true,) = torch.autograd.grad(F.cross_entropy(plain(x), y), x)
    (ours,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    assert not torch.allclose(ours, true)
    with torchdfa.backprop(model):
        (ours,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    assert torch.equal(ours, true)


@pytest.mark.parametrize("rule", ["dfa", "bdfa"])
def test_10_the_scale_of_a_layer_is_its_own(rule: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4096), nn.ReLU(), nn.Linear(4096, 32), nn.ReLU(), nn.Linear(32, 5))
    convert_(model, rule)
    for layer, units in ((2, 4096), (4, 32)):
        rms = model[layer].feedback.dense().square().mean().sqrt()
        torch.testing.assert_close(rms, torch.tensor((2 / units) ** 0.5), rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layers", ["head", "all"])
def test_11_any_batch_size_follows_any_other(rule: str, layers: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), *cases.mlp()[1:])
    convert_(model.double(), rule, layers=layers, example_input=inputs()[0])
    whole = gradients.of(model, F.cross_entropy(model(inputs(7)[0]), inputs(7)[1], reduction="sum"))
    model.zero_grad()
    x, y = inputs(7)
    for part in (slice(0, 4), slice(4, 6), slice(6, 7), slice(7, 7)):  # the last is empty
        F.cross_entropy(model(x[part]), y[part], reduction="sum").backward()
    gradients.assert_close(gradients.present(model), whole)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("bias", [True, False])
def test_12_three_dimensional_input_is_rows_like_any_other(rule: str, bias: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 8, bias=bias),
        nn.ReLU(inplace=True),
        nn.Linear(8, 7, bias=bias),
        nn.ReLU(),
        nn.Linear(7, 3, bias=bias),
    )
    convert_(model.double(), rule)
    x = torch.randn(2, 5, 6, dtype=torch.float64)
    flat = gradients.of(model, model(x.flatten(0, 1)).square().sum())
    gradients.assert_close(gradients.of(model, model(x).square().sum()), flat)


def test_12_grouped_and_depthwise_convolutions() -> None:
    def build() -> nn.Sequential:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Tanh(),
            nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, dilation=1), nn.Tanh(), nn.Flatten(), nn.Linear(24, 5),
        ).double()  # fmt: skip

    x, y = inputs()
    plain = build()
    true = gradients.of(plain, F.cross_entropy(plain(x), y))
    chained = convert_(build(), "fa", layers="all", init="product", example_input=x)
    gradients.assert_close(gradients.of(chained, F.cross_entropy(chained(x), y)), true)
    direct = convert_(build(), "dfa", layers="all", example_input=x)
    found = gradients.of(direct, F.cross_entropy(direct(x), y))
    gradients.assert_equal({"7": found["7.weight"]}, {"7": true["7.weight"]})
    assert all(found[name] is not None and bool(torch.isfinite(found[name]).all()) for name in true)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # torch's own, as it compiles
@pytest.mark.parametrize("rule", RULES)
def test_13_autocast_scaler_and_compile(rule: str) -> None:
    """Each alone has a file in integration/; here they work together."""
    model = convert_(cases.make("mlp"), rule)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x, y = cases.batch()
    losses = []
    for forward in (compiled, model):
        with torch.autocast("cpu", torch.bfloat16):
            losses.append(F.cross_entropy(forward(x), y))
    scaler.scale(losses[0]).backward()
    scaler.unscale_(optimizer)
    found = gradients.present(model)
    gradients.assert_close(found, gradients.of(model, losses[1]), rtol=1e-3, atol=1e-4)


def test_14_errors_do_not_leak_between_models() -> None:
    first, second = made("mlp", "dfa", seed=1), made("mlp", "dfa", seed=2)
    x, y = inputs()
    alone = [gradients.of(m, F.cross_entropy(m(x), y)) for m in (first, second)]
    interleaved: list[Tensor] = []
    first[3].register_forward_hook(lambda *_: interleaved.append(second(x)))  # within the other's forward
    logits = first(x)
    gradients.assert_equal(gradients.of(second, F.cross_entropy(interleaved[0], y)), alone[1])
    gradients.assert_equal(gradients.of(first, F.cross_entropy(logits, y)), alone[0])


def test_14_a_layer_that_is_called_twice_is_refused() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(torch.relu(self.b(torch.relu(self.a(x))))))

    class TwiceOnData(Twice):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(-x if x.sum() > 0 else x)

    for model in (Twice(), TwiceOnData()):
        with pytest.raises(ConversionError, match="'b' is called 2 times"):
            convert_(model, "dfa", layers=["b", "c"], example_input=torch.zeros(1, 4))
        with pytest.raises(ConversionError, match="'b' is called 2 times"):
            convert_(model, "dfa", example_input=torch.zeros(1, 4))


class ActorCritic(nn.Module):
    """A body, two outputs, and what may lie between the body and the second of them."""

    def __init__(self, between: Callable[[Tensor], Tensor] = lambda h: h) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.between = between
        self.body, self.hidden = nn.Linear(6, 8), nn.Linear(8, 8)
        self.actor, self.critic = nn.Linear(8, 5), nn.Linear(8, 2)

    def features(self, x: Tensor) -> Tensor:
        return torch.relu(self.hidden(torch.relu(self.body(x))))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.features(x)
        return self.actor(h), self.critic(self.between(h))


def detached(h: Tensor) -> Tensor:
    return h.detach()


def no_grad_copy(h: Tensor) -> Tensor:
    with torch.no_grad():
        return h * 1


ROWS, OTHER_ROWS = torch.randn(2, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("stop", [detached, no_grad_copy])
@pytest.mark.parametrize("rule", [*RULES, "bp"])
def test_14_an_error_goes_no_further_than_the_model_lets_it(rule: str, stop: Any, late: bool) -> None:
    """Whether the stop is there when the model is converted or comes later: the value's loss trains the value alone."""
    model = ActorCritic(between=(lambda h: h) if late else stop).double()
    convert_(model, rule)
    model.between = stop
    actor, critic = model(ROWS)
    found = gradients.of(model, actor.square().sum() + critic.square().sum())
    alone = gradients.of(model, model(ROWS)[0].square().sum())
    gradients.assert_equal({n: g for n, g in found.items() if "critic" not in n},
                           {n: g for n, g in alone.items() if "critic" not in n})  # fmt: skip
    value = gradients.of(model, model(ROWS)[1].square().sum())
    assert {n for n, g in value.items() if g is not None} == {"critic.weight", "critic.bias"}


def test_14_an_output_on_stored_features_trains_nothing_before_them() -> None:
    model = convert_(ActorCritic().double(), "dfa")
    model.actor(model.features(ROWS))  # what the critic would send to waits
    with torch.no_grad():
        stored = model.features(OTHER_ROWS)
    for features in (stored, stored.clone().requires_grad_()):
        found = gradients.of(model, model.critic(features).square().sum())
        assert {n for n, g in found.items() if g is not None} == {"critic.weight", "critic.bias"}


@pytest.mark.parametrize("rule", ["dfa", "bdfa"])
def test_14_parts_called_in_turn_do_not_mix_up_batches(rule: str) -> None:
    model = convert_(ActorCritic().double(), rule)
    first, second = model.features(ROWS), model.features(OTHER_ROWS)
    with pytest.raises(ConversionError, match=r"latest call of the layers before it .*'hidden'.* another batch"):
        model.actor(torch.tanh(first))
    whole = gradients.of(model, model(OTHER_ROWS)[0].square().sum())
    second = model.features(OTHER_ROWS)
    gradients.assert_equal(gradients.of(model, model.actor(second).square().sum()), whole)


def test_14_parts_called_in_turn_with_feedback_to_every_layer() -> None:
    model = convert_(conv_net(), "dfa", layers="all", example_input=inputs()[0])
    first, _ = model[:5](inputs(seed=1)[0]), model[:5](inputs(seed=2)[0])
    with pytest.raises(ConversionError, match=r"layer '5' reads .*'2'.* another batch"):
        model[5](first)


@pytest.mark.parametrize(
    "move",
    [
        lambda h: h.transpose(0, 1), lambda h: torch.transpose(h, 0, 1).contiguous(), lambda h: h.permute(1, 0, 2),
        lambda h: h.flip(0), lambda h: torch.roll(h, 1, 0), lambda h: h.mT.mT, lambda h: h.swapaxes(0, 1),
        lambda h: torch.einsum("btk->tbk", h), lambda h: h.movedim(0, 1),
    ],
)  # fmt: skip
def test_14_no_row_gets_the_error_of_another(move: Callable[[Tensor], Tensor]) -> None:
    """Where rows change their places between two layers, the chain ends: feedback lands after that."""

    class Moved(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.second(move(torch.relu(self.first(x))))))

    model = convert_(Moved().double(), "dfa")
    assert model._torchdfa.plan.chains == (("second", "last"),)


@pytest.mark.parametrize("rule", RULES)
def test_15_nothing_is_held_after_backward(rule: str) -> None:
    """Weak references to every activation are followed in integration/test_memory.py."""
    model = made("vgg", rule)
    gradients.of(model, step_loss(model))
    assert model._torchdfa.bus.taps == {}
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in model.modules())


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross-entropy": F.cross_entropy,
    "mse": lambda out, y: F.mse_loss(out, F.one_hot(y, 5).double()),
    "binary": lambda out, y: F.binary_cross_entropy_with_logits(out, F.one_hot(y, 5).double()),
    "margin": F.multi_margin_loss,
}


def by_hand(model: nn.Sequential, x: Tensor, error_of: Callable[[Tensor], Tensor]) -> dict[str, Tensor]:
    """Eq. 6 for (Linear, activation)* Linear: autograd gives f' element by element, all else is written out."""
    inputs_of, derivatives, h = {}, {}, x
    for index, layer in enumerate(model):
        if isinstance(layer, nn.Linear):
            inputs_of[index] = h
            h = h @ layer.weight.T + layer.bias
        else:
            pre = h.detach().requires_grad_()
            after = layer(pre.clone())
            (derivatives[index],) = torch.autograd.grad(after.sum(), pre)
            h = after.detach()
    e_out = error_of(h)
    found = {}
    for index, o in inputs_of.items():
        last = index == len(model) - 1
        e = e_out if last else e_out @ model[index + 2].feedback.matrix * derivatives[index + 1]
        found[f"{index}.weight"], found[f"{index}.bias"] = e.T @ o, e.sum(0)
    return found


@pytest.mark.parametrize("loss", list(LOSSES))
@pytest.mark.parametrize("activation", [nn.Sigmoid(), nn.GELU(), nn.Softplus(), nn.ELU(inplace=True), nn.Hardtanh()])
def test_16_any_activation_and_any_loss(activation: nn.Module, loss: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 9), activation, nn.Linear(9, 8), activation, nn.Linear(8, 5)).double()
    convert_(model, "dfa")
    x, y = torch.randn(7, 6, dtype=torch.float64), torch.arange(7) % 5
    found = gradients.of(model, LOSSES[loss](model(x), y))

    def error_of(out: Tensor) -> Tensor:
        out = out.detach().requires_grad_()
        return torch.autograd.grad(LOSSES[loss](out, y), out)[0]

    gradients.assert_close(found, by_hand(copy.deepcopy(model).requires_grad_(False), x, error_of))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", list(cases.MODELS))
def test_17_the_report_says_which_layers_run_exact_backprop_and_no_others_do(name: str, rule: str) -> None:
    plain, model = cases.make(name).double(), made(name, rule, example_input=inputs()[0])
    true, found = gradients.of(plain, step_loss(plain)), gradients.of(model, step_loss(model))
    rows = torchdfa.report(model).rows
    assert {row.rule for row in rows} <= {"bp", rule}
    for row in rows:
        exact = row.error_from in ("the loss", "live weights")
        layers = [n for n in true if n.startswith(f"{row.layer}.")] if "before" not in row.layer else before(model)
        assert layers
        for weight in layers:
            assert torch.equal(found[weight], true[weight]) == exact, (weight, row)


def before(model: nn.Module) -> list[str]:
    """The weights of convolutions, which all lie before the head here."""
    return [f"{n}.weight" for n, m in model.named_modules() if isinstance(m, nn.Conv2d)]


def test_18_alignment_is_that_of_the_matrix_in_use() -> None:
    model = made("mlp", "dfa", init="product")
    x, y = inputs()
    loss = lambda: F.cross_entropy(model(x), y)  # noqa: E731
    assert measure(model, loss).feedback["3"].cosine == pytest.approx(1)
    before = gradients.of(model, loss())
    model[3].feedback.matrix.neg_()
    assert measure(model, loss).feedback["3"].cosine == pytest.approx(-1)
    assert measure(model, loss).feedback["3"].sign_agreement == 0
    assert torch.equal(gradients.of(model, loss())["1.weight"], -before["1.weight"])


def test_19a_frozen_layers_have_no_gradient_and_no_optimizer_moves_them() -> None:
    model = cases.make("vgg")
    gradients.of(model, F.cross_entropy(model(cases.batch()[0]), cases.batch()[1]))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    convert_(model, "frozen")
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    assert set(frozen) == {f"classifier.{i}.{kind}" for i in (0, 3) for kind in ("weight", "bias")}
    for set_to_none in (True, False):
        optimizer.zero_grad(set_to_none)
        F.cross_entropy(model(cases.batch()[0]), cases.batch()[1]).backward()
        optimizer.step()
    for name, before in frozen.items():
        assert model.get_parameter(name).grad is None
        assert torch.equal(model.get_parameter(name), before)


def test_19c_no_angle_to_a_gradient_that_vanishes() -> None:
    model = made("mlp", "dfa")
    x, _ = inputs()
    found = measure(model, lambda: model(x).sum() * 1e-12)
    for angle in found.updates.values():
        assert angle.degrees is None
        assert angle.reason is not None
        assert "vanishes" in angle.reason


def test_19d_the_sign_of_zero_is_plus_one() -> None:
    model = cases.make("mlp").double()
    with torch.no_grad():
        model[5].weight[:, ::2] = 0  # as pruning leaves it
    convert_(model, "bdfa", init="product", scale="unit")
    signs = model[5].feedback.dense()
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    assert (signs[:, ::2] == 1).all()


def test_19e_a_layer_inside_a_residual_branch_is_not_cut_alone() -> None:
    class OnData(cases.Residual):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(-x if x.sum() > 0 else x)

    x = cases.batch()[0]
    for model in (cases.Residual(), OnData()):  # seen in the trace, and in a forward where there is no trace
        for name in ("a", "b"):
            with pytest.raises(ConversionError, match=f"skip connection leads around '{name}'"):
                convert_(model, "dfa", layers=[name], example_input=x)


def test_19f_one_output_unit_warns() -> None:
    with pytest.warns(UserWarning, match="one output unit"):
        convert_(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)), "dfa")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        convert_(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), "dfa")


def test_20_input_gradients_that_the_rule_does_not_need_are_not_computed() -> None:
    """All products of a backward are counted in integration/test_cost.py; here, that none has hidden x hidden size."""
    from torch.utils.flop_counter import FlopCounterMode

    torch.manual_seed(0)
    model = convert_(nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4)), "dfa")
    loss = model(torch.randn(8, 32)).square().mean()
    with FlopCounterMode(display=False) as counter:
        loss.backward()
    weights = 2 * 8 * (32 * 64 + 64 * 64 + 64 * 4)
    assert counter.get_total_flops() == weights + 2 * (2 * 8 * 4 * 64)  # the gradients, and e D for two layers


@pytest.mark.parametrize("rule", RULES)
def test_21_one_forward_and_one_loss_a_step(rule: str) -> None:
    model = made("vgg", rule)
    calls: list[str] = []
    for name, module in model.named_modules():
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    criterion = nn.CrossEntropyLoss()
    criterion.register_forward_hook(lambda *_: calls.append("loss"))
    x, y = inputs()
    criterion(model(x), y).backward()
    assert sorted(calls) == sorted({*calls})
    assert "loss" in calls


def test_21_diagnostics_need_no_twin_of_the_model() -> None:
    model = made("vgg", "dfa")
    calls = []

    def loss() -> Tensor:
        calls.append(1)
        return step_loss(model)

    measure(model, loss)
    assert len(calls) == 2  # by the rule and by back-propagation, on the same weights
    assert "deepcopy" not in inspect.getsource(torchdfa.diagnostics)


@pytest.mark.parametrize("rule", RULES)
def test_22_no_printing_and_no_feedback_moved_in_a_step(rule: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = made("vgg", rule)
    places = {name: b.data_ptr() for name, b in model.named_buffers() if "feedback" in name}
    gradients.of(model, step_loss(model))
    assert {name: b.data_ptr() for name, b in model.named_buffers() if "feedback" in name} == places
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "rule, init, scale, low, high",
    [
        ("dfa", "product", None, 1, 3),  # Eq. 7
        ("bdfa", "product", "unit", 12, 22),  # Eq. 9 as written: sqrt(n / 2) too large
        ("bdfa", "product", None, 1, 3),
        ("bdfa", "random", "unit", 12, 22),
        ("bdfa", "random", None, 0.5, 2),
        ("dfa", "random", None, 0.5, 2),
    ],
)
def test_scale_of_the_error_at_the_convolutions(rule: str, init: Any, scale: Any, low: float, high: float) -> None:
    """By default near back-propagation's; raw signs are 16 times too large at width 512, and not hidden."""
    torch.manual_seed(0)
    layers = [nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)]
    model = nn.Sequential(nn.Linear(64, 512), nn.ReLU(), nn.Sequential(*layers))
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    convert_(model, rule, head="2", init=init, scale=scale)
    x, y = torch.randn(64, 64), torch.arange(64) % 10
    ratio = measure(model, lambda: F.cross_entropy(model(x), y)).boundary["2.0"].norm_ratio
    assert ratio is not None
    assert low < ratio < high
