from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import cases
import torchdfa
from torchdfa.diagnostics import measure


def closure(model: nn.Module):
    x, y = cases.batch()
    return lambda: nn.functional.cross_entropy(model(x), y)


@pytest.mark.parametrize("rule", ["bp", "frozen"])
def test_exact_rules_have_no_angle(rule: str) -> None:
    model = torchdfa.convert_(cases.make("vgg"), rule)
    found = measure(model, closure(model))
    assert all(
        a.degrees == pytest.approx(0, abs=1e-5) and a.norm_ratio == pytest.approx(1) for a in found.updates.values()
    )
    assert ("classifier.0" in found.updates) == (rule == "bp")
    assert found.feedback == {}


def test_angle_alignment_and_boundary_are_those_of_the_gradients() -> None:
    model = cases.make("vgg").double()
    loss = closure(model)
    x, y = cases.batch()
    fn = lambda: nn.functional.cross_entropy(model(x.double()), y)  # noqa: E731
    del loss
    fn().backward()
    true = {n: p.grad.clone() for n, p in model.named_parameters()}
    torchdfa.convert_(model, "bdfa", init="product", scale="unit")
    model.zero_grad()
    fn().backward()
    found = measure(model, fn)
    for name in ("features.0", "classifier.0", "classifier.3", "classifier.5"):
        a, b = model.get_parameter(f"{name}.weight").grad.flatten(), true[f"{name}.weight"].flatten()
        cosine = float(a @ b / (a.norm() * b.norm()))
        assert found.updates[name].degrees == pytest.approx(math.degrees(math.acos(min(1.0, cosine))), abs=1e-5)
        assert found.updates[name].norm_ratio == pytest.approx(float(a.norm() / b.norm()))
    product = (model.classifier[5].weight @ model.classifier[3].weight).detach().flatten()
    signs = model.classifier[3].feedback.dense().double().flatten()
    assert found.feedback["classifier.3"].cosine == pytest.approx(
        float(signs @ product / (signs.norm() * product.norm())), rel=1e-6
    )
    assert found.feedback["classifier.3"].sign_agreement == 1.0
    assert found.boundary["classifier.0"].norm_ratio > 3  # raw signs are much larger than the weights' product
    json.dumps(found.to_dict())
    assert "classifier.3" in str(found)


def test_alignment_is_measured_against_the_present_weights() -> None:
    model = torchdfa.convert_(cases.make("vgg"), "dfa", init="product")
    assert measure(model, closure(model)).feedback["classifier.0"].cosine == pytest.approx(1, abs=1e-6)
    with torch.no_grad():
        model.classifier[3].weight.neg_()
    after = measure(model, closure(model)).feedback["classifier.0"]
    assert after.cosine == pytest.approx(-1, abs=1e-6)
    assert after.sign_agreement == 0.0


def test_measuring_changes_nothing() -> None:
    model = torchdfa.convert_(cases.make("vgg"), "bdfa")
    model.classifier[2].p = 0.5
    x, y = cases.batch()
    nn.functional.cross_entropy(model(x), y).backward()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    grads = [p.grad.clone() for p in model.parameters()]
    random_state = torch.random.get_rng_state()
    measure(model, closure(model))
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), grads, strict=True))
    assert torch.equal(torch.random.get_rng_state(), random_state)


def test_no_figure_where_the_true_gradient_vanishes() -> None:
    model = torchdfa.convert_(cases.make("vgg"), "dfa")
    with torch.no_grad():
        model.classifier[5].weight.mul_(1e-9)
    found = measure(model, closure(model))
    assert found.updates["classifier.0"].degrees is None
    assert "vanishes" in found.updates["classifier.0"].reason
    assert found.feedback["classifier.0"].cosine is None
    assert found.updates["classifier.5"].degrees is not None


def test_weights_that_are_made_in_every_forward_say_so() -> None:
    model = cases.make("vgg")
    prune.l1_unstructured(model.classifier[3], "weight", 0.5)
    nn.utils.parametrizations.weight_norm(model.features[0])
    torchdfa.convert_(model, "dfa")
    model(cases.batch()[0])
    found = measure(model, closure(model)).updates
    assert list(found) == ["features.0", "classifier.0", "classifier.3", "classifier.5"]
    for name in ("features.0", "classifier.3"):
        assert found[name].degrees is None
        assert "made anew in every forward" in found[name].reason
    assert found["classifier.0"].degrees is not None


def test_unused_layers_say_so() -> None:
    model = torchdfa.convert_(cases.TwoBranch(), "dfa")
    x, y = cases.batch()
    found = measure(model, lambda: nn.functional.cross_entropy(model(x)[0], y))
    assert found.updates["critic"].reason == "no gradient reaches this layer"
    assert found.updates["actor.0"].degrees is not None
