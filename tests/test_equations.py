"""Every rule against the paper's equations written out by hand in float64."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import torchdfa
from paper_equations import ACTIVATIONS, Array, eq7_product, eq9_signs, gradients

WIDTHS = (7, 12, 9, 11, 5)
MODULES = {"relu": nn.ReLU, "tanh": nn.Tanh, "identity": nn.Identity}


class Trunk(nn.Module):
    """An identity with a weight, so that the head has layers before it and the boundary can be read."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(WIDTHS[0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.scale


def build(activation: str, *, trunk: bool = True) -> nn.Sequential:
    torch.manual_seed(3)
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(WIDTHS):
        layers += [nn.Linear(n_in, n_out), MODULES[activation]()]
    head = nn.Sequential(*layers[:-1])
    return nn.Sequential(*([Trunk()] if trunk else []), head).double()


def linears(model: nn.Module) -> list[nn.Linear]:
    return [m for m in model.modules() if isinstance(m, nn.Linear)]


def arrays(model: nn.Module) -> tuple[list[Array], list[Array]]:
    return [m.weight.detach().numpy() for m in linears(model)], [m.bias.detach().numpy() for m in linears(model)]


def dense_feedback(model: nn.Module) -> dict[int, Array]:
    """What the model holds, by the index of the layer whose output it lands on."""
    found = {}
    for index, layer in enumerate(linears(model)):
        if getattr(layer, "feedback", None) is not None:
            store = layer.feedback
            matrix = store.matrix if hasattr(store, "matrix") else store.signs * store.scale.double()
            found[index] = matrix.double().numpy()
    return found


def run(model: nn.Module, seed: int = 0) -> tuple[Array, Array, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(6, WIDTHS[0], generator=generator, dtype=torch.float64, requires_grad=True)
    y = torch.randint(WIDTHS[-1], (6,), generator=generator)
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    assert x.grad is not None
    return x.detach().numpy(), y.numpy(), x.grad


CASES = [
    ("bp", "random"),
    ("fa", "random"),
    ("fa", "product"),
    ("dfa", "random"),
    ("dfa", "product"),
    ("bdfa", "random"),
    ("bdfa", "product"),
]


@pytest.mark.parametrize("boundary", ["direct", "transpose"])
@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("rule, init", CASES)
def test_gradients_are_the_papers(rule: str, init: Any, activation: str, boundary: Any) -> None:
    """Eq. 2 (bp), 5 (fa), 6 (dfa) and 9 (bdfa), for every weight, every bias and the error at the boundary."""
    model = torchdfa.convert_(build(activation), rule, init=init, boundary=boundary)
    x, y, input_error = run(model)
    assert (0 in dense_feedback(model)) == (boundary == "direct" and rule != "bp")
    slow_rule = "dfa" if rule == "bdfa" else rule
    expected = gradients(slow_rule, *arrays(model), dense_feedback(model), ACTIVATIONS[activation], x, y)
    for layer, weight, bias in zip(linears(model), expected[0], expected[1], strict=True):
        np.testing.assert_allclose(layer.weight.grad.numpy(), weight, rtol=0, atol=1e-15)
        np.testing.assert_allclose(layer.bias.grad.numpy(), bias, rtol=0, atol=1e-15)
    np.testing.assert_allclose(input_error.numpy(), expected[2], rtol=0, atol=1e-15)


def test_eq7_is_the_product_of_the_initial_weights() -> None:
    model = build("relu")
    weights, _ = arrays(model)
    torchdfa.convert_(model, "dfa", init="product")
    for index, matrix in dense_feedback(model).items():
        np.testing.assert_allclose(matrix, eq7_product(weights, index), rtol=2e-6, atol=1e-7)


def test_eq9_is_the_sign_of_the_product_times_one_recorded_number() -> None:
    model = build("relu")
    weights, _ = arrays(model)
    torchdfa.convert_(model, "bdfa", init="product", scale="unit")
    for index, matrix in dense_feedback(model).items():
        np.testing.assert_array_equal(matrix, eq9_signs(weights, index))


def test_eq7_feedback_stays_fixed_while_the_weights_move() -> None:
    model = torchdfa.convert_(build("relu"), "dfa", init="product")
    before = {k: v.copy() for k, v in dense_feedback(model).items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, weight_decay=0.1)
    for seed in range(3):
        run(model, seed)
        optimizer.step()
    for index, matrix in dense_feedback(model).items():
        np.testing.assert_array_equal(matrix, before[index])


def test_dfa_with_eq7_and_identity_activations_is_back_propagation() -> None:
    """Eq. 8 with f' = 1."""
    model = build("identity")
    _, _, true_error = run(model)
    true = [layer.weight.grad.clone() for layer in linears(model)]
    torchdfa.convert_(model, "dfa", init="product")
    for layer in linears(model):  # the stored product is float32; give it all the digits of the weights
        index = linears(model).index(layer)
        layer.feedback.matrix.copy_(torch.from_numpy(eq7_product(arrays(model)[0], index)))
    _, _, error = run(model)
    for layer, expected in zip(linears(model), true, strict=True):
        torch.testing.assert_close(layer.weight.grad, expected, rtol=0, atol=1e-16)
    torch.testing.assert_close(error, true_error, rtol=0, atol=1e-16)


def test_fa_with_its_own_weights_is_back_propagation_exactly() -> None:
    model = build("relu")
    with torch.no_grad():
        for layer in linears(model):
            layer.weight.copy_(layer.weight.float())  # exact in float32, so the feedback holds it exactly
    _, _, true_error = run(model)
    true = [layer.weight.grad.clone() for layer in linears(model)]
    torchdfa.convert_(model, "fa", init="product")
    _, _, error = run(model)
    for layer, expected in zip(linears(model), true, strict=True):
        assert torch.equal(layer.weight.grad, expected)
    assert torch.equal(error, true_error)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("scale", ["unit", "he", 0.1, "match"])
def test_bdfa_is_dfa_with_the_same_signs(scale: str | float, dtype: torch.dtype) -> None:
    """Random signs of one seed, dense and packed: equal bit for bit where the scale is 1, else up to rounding."""
    dense = torchdfa.convert_(build("relu").to(dtype), "dfa", distribution="sign", scale=scale)
    packed = torchdfa.convert_(build("relu").to(dtype), "bdfa", scale=scale)
    for model in (dense, packed):
        x = torch.linspace(-1, 1, 4 * WIDTHS[0], dtype=dtype).view(4, -1)
        model(x).square().sum().backward()
    for a, b in zip(linears(dense), linears(packed), strict=True):
        if scale == "unit":
            assert torch.equal(a.weight.grad, b.weight.grad)
        else:  # one multiplies the error by the scale, the other the matrix
            torch.testing.assert_close(a.weight.grad, b.weight.grad)


def test_hidden_gradients_do_not_see_the_output_weights_and_are_linear_in_the_error() -> None:
    model = torchdfa.convert_(build("relu", trunk=False), "dfa")
    x = torch.randn(4, WIDTHS[0], dtype=torch.float64)
    e = torch.randn(4, WIDTHS[-1], dtype=torch.float64)

    def hidden(error: torch.Tensor) -> list[torch.Tensor]:
        model.zero_grad()
        model(x).backward(error)
        return [layer.weight.grad.clone() for layer in linears(model)[:-1]]

    first = hidden(e)
    with torch.no_grad():
        linears(model)[-1].weight.mul_(-3)
    for a, b, c in zip(first, hidden(e), hidden(2.5 * e), strict=True):
        assert torch.equal(a, b)
        torch.testing.assert_close(c, 2.5 * a, rtol=1e-14, atol=0)


def test_frozen_layers_pass_the_exact_error_and_have_no_gradient() -> None:
    model = build("relu")
    _, _, true_error = run(model)
    true = [layer.weight.grad.clone() for layer in linears(model)]
    torchdfa.convert_(model, "frozen")
    before = [layer.weight.detach().clone() for layer in linears(model)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    _, _, error = run(model)
    optimizer.step()
    assert torch.equal(error, true_error)
    for layer, weight in zip(linears(model)[:-1], before, strict=False):
        assert layer.weight.grad is None
        assert torch.equal(layer.weight, weight)
    assert torch.equal(linears(model)[-1].weight.grad, true[-1])


def test_backprop_context_gives_true_gradients_at_the_same_weights() -> None:
    model = build("relu")
    _, _, true_error = run(model)
    true = [layer.weight.grad.clone() for layer in linears(model)]
    torchdfa.convert_(model, "bdfa")
    with torchdfa.backprop(model):
        _, _, error = run(model)
    assert torch.equal(error, true_error)
    for layer, expected in zip(linears(model), true, strict=True):
        assert torch.equal(layer.weight.grad, expected)
    run(model)
    assert not torch.equal(linears(model)[0].weight.grad, true[0])
