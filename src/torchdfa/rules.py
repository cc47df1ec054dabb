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
from typing import Any, Literal, NamedTuple

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


class Route(NamedTuple):
    """Where an output sends its error: the feedback, its rows for this output, the place of its tensors."""

    feedback: Feedback
    rows: slice
    held: slice


class SendError(torch.autograd.Function):
    """Identity on ``output``; backward passes its error on and sends ``e @ D`` to each tap as well.

    ``output`` (..., k) and the taps need no path between them in the graph: this is where taps that were cut off
    join again. ``tensors`` are a tap for each of ``routes``, then the feedback's own tensors. Those are inputs, not
    looked up in backward, for torch.compile: torch 2.10 confuses what a backward looks up with sizes that vary.
    """

    generate_vmap_rule = True  # per-sample gradients with torch.func

    @staticmethod
    def forward(output: Tensor, routes: tuple[Route, ...], *tensors: Tensor) -> Tensor:
        # A copy rather than the input itself: an in-place activation may follow, the output of a Linear with
        # 3-D input is a view, and vmap cannot follow inputs marked dirty.
        return output.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.routes = inputs[1]
        taps, ctx.held = inputs[2 : 2 + len(ctx.routes)], inputs[2 + len(ctx.routes) :]
        ctx.taps = [((-1, *tap.shape[1:]) if tap.dim() > 1 else tap.shape, tap.dtype) for tap in taps]

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        sent = [
            route.feedback.project(error, ctx.held[route.held], route.rows, shape).to(dtype)
            for route, (shape, dtype) in zip(ctx.routes, ctx.taps, strict=True)
        ]
        return error, None, *sent, *[None for _ in ctx.held]
