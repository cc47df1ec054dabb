"""Direct feedback alignment as it is usually written: a layer that throws away the gradient that came to it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Replace(torch.autograd.Function):
    """Identity whose backward ignores what autograd computed and returns ``error @ feedback``."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, feedback: Tensor, errors: dict[str, Tensor]) -> Tensor:
        ctx.feedback, ctx.errors = feedback, errors
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return ctx.errors["output"] @ ctx.feedback, None, None


class _Note(torch.autograd.Function):
    """Identity at the output whose backward keeps the error for the layers before."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, errors: dict[str, Tensor]) -> Tensor:
        ctx.errors = errors
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.errors["output"] = grad
        return grad, None


class HookedDFA(nn.Module):
    """``layers`` with random feedback to the input of every fully-connected layer that does not come first.

    Each layer still multiplies its error by its transposed weights, because autograd does not know that nobody
    will read the result.
    """

    def __init__(self, layers: nn.Sequential):
        super().__init__()
        self.layers = layers
        linear = {i: layer for i, layer in enumerate(layers) if isinstance(layer, nn.Linear)}
        width = list(linear.values())[-1].out_features
        self.feedback = {i: torch.randn(width, linear[i].in_features) for i in linear if i > 0}

    def forward(self, x: Tensor) -> Tensor:
        errors: dict[str, Tensor] = {}
        for i, layer in enumerate(self.layers):
            if i in self.feedback:
                x = _Replace.apply(x, self.feedback[i], errors)
            x = layer(x)
        return _Note.apply(x, errors)
