"""How far a rule's updates are from the true gradient, and its feedback from the forward weights.

Nothing here changes a number of the training: gradients are computed aside, buffers and random states put back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchdfa.convert import Conversion, backprop, get_conversion, require_whole
from torchdfa.feedback import Feedback
from torchdfa.graph import is_layer
from torchdfa.initial import forward_product

# A direction cannot be read off a gradient this small (norm, in units of the loss per unit of weight).
SMALLEST_NORM = 1e-8


@dataclass(frozen=True)
class Angle:
    """A layer's weight update beside its true gradient: ``degrees`` (0 is back-propagation, 90 is unrelated)
    and ``norm_ratio`` (update over true gradient). Both are None, with the ``reason``, where undefined."""

    degrees: float | None
    norm_ratio: float | None
    reason: str | None = None


DERIVED = Angle(None, None, "the weight is made anew in every forward (weight norm, pruning), so it has no gradient")


@dataclass(frozen=True)
class Alignment:
    """A layer's feedback beside the present product of the forward weights (Eq. 7): the cosine of the two as
    vectors, and the share of elements whose signs agree. None, with the ``reason``, where undefined."""

    cosine: float | None
    sign_agreement: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Measurement:
    """The figures of one batch, by layer name. ``boundary`` compares the error that reaches the input of the
    first layers of the head with that of back-propagation."""

    loss: float
    updates: dict[str, Angle]
    feedback: dict[str, Alignment]
    boundary: dict[str, Angle]

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return asdict(self)

    def __str__(self) -> str:
        lines = [f"loss {self.loss:.4g}", f"{'':24}{'angle':>10}{'norm ratio':>12}"]
        for label, angles in (("update", self.updates), ("error at input", self.boundary)):
            lines += [
                f"{name:24}{_show(a.degrees):>10}{_show(a.norm_ratio):>12}  {label}" for name, a in angles.items()
            ]
        lines.append(f"{'':24}{'cosine':>10}{'same sign':>12}")
        lines += [
            f"{n:24}{_show(f.cosine):>10}{_show(f.sign_agreement):>12}  feedback" for n, f in self.feedback.items()
        ]
        return "\n".join(lines)


def _show(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def measure(model: nn.Module, closure: Callable[[], Tensor]) -> Measurement:
    """Compare the rule with back-propagation on one batch.

    ``closure`` runs a forward of ``model`` and returns the scalar loss, unscaled; it is called twice, with the
    same random numbers. ``.grad``, buffers (batch norm statistics) and random states are left as they were.
    """
    owner, conversion = get_conversion(model)
    require_whole(owner, conversion)
    weights = _trained_weights(owner)
    loss, updates, errors = _gradients(owner, conversion, closure, weights)
    with backprop(owner):
        _, true_updates, true_errors = _gradients(owner, conversion, closure, weights)
    return Measurement(
        loss,
        {name: _angle(updates[name], true_updates[name]) if name in weights else DERIVED for name in _learning(owner)},
        {name: _alignment(owner, conversion, name) for name in conversion.plan.cuts if _feedback(owner, name)},
        {name: _angle(errors[name], true_errors[name]) for name in _boundary(conversion) if name in errors},
    )


def _learning(owner: nn.Module) -> dict[str, nn.Module]:
    """The layers whose weight learns, itself or through what it is made of."""
    layers = ((name, module) for name, module in owner.named_modules() if is_layer(module))
    return {n: m for n, m in layers if any(p.requires_grad and k != "bias" for k, p in m.named_parameters())}


def _trained_weights(owner: nn.Module) -> dict[str, Tensor]:
    return {n: m.weight for n, m in _learning(owner).items() if isinstance(m.weight, nn.Parameter)}


def _boundary(conversion: Conversion) -> list[str]:
    return list(dict.fromkeys(chain[0] for chain in conversion.plan.chains if chain[0] in conversion.plan.cuts))


def _feedback(owner: nn.Module, name: str) -> Feedback | None:
    feedback = getattr(owner.get_submodule(name), "feedback", None)
    return feedback if isinstance(feedback, Feedback) else None


Gradients = dict[str, "Tensor | None"]


def _gradients(
    owner: nn.Module, conversion: Conversion, closure: Callable[[], Tensor], weights: dict[str, Tensor]
) -> tuple[float, Gradients, Gradients]:
    """The loss, the gradient of each weight, and that of each cut layer's input."""
    bus = conversion.bus
    # A compiled forward runs as it is written: compiled, it would return the watched inputs cut off from the loss.
    with _unchanged(owner), torch.enable_grad(), torch.compiler.set_stance("force_eager"):
        watched: dict[str, Tensor] = {}
        bus.watched = watched
        try:
            loss = closure()
        finally:
            bus.watched = None
        wanted = [*weights.values(), *watched.values()]
        found = torch.autograd.grad(loss, wanted, allow_unused=True)
    grads = found[: len(weights)], found[len(weights) :]
    return (
        float(loss.detach()),
        dict(zip(weights, grads[0], strict=True)),
        dict(zip(watched, grads[1], strict=True)),
    )


@contextmanager
def _unchanged(owner: nn.Module) -> Iterator[None]:
    saved = [(buffer, buffer.clone()) for buffer in owner.buffers()]
    devices = sorted({p.device.index for p in owner.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            for buffer, before in saved:
                buffer.copy_(before)


def _angle(update: Tensor | None, true: Tensor | None) -> Angle:
    if update is None or true is None:
        return Angle(None, None, "no gradient reaches this layer")
    update, true = update.double().flatten(), true.double().flatten()
    norm, true_norm = float(update.norm()), float(true.norm())
    if not (math.isfinite(norm) and math.isfinite(true_norm)):
        return Angle(None, None, "a gradient is not finite")
    if true_norm < SMALLEST_NORM:
        return Angle(None, None, f"the true gradient vanishes (norm {true_norm:.1e})")
    if norm < SMALLEST_NORM:
        return Angle(None, norm / true_norm, f"the update vanishes (norm {norm:.1e})")
    # atan2 of the unit vectors' sum and difference is exact near 0 degrees, where acos is not.
    u, t = update / norm, true / true_norm
    return Angle(math.degrees(2 * math.atan2(float((u - t).norm()), float((u + t).norm()))), norm / true_norm)


def _alignment(owner: nn.Module, conversion: Conversion, name: str) -> Alignment:
    feedback = _feedback(owner, name)
    product = forward_product(owner, conversion.settings.rule, conversion.plan, name)
    if feedback is None or product is None:
        return Alignment(None, None, "not a chain of fully-connected layers")
    d, p = feedback.dense().to(product.device).double().flatten(), product.double().flatten()
    agreement = float(((d >= 0) == (p >= 0)).double().mean())
    if float(p.norm()) < SMALLEST_NORM:
        return Alignment(None, None, "the product of the weights vanishes")
    return Alignment(float(torch.dot(d, p) / (d.norm() * p.norm())), agreement)
