"""The update: that of autograd and torch.optim.SGD under each rule, judged before anything changes, in place."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

import torchdfa
from torchdfa.feedback import SignFeedback
from torchdfa.online.network import Network, norm, output_error
from torchdfa.settings import checked_settings

RULES = ("bp", "fa", "dfa", "bdfa", "frozen")
WIDTHS = (6, 8, 7, 4)


def network(
    rule="bdfa", widths=WIDTHS, *, init="random", scale=None, momentum=False, dtype="float64", keep=True, seed=3
):
    settings = checked_settings(rule, "head", init, "normal", scale, "direct", seed)
    return Network(widths, settings, dtype, momentum=momentum, keep_signs=keep)


def converted(net):
    """An independent nn.Sequential with the same weights, converted by the library."""
    model = nn.Sequential(
        *(type(m)(m.in_features, m.out_features) if isinstance(m, nn.Linear) else m for m in net.module())
    )
    model.to(torch.float64 if net.layers[0].weight.dtype == np.float64 else torch.float32)
    model.load_state_dict(net.module().state_dict())
    s = net.settings
    return torchdfa.convert_(model, s.rule.name, init=s.init, scale=s.scale, seed=s.seed)


def batch(rows=5, seed=0):
    random = np.random.default_rng(seed)
    return random.standard_normal((rows, WIDTHS[0])), random.integers(0, WIDTHS[-1], rows), random.uniform(0.5, 2, rows)


@pytest.mark.parametrize("init", ["random", "product"])
@pytest.mark.parametrize("momentum, decay", [(0.0, 0.0), (0.9, 0.0), (0.0, 0.01), (0.9, 0.01)])
@pytest.mark.parametrize("rule", RULES)
def test_updates_are_those_of_convert_autograd_and_sgd(rule, momentum, decay, init):
    """Ten steps with row weights; equal to rounding: sums are taken in another order."""
    net = network(rule, init=init, momentum=momentum > 0)
    model = converted(net)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=momentum, weight_decay=decay)
    for step in range(10):
        x, y, w = batch(seed=step)
        assert net.update(x, y.tolist(), (w / len(y))[:, None], 0.05, momentum, decay) is None
        losses = nn.functional.cross_entropy(model(torch.from_numpy(x)), torch.from_numpy(y), reduction="none")
        optimizer.zero_grad()
        (losses * torch.from_numpy(w)).mean().backward()
        optimizer.step()
    for layer in net.layers:
        theirs = model.get_submodule(layer.name)
        np.testing.assert_allclose(layer.weight, theirs.weight.detach().numpy(), rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(layer.bias, theirs.bias.detach().numpy(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("rule", ["fa", "dfa", "bdfa"])
def test_feedback_is_that_of_convert_bit_for_bit(rule):
    net = network(rule)
    model = converted(net)
    for layer in net.layers[1:]:
        theirs = model.get_submodule(layer.name).feedback.state_dict()
        assert theirs.keys() == layer.feedback.state_dict().keys()
        for name, buffer in layer.feedback.state_dict().items():
            assert torch.equal(buffer, theirs[name])


def test_one_row_in_float32():
    net = network("bdfa", dtype="float32")
    model = converted(net)
    x, y, _ = batch(1)
    net.update(x.astype(np.float32), y.tolist(), None, 0.05, 0.0, 0.0)
    nn.functional.cross_entropy(model(torch.from_numpy(x).float()), torch.from_numpy(y)).backward()
    torch.optim.SGD(model.parameters(), lr=0.05).step()
    np.testing.assert_allclose(net.layers[0].weight, model[0].weight.detach().numpy(), rtol=2e-6, atol=1e-7)


def test_bits_and_their_copy_give_the_same_update_to_rounding():
    kept, bits = network("bdfa"), network("bdfa", keep=False)
    assert bits.layers[1].sender is None
    x, y, w = batch()
    for net in (kept, bits):
        net.update(x, y.tolist(), w[:, None], 0.05, 0.0, 0.0)
    for a, b in zip(kept.layers, bits.layers, strict=True):
        np.testing.assert_allclose(a.weight, b.weight, rtol=1e-13)


def test_frozen_hidden_layers_stay_to_the_bit():
    net = network("frozen", momentum=True)
    before = [layer.weight.copy() for layer in net.layers]
    x, y, w = batch()
    net.update(x, y.tolist(), w[:, None], 0.05, 0.9, 0.01)
    assert [np.array_equal(layer.weight, old) for layer, old in zip(net.layers, before, strict=True)] == [
        True,
        True,
        False,
    ]
    assert [layer.momentum is None for layer in net.layers] == [True, True, False]


def test_weights_are_updated_in_their_own_memory():
    """BLAS fills a copy without a word where layout or type do not fit."""
    for momentum in (False, True):
        for dtype in ("float32", "float64"):
            net = network("bp", dtype=dtype, momentum=momentum)
            held = [(layer.weight, layer.weight.copy()) for layer in net.layers]
            x, y, w = batch()
            net.update(x.astype(dtype), y.tolist(), w[:, None].astype(dtype), 0.05, 0.9 * momentum, 0.0)
            for layer, (memory, before) in zip(net.layers, held, strict=True):
                assert layer.weight is memory
                assert not np.array_equal(memory, before)
            assert torch.equal(net.module()[0].weight, torch.from_numpy(held[0][0]))


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 1e30])
@pytest.mark.parametrize("rule", RULES)
def test_a_bad_update_changes_nothing_and_says_why(rule, wrong):
    net = network(rule, momentum=True)
    before = [
        (layer.weight.copy(), layer.bias.copy(), [m.copy() for m in layer.momentum or ()]) for layer in net.layers
    ]
    x, y, w = batch()
    x[2, 3] = wrong
    with np.errstate(all="ignore"):
        fault = net.update(x, y.tolist(), w[:, None], 0.05, 0.9, 0.01)
    assert fault is not None
    assert "initial norm" in fault
    for layer, (weight, bias, momentum) in zip(net.layers, before, strict=True):
        assert np.array_equal(layer.weight, weight)
        assert np.array_equal(layer.bias, bias)
        assert all(np.array_equal(a, b) for a, b in zip(layer.momentum or (), momentum, strict=True))


def test_the_limit_is_the_norm_of_he_weights():
    net = network("bp", (400, 300, 10))
    assert net.layers[0].initial_norm == math.sqrt(600)
    assert norm(net.layers[0].weight) == pytest.approx(net.layers[0].initial_norm, rel=0.02)
    x = np.full((1, 400), 1.0)
    error = math.sqrt(float((output_error(net.forward(x)[-1], [3]) ** 2).sum()))
    hidden = norm(net.forward(x)[1])
    limit = math.sqrt(20) / (error * hidden)
    assert net.update(x, [3], None, 1.001 * limit, 0.0, 0.0) is not None
    assert net.update(x, [3], None, 0.999 * limit, 0.0, 0.0) is None


def test_output_error():
    logits = np.array([[1.0, 2.0, -1.0], [800.0, 0.0, 0.0]])
    expected = np.exp(logits - logits.max(1, keepdims=True))
    expected /= expected.sum(1, keepdims=True)
    expected[[0, 1], [2, 1]] -= 1
    np.testing.assert_allclose(output_error(logits.copy(), [2, 1]), expected, rtol=1e-15)
    np.testing.assert_allclose(output_error(logits[:1].copy(), [2]), expected[:1], rtol=1e-15)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("init", ["random", "product"])
def test_a_new_class_leaves_rows_unchanged(rule, init):
    net = network(rule, init=init, momentum=True)
    x, y, w = batch()
    net.update(x, y.tolist(), w[:, None] / 5, 0.05, 0.9, 0.0)
    weight, feedback = net.layers[-1].weight.copy(), [l.feedback and l.feedback.dense().clone() for l in net.layers]  # noqa: E741
    net.add_output()
    assert net.widths == (*WIDTHS[:-1], 5)
    assert np.array_equal(net.layers[-1].weight[:4], weight)
    assert net.layers[-1].weight.shape == (5, 7)
    assert net.layers[-1].momentum[0].shape == (5, 7)
    for layer, old in zip(net.layers, feedback, strict=True):
        if old is None:
            continue
        grows = rule != "fa" or layer is net.layers[-1]
        assert torch.equal(layer.feedback.dense()[: len(old)], old)
        assert layer.feedback.shape[0] == len(old) + grows
    assert net.update(x, [4] * 5, w[:, None] / 5, 0.05, 0.9, 0.0) is None


@pytest.mark.parametrize("rule", ["bp", "bdfa", "frozen"])
def test_a_class_added_before_learning_is_as_if_it_had_been_there(rule):
    grown, whole = network(rule), network(rule, (*WIDTHS[:-1], 5))
    grown.add_output()
    for a, b in zip(grown.layers, whole.layers, strict=True):
        assert np.array_equal(a.weight, b.weight)
        if isinstance(a.feedback, SignFeedback):
            assert torch.equal(a.feedback.bits, b.feedback.bits)
            assert torch.equal(a.feedback.scale, b.feedback.scale)


def test_a_new_row_of_product_feedback_is_the_product_of_the_present_weights():
    net = network("dfa", init="product")
    x, y, w = batch()
    net.update(x, y.tolist(), w[:, None] / 5, 0.05, 0.0, 0.0)
    net.add_output()
    np.testing.assert_allclose(net.layers[1].sender[4], net.layers[2].weight[4] @ net.layers[1].weight, rtol=1e-6)
    np.testing.assert_allclose(net.layers[2].sender[4], net.layers[2].weight[4], rtol=1e-6)
