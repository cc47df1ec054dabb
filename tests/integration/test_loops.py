"""What users do between forward and backward: the gradients are those that linearity of the rules demands."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import cases
import gradients
import torchdfa
from torchdfa import convert_

RULES = ["fa", "dfa", "bdfa", "frozen"]


def made(name: str, rule: str, **arguments: Any) -> nn.Module:
    """In evaluation mode, so that batch statistics do not tie the rows of a batch to each other."""
    return convert_(cases.make(name).double(), rule, **arguments).eval()


def batch(seed: int = 0, size: int = 6) -> tuple[Tensor, Tensor]:
    x, y = cases.batch(size, seed)
    return x.double(), y


def loss_of(model: nn.Module, seed: int = 0, size: int = 6) -> Tensor:
    x, y = batch(seed, size)
    return F.cross_entropy(model(x), y)


@pytest.fixture(params=RULES)
def rule(request: pytest.FixtureRequest) -> str:
    return request.param


def test_gradient_accumulation(rule: str) -> None:
    model = made("vgg", rule)
    x, y = batch(size=12)
    whole = gradients.of(model, F.cross_entropy(model(x), y))
    model.zero_grad()
    for part in range(3):
        rows = slice(4 * part, 4 * part + 4)
        (F.cross_entropy(model(x[rows]), y[rows]) / 3).backward()
    gradients.assert_close(gradients.present(model), whole)


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_several_forwards_then_their_backwards_in_any_order(rule: str, order: tuple[int, ...]) -> None:
    model = made("vgg", rule)
    alone = [gradients.of(model, loss_of(model, seed, size)) for seed, size in enumerate((6, 3, 1))]
    losses = [loss_of(model, seed, size) for seed, size in enumerate((6, 3, 1))]
    for index in order:
        gradients.assert_equal(gradients.of(model, losses[index]), alone[index])


def test_several_forwards_and_one_backward(rule: str) -> None:
    model = made("vgg", rule)
    expected = gradients.added(gradients.of(model, loss_of(model, 0)), gradients.of(model, loss_of(model, 1, 3)))
    gradients.assert_close(gradients.of(model, loss_of(model, 0) + loss_of(model, 1, 3)), expected)


def test_a_pass_without_gradients_between_two_forwards(rule: str) -> None:
    """Hard-negative mining scores candidates between the forwards of one step."""
    model = made("vgg", rule)
    expected = gradients.of(model, loss_of(model, 0) + loss_of(model, 1))
    first = loss_of(model, 0)
    with torch.no_grad():
        model(batch(5, 9)[0])
    with torch.inference_mode():
        model(batch(6, 2)[0])
    gradients.assert_equal(gradients.of(model, first + loss_of(model, 1)), expected)


def test_a_pass_without_gradients_inside_a_forward(rule: str) -> None:
    """Within the head, between the layer that reads and the layer that sends."""
    model = made("vgg", rule)
    expected = gradients.of(model, loss_of(model))

    def score(module: nn.Module, args: Any, output: Tensor) -> None:
        if torch.is_grad_enabled():
            with torch.no_grad():
                model(batch(5, 9)[0])

    model.classifier[3].register_forward_hook(score)
    gradients.assert_equal(gradients.of(model, loss_of(model)), expected)


def test_two_losses_on_one_output(rule: str) -> None:
    model = made("vgg", rule)
    x, y = batch()
    logits = model(x)
    first, second = F.cross_entropy(logits, y), logits.square().mean()
    model.zero_grad()
    first.backward(retain_graph=True)
    second.backward()
    apart = gradients.present(model)
    logits = model(x)
    together = gradients.of(model, F.cross_entropy(logits, y) + logits.square().mean())
    gradients.assert_close(apart, together)


def test_retained_graph_gives_the_same_gradients_twice(rule: str) -> None:
    model = made("vgg", rule)
    loss = loss_of(model)
    model.zero_grad()
    loss.backward(retain_graph=True)
    first = gradients.present(model)
    gradients.assert_equal(gradients.of(model, loss), first)
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_a_backward_through_a_part_of_the_batch(rule: str) -> None:
    model = made("vgg", rule)
    x, y = batch()
    expected = gradients.of(model, F.cross_entropy(model(x[:2]), y[:2]))
    gradients.assert_close(gradients.of(model, F.cross_entropy(model(x)[:2], y[:2])), expected)


def test_a_loss_on_hidden_features_trains_what_made_them_locally() -> None:
    """Features returned beside the logits: their loss reaches the layer that made them; no feedback carries it on."""

    class Features(cases.Handwritten):
        def forward(self, x: Tensor) -> Any:
            h = torch.relu(self.fc1(torch.relu(self.conv(x)).flatten(1)))
            return self.fc2(h), h

    torch.manual_seed(0)
    model = convert_(Features().double(), "dfa")
    logits, h = model(batch()[0])
    found = gradients.of(model, h.square().mean())
    assert {name for name, g in found.items() if g is not None} == {"fc1.weight", "fc1.bias"}
    torchdfa.restore_(model)
    true = gradients.of(model, model(batch()[0])[1].square().mean())
    assert torch.equal(found["fc1.weight"], true["fc1.weight"])
    assert logits.shape == (6, 5)


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
@pytest.mark.parametrize("options", [{"foreach": True}, {"foreach": False}, {"fused": True}, {"maximize": True}])
def test_optimizers(name: str, options: dict[str, bool]) -> None:
    """The loss falls on a fixed batch, and the feedback stays."""
    if name == "RMSprop" and "fused" in options:
        pytest.skip("torch has no fused RMSprop")
    model = made("mlp", "bdfa", init="product")
    optimizer = getattr(torch.optim, name)(model.parameters(), 0.01, **options)
    sign = -1 if "maximize" in options else 1
    losses = []
    for _ in range(8):
        loss = loss_of(model)
        losses.append(float(loss.detach()))
        optimizer.zero_grad()
        (sign * loss).backward()
        optimizer.step()
    assert losses[-1] < losses[0]


def test_hooks_see_the_rules_errors() -> None:
    """Tensor hooks, full backward hooks and hooks on Parameters all run, once each."""
    model = made("mlp", "dfa")
    seen: dict[str, Tensor] = {}
    calls: list[str] = []

    def note(name: str, error: Tensor) -> None:
        seen[name] = error
        calls.append(name)

    def watch(module: nn.Module, args: Any, output: Tensor) -> None:
        output.register_hook(lambda error: note("hidden", error))

    model[2].register_forward_hook(watch)
    model[3].register_full_backward_hook(lambda m, into, out: note("input", into[0]))
    model[1].weight.register_hook(lambda g: note("weight", g))
    model[1].weight.register_post_accumulate_grad_hook(lambda p: calls.append("accumulated"))
    x, y = batch()
    logits = model(x)
    logits.retain_grad()
    F.cross_entropy(logits, y).backward()
    assert sorted(calls) == ["accumulated", "hidden", "input", "weight"]
    expected = logits.grad @ model[3].feedback.matrix
    torch.testing.assert_close(seen["hidden"], expected)
    torch.testing.assert_close(seen["input"], expected)


def test_gradient_clipping(rule: str) -> None:
    model = made("vgg", rule)
    plain = gradients.of(model, loss_of(model))
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.01)
    total = torch.stack([g.norm() for g in plain.values() if g is not None]).norm()
    torch.testing.assert_close(norm, total)
    gradients.assert_close(gradients.present(model), gradients.scaled(plain, float(0.01 / (total + 1e-6))))


def test_gradient_of_a_gradient(rule: str) -> None:
    """A penalty on the input gradient (of the rule) can be trained: the feedback is a constant in it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    convert_(model, rule)
    x = torch.randn(4, 6, dtype=torch.float64, requires_grad=True)
    (penalty,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    found = gradients.of(model, penalty.square().sum())
    assert found["0.weight"] is not None or rule == "frozen"
    assert found["4.weight"] is not None


def trunk_and_head(model: nn.Module, x: Tensor, part: str, reentrant: bool) -> Tensor:
    again = {"use_reentrant": reentrant}
    if part == "model":
        return checkpoint(model, x, **again)
    if part == "trunk":
        return model.classifier(checkpoint(model.features, x, **again).flatten(1))
    return checkpoint(model.classifier, model.features(x).flatten(1), **again)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("part", ["model", "trunk", "head"])
def test_activation_checkpointing_around_the_trunk_or_the_whole_head(rule: str, part: str, reentrant: bool) -> None:
    model = made("vgg", rule)
    expected = gradients.of(model, loss_of(model))
    x, y = batch()
    x.requires_grad_()  # as reentrant checkpointing demands
    loss = F.cross_entropy(trunk_and_head(model, x, part, reentrant), y)
    gradients.assert_equal(gradients.of(model, loss), expected)
    gradients.assert_equal(gradients.of(model, loss_of(model)), expected)  # nothing stale is left behind


def test_activation_checkpointing_inside_the_head_works_without_reentry(rule: str) -> None:
    """Reentrant checkpointing of a part of the head is not supported: that part runs where nothing sends to it."""
    model = made("vgg", rule)
    expected = gradients.of(model, loss_of(model))
    x, y = batch()
    head = model.classifier
    for cut in (2, 3, 5):  # no activation in place at the seam, which checkpointing forbids
        first = checkpoint(head[:cut], model.features(x).flatten(1), use_reentrant=False)
        gradients.assert_equal(gradients.of(model, F.cross_entropy(head[cut:](first), y)), expected)
        second = checkpoint(head[cut:], head[:cut](model.features(x).flatten(1)), use_reentrant=False)
        gradients.assert_equal(gradients.of(model, F.cross_entropy(second, y)), expected)


def test_torch_func_gives_the_rules_gradients(rule: str) -> None:
    model = made("mlp", rule)
    x, y = batch()
    expected = gradients.of(model, loss_of(model))
    learning = {n: p for n, p in model.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(model, parameters, (x,)), y)

    found = torch.func.grad(loss)(learning, x, y)
    gradients.assert_close(found, {n: expected[n] for n in learning})
    per_sample = torch.func.vmap(torch.func.grad(lambda p, x, y: loss(p, x[None], y[None])), (None, 0, 0))
    means = {n: g.mean(0) for n, g in per_sample(learning, x, y).items()}
    gradients.assert_close(means, {n: expected[n] for n in learning})
