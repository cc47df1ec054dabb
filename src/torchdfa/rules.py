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


Routes = tuple[tuple[Feedback, slice], ...]


class SendError(torch.autograd.Function):
    """Identity on ``output``; backward passes its error on and sends ``e @ D`` to each of ``taps`` as well.

    ``output`` (..., k) and the taps need no path between them in the graph: this is where taps that were cut
    off join again. ``routes`` holds for each tap its feedback and the rows of D that belong to this output.
    """

    generate_vmap_rule = True  # per-sample gradients with torch.func

    @staticmethod
    def forward(output: Tensor, routes: Routes, *taps: Tensor) -> Tensor:
        # A copy rather than the input itself: an in-place activation may follow, the output of a Linear with
        # 3-D input is a view, and vmap cannot follow inputs marked dirty.
        return output.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.routes = inputs[1]
        ctx.taps = [(tap.shape, tap.dtype) for tap in inputs[2:]]

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        sent = [
            feedback.project(error, rows, shape).to(dtype) if needed else None
            for (feedback, rows), (shape, dtype), needed in zip(
                ctx.routes, ctx.taps, ctx.needs_input_grad[2:], strict=True
            )
        ]
        return error, None, *sent
