"""The rules, and the one autograd Function that they all use.

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


class SendError(torch.autograd.Function):
    """Identity on ``output``; backward passes its error on and sends ``e @ D`` to ``tap`` as well.

    ``output`` (..., k) and ``tap`` need no path between them in the graph: this is where a tap that was cut
    off joins again. The rows of D that belong to this output are ``rows``.
    """

    generate_vmap_rule = True  # per-sample gradients with torch.func

    @staticmethod
    def forward(output: Tensor, tap: Tensor, feedback: Feedback, rows: slice) -> Tensor:
        # A copy rather than the input itself: an in-place activation may follow, the output of a Linear with
        # 3-D input is a view, and vmap cannot follow inputs marked dirty.
        return output.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Feedback, slice], output: Tensor) -> None:
        ctx.shape, ctx.dtype = inputs[1].shape, inputs[1].dtype
        ctx.feedback, ctx.rows = inputs[2], inputs[3]

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor, Tensor | None, None, None]:
        if not ctx.needs_input_grad[1]:
            return error, None, None, None
        return error, ctx.feedback.project(error, ctx.rows, ctx.shape).to(ctx.dtype), None, None
