"""The paper's equations written out by hand in float64: slow, obvious, and independent of torchdfa and autograd.

A network is a list of weights and biases: i_{l+1} = W_{l+1} o_l + b_{l+1}, o_{l+1} = f(i_{l+1}) (Eq. 1), no f
after the last layer, loss = cross-entropy averaged over the batch. Vectors are columns as in the paper.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Activation:
    f: Callable[[Array], Array]
    derivative: Callable[[Array], Array]


ACTIVATIONS = {
    "relu": Activation(lambda i: np.maximum(i, 0), lambda i: (i > 0).astype(np.float64)),
    "tanh": Activation(np.tanh, lambda i: 1 - np.tanh(i) ** 2),
    "identity": Activation(lambda i: i, np.ones_like),
}


def forward(
    weights: list[Array], biases: list[Array], activation: Activation, x: Array
) -> tuple[list[Array], list[Array]]:
    """Eq. 1 for one sample: the pre-activations i_1..i_L and the feature maps o_0..o_L."""
    pre, maps = [], [x]
    for depth, (weight, bias) in enumerate(zip(weights, biases, strict=True), start=1):
        pre.append(weight @ maps[-1] + bias)
        maps.append(pre[-1] if depth == len(weights) else activation.f(pre[-1]))
    return pre, maps


def output_error(logits: Array, label: int) -> Array:
    """e_L of softmax cross-entropy for one sample: softmax(logits) - onehot(label)."""
    shifted = np.exp(logits - logits.max())
    return shifted / shifted.sum() - np.eye(len(logits))[label]


def eq7_product(weights: list[Array], layer: int) -> Array:
    """D_i = W_L ... W_{i+1} for the output of layer ``layer`` (0 is the network's input)."""
    product = np.eye(weights[-1].shape[0])
    for weight in reversed(weights[layer:]):
        product = product @ weight
    return product


def eq9_signs(weights: list[Array], layer: int) -> Array:
    """B_i = sign(W_L ... W_{i+1}), with sign(0) = +1."""
    return np.where(eq7_product(weights, layer) >= 0, 1.0, -1.0)


def errors(
    rule: str, weights: list[Array], feedback: dict[int, Array], pre: list[Array], activation: Activation, e_out: Array
) -> dict[int, Array]:
    """The error e_i at the pre-activation of each layer 1..L, and (key 0) what arrives at the network's input.

    ``feedback[i]`` is R_{i+1} (rule "fa", Eq. 5) or D_i (rule "dfa", Eq. 6) for the output of layer i;
    rule "bp" is Eq. 2. A layer without feedback gets the live transposed weights (boundary "transpose").
    """
    depth = len(weights)
    found = {depth: e_out}
    for layer in range(depth - 1, -1, -1):
        if rule == "bp" or layer not in feedback:
            arriving = weights[layer].T @ found[layer + 1]
        elif rule == "fa":
            arriving = feedback[layer].T @ found[layer + 1]
        else:
            arriving = feedback[layer].T @ e_out
        found[layer] = arriving * activation.derivative(pre[layer - 1]) if layer else arriving
    return found


def gradients(
    rule: str,
    weights: list[Array],
    biases: list[Array],
    feedback: dict[int, Array],
    activation: Activation,
    batch: Array,
    labels: Array,
) -> tuple[list[Array], list[Array], Array]:
    """Eq. 3 and 4: the batch means of e_{i+1} o_i^T and e_{i+1} by layer, and the error at each sample's input / B."""
    weight_grads = [np.zeros_like(w) for w in weights]
    bias_grads = [np.zeros_like(b) for b in biases]
    input_errors = np.zeros_like(batch)
    size = len(batch)
    for sample, (x, label) in enumerate(zip(batch, labels, strict=True)):
        pre, maps = forward(weights, biases, activation, x)
        e = errors(rule, weights, feedback, pre, activation, output_error(maps[-1], int(label)))
        for layer in range(len(weights)):
            weight_grads[layer] += np.outer(e[layer + 1], maps[layer]) / size
            bias_grads[layer] += e[layer + 1] / size
        input_errors[sample] = e[0] / size
    return weight_grads, bias_grads, input_errors
