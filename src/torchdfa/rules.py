"""The rules, and the two autograd Functions that they all use.

A rule is a value: a route for the error and a store for its feedback.

- BP  (Eq. 2): e_i = (W^T e_{i+1}) * f'       route "live"
- FA  (Eq. 5): e_i = (R^T e_{i+1}) * f'       route "chain": fixed feedback from the next layer
- DFA (Eq. 6): e_i = (D_i^T e_L) * f'         route "direct": fixed feedback from the output
- BDFA (Eq. 9): DFA whose D_i is kept as signs
- frozen (Hoffer et al., 2018): the hidden layers of the head keep their initial weights; BP passes through them

The f' of every equation, and each local gradient, is left to autograd.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.amp import is_autocast_available

from torchdfa.feedback import Feedback


@dataclass(frozen=True)
class Rule:
    """Where a layer's error comes from and how its feedback is kept."""

    name: str
    route: Literal["live", "chain", "direct", "frozen"]
    store: Literal["dense", "signs"] = "dense"

    @property
    def has_feedback(self) -> bool:
        return self.route in ("chain", "direct")


RULES = {
    rule.name: rule
    for rule in (
        Rule("bp", "live"),
        Rule("fa", "chain"),
        Rule("dfa", "direct"),
        Rule("bdfa", "direct", "signs"),
        Rule("frozen", "frozen"),
    )
}


class Relay(torch.autograd.Function):
    """Where an error from the output enters the graph again: backward sends it through ``feedback`` to ``x``.

    Its output is a *port*: a zero that holds no memory, of the error's shape and dtype, for ``SendError`` alone. It is
    made before the layer that reads ``x``. Autograd runs nodes latest first, so each error is projected just when the
    layers below are about to use it, and is free before the next: of all that wait, only the output's error is held.
    ``tensors`` are those of ``feedback``. They are inputs, not looked up in backward, for torch.compile: torch 2.10
    confuses what a backward looks up with sizes that vary.
    """

    generate_vmap_rule = True  # per-sample gradients with torch.func

    @staticmethod
    def forward(x: Tensor, feedback: Feedback, rows: slice, *tensors: Tensor) -> Tensor:
        return x.new_zeros((), dtype=_layer_dtype(x)).expand(feedback.error_shape(rows, x.shape))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.feedback, ctx.rows, *ctx.tensors = inputs
        ctx.shape, ctx.dtype = (-1, *x.shape[1:]) if x.dim() > 1 else x.shape, x.dtype

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        sent = ctx.feedback.project(error, ctx.tensors, ctx.rows, ctx.shape).to(ctx.dtype)
        return sent, None, None, *[None for _ in ctx.tensors]


def _layer_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a layer computes what it reads as ``x``: that of the errors, too."""
    device = x.device.type
    autocast = x.dtype != torch.float64 and is_autocast_available(device) and torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if autocast else x.dtype


class SendError(torch.autograd.Function):
    """Identity on ``output`` (..., k); backward passes its error on and hands it to each port of ``Relay`` as well.

    ``output`` and the ports need no path between them in the graph: this is where layers that were cut off join again.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(output: Tensor, *ports: Tensor) -> Tensor:
        # A copy rather than the input itself: an in-place activation may follow, the output of a Linear with
        # 3-D input is a view, and vmap cannot follow inputs marked dirty.
        return output.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.ports = [((-1, *port.shape[1:]), port.device, port.dtype) for port in inputs[1:]]

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, ...]:
        return error, *[error.reshape(shape).to(device, dtype) for shape, device, dtype in ctx.ports]
