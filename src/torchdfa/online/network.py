"""Fully-connected layers that learn in place, without autograd and without gradient buffers.

The update is that of ``torchdfa.convert_``, a mean of cross-entropies and ``torch.optim.SGD``, written out: forward,
the output's error, the error of each layer by its rule, and then ``W <- W - rate * e^T x`` as one BLAS call a layer.
All errors are known and judged before the first weight changes, so a bad update is refused rather than undone from a
copy. What this keeps is an error for each unit, a few kilobytes, where a gradient would be as large as the weights.

Arrays are numpy's, because a step on one sample is some thirty operations on short vectors, for each of which torch
takes three times as long to start; weights and feedback can be had as tensors that share their memory.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import get_blas_funcs
from torch import Tensor, nn

from torchdfa.counter import random_matrix, stream_key
from torchdfa.feedback import DenseFeedback, Feedback, SignFeedback, chain_product, scale_factor
from torchdfa.head import Plan
from torchdfa.initial import make_feedback
from torchdfa.settings import Settings

Array = NDArray[np.floating[Any]]

# An update has exploded when it would change a layer by more than the norm that He's initial weights have: one sample
# would replace what the layer has learned. Steps of a head that learns are some hundredths of it (docs/online.md).
EXPLODED = 1.0
_BLAS = {np.dtype(name): get_blas_funcs(("ger", "gemm"), dtype=name) for name in ("float32", "float64")}


@dataclass
class Layer:
    """A fully-connected layer: weight (out, in), bias (out,), their momentum, and the feedback onto its input."""

    name: str
    weight: Array
    bias: Array
    momentum: tuple[Array, Array] | None = None
    feedback: Feedback | None = None
    sender: Array | None = None  # the feedback with its scale as one matrix; None where the bits alone are kept

    @property
    def initial_norm(self) -> float:
        """Of He's initial weights, N(0, 2 / in): sqrt(2 out)."""
        return math.sqrt(2 * len(self.weight))

    def send(self, error: Array) -> Array:
        """``error`` (rows, k) sent to the layer's input, (rows, in), by feedback or live weights."""
        if self.feedback is None:
            return error @ self.weight
        if self.sender is not None:
            return error @ self.sender
        shape = (len(error), self.weight.shape[1])
        sent = self.feedback.project(torch.from_numpy(error), self.feedback.tensors(), slice(None), shape)
        return sent.numpy()

    def set_feedback(self, feedback: Feedback, *, keep_signs: bool) -> None:
        """Use ``feedback``; signs are unpacked once, with ``keep_signs``, or in each update."""
        self.feedback, self.sender = feedback, None
        if isinstance(feedback, SignFeedback):
            feedback.signs = None
        if isinstance(feedback, DenseFeedback):
            self.sender = feedback.matrix.numpy()
        elif keep_signs:
            self.sender = feedback.dense().numpy().astype(self.weight.dtype)

    def update_(self, inputs: Array, errors: Array, rate: float, momentum: float, decay: float) -> None:
        """One step of SGD as torch.optim takes it, for ``inputs`` (rows, in) and ``errors`` (rows, out)."""
        summed = errors[0] if len(errors) == 1 else errors.sum(0)
        if self.momentum is None:
            kept = 1 - rate * decay
            _add_product_(self.weight, errors, inputs, -rate, kept)
            if decay:
                self.bias *= kept
            self.bias -= rate * summed
            return
        of_weight, of_bias = self.momentum
        _add_product_(of_weight, errors, inputs, 1.0, momentum)
        of_bias *= momentum
        of_bias += summed
        if decay:
            _add_(of_weight, self.weight, decay)
            of_bias += decay * self.bias
        _add_(self.weight, of_weight, -rate)
        self.bias -= rate * of_bias


class Network:
    """Layers with ReLU between, their rule, and its feedback; weights depend on the seed, names and sizes alone."""

    def __init__(
        self, widths: tuple[int, ...], settings: Settings, dtype: str, *, momentum: bool, keep_signs: bool = True
    ) -> None:
        self.settings, self.widths, self.keep_signs = settings, widths, keep_signs
        # Named as in an nn.Sequential with ReLU between, so that convert_ draws the same feedback for one.
        self.layers = [
            Layer(
                str(2 * i),
                he_weights(settings.seed, str(2 * i), *pair).astype(dtype, copy=False),
                np.zeros(pair[1], dtype),
            )
            for i, pair in enumerate(pairwise(widths))
        ]
        if settings.rule.has_feedback:
            self._make_feedback()
        for layer in self.trained if momentum else ():
            layer.momentum = (np.zeros_like(layer.weight), np.zeros_like(layer.bias))

    @property
    def trained(self) -> list[Layer]:
        """The layers that learn: all, or the output's alone where the hidden ones are frozen."""
        return self.layers[-1:] if self.settings.rule.route == "frozen" else self.layers

    def module(self) -> nn.Sequential:
        """The layers as an nn.Sequential that shares their memory; it takes scaled inputs."""
        parts: list[nn.Module] = []
        for layer in self.layers:
            above, below = layer.weight.shape
            linear = nn.Linear(below, above, device="meta")
            linear.weight = nn.Parameter(torch.from_numpy(layer.weight))
            linear.bias = nn.Parameter(torch.from_numpy(layer.bias))
            parts += [linear, nn.ReLU()]
        return nn.Sequential(*parts[:-1])

    def _make_feedback(self) -> None:
        names = tuple(layer.name for layer in self.layers)
        plan = Plan((names,), names[1:], dict(zip(names, self.widths, strict=False)), (names,))
        module = self.module()
        for layer in self.layers[1:]:
            made = make_feedback(module, self.settings, plan, layer.name)
            layer.set_feedback(made, keep_signs=self.keep_signs)

    def forward(self, x: Array) -> list[Array]:
        """The input of each layer, ``x`` (rows, features) first, and the logits (rows, classes) last."""
        found = [x]
        for layer in self.layers:
            out = found[-1] @ layer.weight.T
            out += layer.bias
            if layer is not self.layers[-1]:
                np.maximum(out, 0, out=out)
            found.append(out)
        return found

    def errors(self, inputs: list[Array], error: Array) -> list[Array]:
        """The errors of the layers that learn, in their order, from the output's ``error`` (Eqs. 2, 5, 6 and 9)."""
        route, found = self.settings.rule.route, [error]
        for layer, below in zip(self.layers[:0:-1], inputs[:0:-1], strict=True) if route != "frozen" else ():
            sent = layer.send(error if route == "direct" else found[0])
            np.copyto(sent, 0, where=below <= 0)  # times the derivative of ReLU
            found.insert(0, sent)
        return found

    def update(
        self, x: Array, labels: list[int], shares: Array | None, rate: float, momentum: float, decay: float
    ) -> str | None:
        """Learn from scaled inputs (rows, features), or change nothing and say why.

        ``shares`` (rows, 1) multiply the error of each row: its sample weight over the number of rows. None is 1.
        """
        inputs = self.forward(x)
        error = output_error(inputs.pop(), labels)
        if shares is not None:
            error *= shares
        errors, trained = self.errors(inputs, error), self.trained
        steps = list(zip(trained, inputs[-len(trained) :], errors, strict=True))
        for layer, below, sent in steps:
            change = rate * norm(sent) * norm(below)  # of one row exactly; of several, never less than it will be
            if not change <= EXPLODED * layer.initial_norm:  # NaN compares as False
                return f"layer {layer.name} would change by {change:.3g}, its initial norm is {layer.initial_norm:.3g}"
        for layer, below, sent in steps:
            layer.update_(below, sent, rate, momentum, decay)
        return None

    def add_output(self) -> None:
        """One more class: a row of weights and rows of feedback, drawn as if they had been there from the start."""
        output, classes = self.layers[-1], self.widths[-1]
        row = he_weights(self.settings.seed, output.name, self.widths[-2], classes + 1)[classes:]
        output.weight = np.concatenate([output.weight, row.astype(output.weight.dtype)])
        output.bias = _one_more(output.bias)
        if output.momentum is not None:
            output.momentum = (_one_more(output.momentum[0]), _one_more(output.momentum[1]))
        self.widths = (*self.widths[:-1], classes + 1)
        for i, layer in enumerate(self.layers):
            if layer.feedback is not None and (self.settings.rule.route == "direct" or layer is output):
                layer.set_feedback(self._grown(layer.feedback, i), keep_signs=self.keep_signs)

    def _grown(self, feedback: Feedback, i: int) -> Feedback:
        """``feedback`` onto the input of layer ``i`` with a row more; the rows that it had stay as they are."""
        row, factor = self._new_row(i, *feedback.shape)
        if isinstance(feedback, SignFeedback):  # whose one scale stays
            signs = torch.cat([feedback.dense().sign(), torch.where(row >= 0, 1.0, -1.0)])
            return SignFeedback(signs, float(feedback.scale), torch.float32)
        assert isinstance(feedback, DenseFeedback)
        return DenseFeedback(torch.cat([feedback.matrix, (row * factor).to(feedback.matrix.dtype)]))

    def _new_row(self, i: int, rows: int, width: int) -> tuple[Tensor, float]:
        """The row that follows ``rows`` rows of feedback (1, width), and its scale as a matrix of its own."""
        settings, hidden = self.settings, [torch.from_numpy(layer.weight) for layer in self.layers[i:-1]]
        product = chain_product([*hidden, torch.from_numpy(self.layers[-1].weight[rows:])])
        if settings.init == "product":
            assert product is not None  # widths of plain layers fit
            row = product
        else:
            key = stream_key(settings.seed, self.layers[i].name)
            row = random_matrix(rows + 1, width, settings.distribution, key)[rows:]
        return row, scale_factor(row, settings.scale, product, width)


def he_weights(seed: int, name: str, fan_in: int, fan_out: int) -> Array:
    """(fan_out, fan_in) from N(0, 2 / fan_in) (He et al., 2015), the same rows for every ``fan_out``."""
    # Drawn in small blocks: what drawing takes beside the weights is more than a head ever takes afterwards.
    drawn = random_matrix(fan_out, fan_in, "normal", stream_key(seed, f"{name}.weight"), block=2**16)
    return drawn.mul_(math.sqrt(2 / fan_in)).numpy()


def softmax(logits: Array) -> Array:
    """Of each row of ``logits`` (rows, classes), in place."""
    one = len(logits) == 1  # a reduction along an axis takes longer than all else here
    logits -= logits[0, logits.argmax()] if one else logits.max(1, keepdims=True)
    np.exp(logits, out=logits)
    logits /= logits.sum() if one else logits.sum(1, keepdims=True)
    return logits


def output_error(logits: Array, labels: list[int]) -> Array:
    """softmax(logits) - onehot(labels), the error of each row's cross-entropy (rows, classes), in place."""
    error = softmax(logits)
    for row, label in zip(error, labels, strict=True):
        row[label] -= 1
    return error


def norm(values: Array) -> float:
    """Euclidean norm of all elements; inf or NaN where it is not finite."""
    return math.sqrt(np.vdot(values, values))


def _add_product_(target: Array, errors: Array, inputs: Array, factor: float, kept: float) -> None:
    """target <- kept * target + factor * errors^T inputs, in the memory of ``target`` (out, in)."""
    ger, gemm = _BLAS[target.dtype]
    # scipy's BLAS counts columns first: what it fills is the transpose, a view of the same memory.
    if kept != 1:  # which torch does in one pass over the weights, scipy's BLAS in two
        product = torch.from_numpy(errors).T, torch.from_numpy(inputs)
        torch.from_numpy(target).addmm_(*product, beta=kept, alpha=factor)
    elif len(errors) == 1:
        ger(factor, inputs[0], errors[0], a=target.T, overwrite_a=1)
    else:
        gemm(factor, inputs.T, errors.T, 1.0, target.T, trans_b=True, overwrite_c=True)


def _add_(target: Array, values: Array, factor: float) -> None:
    """target <- target + factor * values without a copy of either."""
    torch.from_numpy(target).add_(torch.from_numpy(values), alpha=factor)


def _one_more(values: Array) -> Array:
    return np.concatenate([values, np.zeros_like(values[:1])])
