"""Copies, averages, pickles and files of converted models; each goes on learning by the rule on its own."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

import cases
import gradients
import torchdfa
from torchdfa import convert_

RULES = ["fa", "dfa", "bdfa", "frozen"]


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    x, y = cases.batch(seed=seed)
    return F.cross_entropy(model(x.to(next(model.parameters()).dtype)), y)


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int, seed: int = 0) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        loss_of(model, seed + step).backward()
        optimizer.step()


def through_pickle(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


def through_torch_save(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


COPIES = [copy.deepcopy, through_pickle, through_torch_save]


@pytest.mark.parametrize("duplicate", COPIES, ids=lambda f: f.__name__)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("packed", [False, True])
def test_a_copy_goes_its_own_way(
    rule: str, duplicate: Callable[[Any], Any], packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if packed:
        monkeypatch.setattr("torchdfa.feedback.UNPACKED_LIMIT_BYTES", 0)
    model = convert_(cases.make("vgg"), rule)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer, 2)
    pending = loss_of(model, 7)  # a forward is waiting for its backward
    twin = duplicate(model)
    assert torchdfa.report(twin) == torchdfa.report(model)
    assert twin._torchdfa.bus is not model._torchdfa.bus
    gradients.assert_equal(gradients.of(twin, loss_of(twin)), gradients.of(model, loss_of(model)))
    gradients.of(model, pending)
    before = {n: t.clone() for n, t in twin.state_dict().items()}
    train(model, optimizer, 1)
    assert all(torch.equal(t, before[n]) for n, t in twin.state_dict().items())
    torchdfa.restore_(twin)
    assert type(twin.classifier[3]) is nn.Linear
    assert torchdfa.report(model).rows  # the other is still converted


def test_a_copy_of_the_head_alone() -> None:
    """A part of a converted model that is copied sends errors within itself."""
    model = convert_(cases.make("vgg"), "dfa")
    head = copy.deepcopy(model.classifier)
    x = torch.randn(6, 36)
    found = gradients.of(head, head(x).square().sum())
    assert torch.equal(
        found["0.weight"], gradients.of(model.classifier, model.classifier(x).square().sum())["0.weight"]
    )


@pytest.mark.parametrize("rule", RULES)
def test_state_dict_through_a_file_without_code(rule: str) -> None:
    """Resumed in another process: same model, converted with another seed, then loaded."""
    model = convert_(cases.make("vgg"), rule, seed=1)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    train(model, optimizer, 2)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    train(model, optimizer, 3, seed=2)

    resumed = convert_(cases.make("vgg", seed=5), rule, seed=2)
    resumed_optimizer = torch.optim.SGD(resumed.parameters(), 0.1, momentum=0.9)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed.load_state_dict(saved["model"])
    resumed_optimizer.load_state_dict(saved["optimizer"])
    train(resumed, resumed_optimizer, 3, seed=2)
    for name, tensor in model.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


@pytest.mark.parametrize("assign", [False, True])
def test_loaded_bits_are_used_however_they_are_loaded(assign: bool) -> None:
    model, other = convert_(cases.make("mlp"), "bdfa", seed=1), convert_(cases.make("mlp"), "bdfa", seed=2)
    other.load_state_dict(model.state_dict(), assign=assign)
    gradients.assert_equal(gradients.of(other, loss_of(other)), gradients.of(model, loss_of(model)))


def test_loading_into_an_empty_model() -> None:
    """Memory without values (to_empty) is filled from the file, the unpacked copy of the signs included."""
    model, other = convert_(cases.make("mlp"), "bdfa", seed=1), convert_(cases.make("mlp"), "bdfa", seed=2)
    other.to("meta").to_empty(device="cpu")
    other.load_state_dict(model.state_dict())
    gradients.assert_equal(gradients.of(other, loss_of(other)), gradients.of(model, loss_of(model)))


def test_weights_of_a_plain_model_load_where_only_feedback_is_missing() -> None:
    plain, model = cases.make("vgg", seed=3), convert_(cases.make("vgg"), "bdfa")
    result = model.load_state_dict(plain.state_dict(), strict=False)
    assert result.unexpected_keys == []
    assert result.missing_keys
    assert all(".feedback." in key for key in result.missing_keys)
    plain.load_state_dict(torchdfa.restore_(model).state_dict())  # and restored weights load into a plain model


@pytest.mark.parametrize("use_buffers", [False, True])
@pytest.mark.parametrize("rule", RULES)
def test_stochastic_weight_averaging(rule: str, use_buffers: bool) -> None:
    model = convert_(cases.make("vgg"), rule)
    averaged = AveragedModel(model, use_buffers=use_buffers)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    weights = []
    for step in range(3):
        train(model, optimizer, 1, seed=step)
        averaged.update_parameters(model)
        weights.append(model.classifier[3].weight.detach().clone())
    torch.testing.assert_close(averaged.module.classifier[3].weight.detach(), torch.stack(weights).mean(0))
    for name, buffer in model.named_buffers():
        if "feedback" in name:
            assert torch.equal(averaged.module.get_buffer(name), buffer), name
    if not use_buffers:
        update_bn([cases.batch()[0]], averaged)
    gradients.of(averaged, loss_of(averaged))
    assert model._torchdfa.bus.taps == {}


def test_exponential_moving_average() -> None:
    model = convert_(cases.make("vgg"), "bdfa")
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for step in range(3):
        train(model, optimizer, 1, seed=step)
        average.update_parameters(model)
    twin = copy.deepcopy(average)
    gradients.assert_equal(gradients.of(twin, loss_of(twin)), gradients.of(average, loss_of(average)))


def test_restore_leaves_nothing_of_us() -> None:
    plain, model = cases.make("vgg"), cases.make("vgg")
    for rule in RULES:
        convert_(model, rule)
        gradients.of(model, loss_of(model))
        assert torchdfa.restore_(model) is model
    twins = zip(plain.modules(), model.modules(), strict=True)
    for one, other in twins:
        assert type(one) is type(other)
        assert one.__dict__.keys() == other.__dict__.keys()
    assert repr(model) == repr(plain)
    model.load_state_dict(plain.state_dict())
    gradients.assert_equal(gradients.of(model, loss_of(model)), gradients.of(plain, loss_of(plain)))


def test_layers_changed_since_conversion_are_named() -> None:
    model = convert_(cases.make("mlp"), "dfa", init="product")
    model[5] = nn.Linear(12, 5)
    for call in (torchdfa.report, torchdfa.refresh_feedback_):
        with pytest.raises(torchdfa.ConversionError, match=r"'5' was replaced after convert_"):
            call(model)
    with pytest.raises(torchdfa.ConversionError, match=r"'5' was replaced"):
        torchdfa.diagnostics.measure(model, lambda: loss_of(model))
    torchdfa.restore_(model)
    assert type(model[3]) is nn.Linear
    assert torchdfa.report(convert_(model, "dfa", init="product")).rows


def test_a_layer_parametrized_since_conversion_restores_once_that_is_undone() -> None:
    model = convert_(cases.make("mlp"), "dfa")
    nn.utils.parametrizations.weight_norm(model[3])
    gradients.of(model, loss_of(model))
    with pytest.raises(torchdfa.ConversionError, match="'3' has become a ParametrizedFeedbackLinear"):
        torchdfa.restore_(model)
    assert torchdfa.report(model).rows  # nothing was half undone
    nn.utils.parametrize.remove_parametrizations(model[3], "weight")
    torchdfa.restore_(model)
    assert type(model[3]) is nn.Linear


def test_two_converted_modules_are_not_mistaken_for_one() -> None:
    pair = nn.ModuleDict({"actor": convert_(cases.make("mlp"), "dfa"), "critic": convert_(cases.make("mlp"), "fa")})
    for call in (torchdfa.report, torchdfa.restore_, torchdfa.refresh_feedback_):
        with pytest.raises(torchdfa.ConversionError, match=r"several converted modules.*\['actor', 'critic'\]"):
            call(pair)
    with pytest.raises(torchdfa.ConversionError, match="several"), torchdfa.backprop(pair):
        pass
    with pytest.raises(torchdfa.ConversionError, match="already converted"):
        convert_(pair, "dfa")
    assert torchdfa.report(pair["critic"]).settings["rule"] == "fa"
