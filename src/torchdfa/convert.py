"""Convert a model to a rule in place, undo it, and recompute its feedback."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from torchdfa.errors import ConversionError
from torchdfa.feedback import Feedback
from torchdfa.head import Plan, make_plan
from torchdfa.initial import make_feedback, output_width
from torchdfa.layers import Bus, Rerouted, can_reroute, plain_class, reroute_, unroute_
from torchdfa.settings import Settings, checked_settings

M = TypeVar("M", bound=nn.Module)


@dataclass
class Conversion:
    """What ``convert_`` did to a model, kept on it as ``model._torchdfa``."""

    settings: Settings
    plan: Plan
    bus: Bus
    frozen: tuple[str, ...] = ()  # names of the Parameters that rule "frozen" froze


def convert_(
    model: M,
    rule: str,
    *,
    head: str | None = None,
    layers: Literal["head", "all"] | Sequence[str] = "head",
    init: Literal["random", "product"] = "random",
    distribution: Literal["normal", "uniform", "sign"] = "normal",
    scale: float | Literal["unit", "he", "match"] | None = None,
    boundary: Literal["direct", "transpose"] = "direct",
    error_at: str | None = None,
    example_input: Any = None,
    seed: int = 0,
    store: Literal["buffers", "seed"] = "buffers",
) -> M:
    """Change ``model`` in place so that its layers learn by ``rule``; returns the same model.

    Parameters keep their identity, names and optimizer state; the training loop stays as it is.

    Args:
        model: any module. Convert it after its weights are initialised or loaded and before DDP or compile.
        rule: ``"bp"``, ``"fa"`` (Eq. 5), ``"dfa"`` (Eq. 6), ``"bdfa"`` (Eq. 9: feedback kept as signs) or
            ``"frozen"`` (the hidden layers of the head, and normalisation and PReLU between them, keep their
            initial weights; Hoffer et al., 2018. Of ``layers=[...]``, those named alone).
        head: name of the submodule that is the fully-connected head. By default it is found: the
            fully-connected layers that follow each other up to each output.
        layers: ``"head"``; ``"all"`` for conventional DFA with feedback to every convolution and
            fully-connected layer (needs ``example_input``); or names of the layers whose input gets feedback.
        init: ``"random"``, or ``"product"`` of the present weights (Eq. 7; Eq. 9 with ``"bdfa"``).
        distribution: of random feedback, each of unit variance; ``"bdfa"`` keeps the signs.
        scale: ``"unit"`` (the raw values, as in the paper), ``"he"`` (variance 2 / units), ``"match"`` (norm of
            the product of the weights) or a number that multiplies the raw values. By default ``"match"`` for
            ``init="product"``, which for dense feedback is Eq. 7 itself, and ``"he"`` for ``init="random"``.
        boundary: where the feedback for the layers before the head lands. ``"direct"``: on the input of the
            first fully-connected layer, so that no live weight of the head reaches the convolutions (Sec. 3.1).
            ``"transpose"``: on that layer's output, and the convolutions get its live transposed weights.
        error_at: name of the layer whose output error is sent; by default each output of the model.
        example_input: a batch (or a tuple of arguments); needed for feedback to convolutions (of its shape) and for
            models whose code cannot be traced (along its path).
        seed: random feedback depends on this and the layer's name alone.
        store: ``"buffers"`` keeps feedback as buffers, part of the ``state_dict``; ``"seed"`` keeps nothing and draws
            the same random numbers anew in every backward: zero bytes, and slow (docs: kernels).

    Raises:
        ConversionError: for a wrong argument, or a model without layers that the rule could concern.
    """
    if not isinstance(model, nn.Module):
        raise ConversionError(f"model must be a torch.nn.Module, found {type(model).__name__}.")
    _require_bare(model)
    settings = checked_settings(rule, layers, init, distribution, scale, boundary, seed, store)
    if find_conversions(model):
        raise ConversionError("the model is already converted; call torchdfa.restore_(model) first.")
    if settings.rule.route == "live":
        model._torchdfa = Conversion(settings, Plan((), (), {}, ()), Bus())  # type: ignore[assignment]
        return model
    plan = make_plan(model, head=head, layers=layers, boundary=boundary, error_at=error_at, example_input=example_input)
    conversion = Conversion(settings, plan, Bus())
    if settings.rule.route == "frozen":
        conversion.frozen = _freeze(model, plan, layers)
    else:
        # All feedback is made before any layer is touched: an error leaves the model as it was.
        feedback = {name: make_feedback(model, settings, plan, name) for name in plan.cuts}
        _warn_of_single_outputs(model, plan)
        _reroute(model, conversion, feedback)
    model._torchdfa = conversion  # type: ignore[assignment]
    return model


def _require_bare(model: nn.Module) -> None:
    """Wrappers rename the layers, by whose names feedback is drawn and found again."""
    for module in model.modules():
        if "_orig_mod" in module._modules or isinstance(module, (nn.DataParallel, DistributedDataParallel)):
            inside = "_orig_mod" if "_orig_mod" in module._modules else "module"
            raise ConversionError(
                f"the model is or holds a {type(module).__name__}, which renames the layers within; convert what is "
                f"inside (its .{inside}), then compile or wrap it."
            )


def _freeze(model: nn.Module, plan: Plan, layers: Any) -> tuple[str, ...]:
    of_head = (*(name for chain in plan.chains for name in chain), *plan.between)
    hidden = of_head if layers == "head" else plan.cuts
    names = [
        f"{layer}.{name}"
        for layer in dict.fromkeys(hidden)
        if layer not in plan.outputs
        for name, parameter in model.get_submodule(layer).named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    for name in names:
        parameter = model.get_parameter(name)
        parameter.requires_grad_(False)
        parameter.grad = None  # None, not zero: decay and momentum must not move it
    return tuple(names)


def _warn_of_single_outputs(model: nn.Module, plan: Plan) -> None:
    for output in plan.outputs:
        if output_width(model, output) == 1:
            warnings.warn(
                f"{output!r} has one output unit, so feedback gives every hidden unit of a layer the same direction; "
                "consider two output units with cross-entropy.",
                stacklevel=3,
            )


def _reroute(model: nn.Module, conversion: Conversion, feedback: dict[str, Feedback]) -> None:
    plan, chained = conversion.plan, conversion.settings.rule.route == "chain"
    others = () if chained else (*_starts(model, plan), *plan.outputs)
    for name in dict.fromkeys([*plan.cuts, *others]):
        reroute_(
            model.get_submodule(name),
            conversion.bus,
            name,
            feedback=feedback.get(name),
            readers={name: slice(None)} if chained else _readers(model, plan, name),
            earlier=() if chained else plan.earlier(name),
            later=() if chained else plan.later(name),
            sends=(name,) if chained else _sends(plan, name),
        )


def _starts(model: nn.Module, plan: Plan) -> list[str]:
    """First layers of heads whose input is not cut: they too drop what waits from a forward that broke off."""
    firsts = [c[0] for c in plan.chains if c in plan.linear_chains and c.count(c[0]) == 1]
    return [name for name in firsts if can_reroute(model.get_submodule(name))]


def _readers(model: nn.Module, plan: Plan, name: str) -> dict[str, slice]:
    """The outputs that send their error to the cut layer ``name``, and the rows of its feedback that are theirs."""
    rows: dict[str, slice] = {}
    start = 0
    for output in plan.outputs_of(name):
        stop = start + output_width(model, output)
        rows[output] = slice(start, stop)
        start = stop
    return rows


def _sends(plan: Plan, output: str) -> tuple[str, ...]:
    """The cut layers that ``output`` sends its error to."""
    return tuple(name for name in plan.cuts if output in plan.outputs_of(name))


def find_conversions(model: nn.Module) -> dict[str, tuple[nn.Module, Conversion]]:
    """The converted modules within ``model`` (which DDP or torch.compile may wrap), by name, and their records."""
    records = ((name, module, module.__dict__.get("_torchdfa")) for name, module in model.named_modules())
    return {name: (module, record) for name, module, record in records if isinstance(record, Conversion)}


def get_conversion(model: nn.Module) -> tuple[nn.Module, Conversion]:
    """The one converted module within ``model`` and its record."""
    found = find_conversions(model)
    if not found:
        raise ConversionError("the model is not converted; call torchdfa.convert_(model, rule) first.")
    if len(found) > 1:
        raise ConversionError(f"the model holds several converted modules; pass one of them: {list(found)}.")
    return next(iter(found.values()))


def require_whole(owner: nn.Module, conversion: Conversion) -> None:
    """Raise if a layer was replaced since ``convert_``: errors would no longer be sent, or no longer arrive."""
    if not conversion.settings.rule.has_feedback:
        return
    chained = conversion.settings.rule.route == "chain"
    modules = dict(owner.named_modules())
    for name in (*conversion.plan.cuts, *(() if chained else conversion.plan.outputs)):
        if not isinstance(modules.get(name), Rerouted):
            raise ConversionError(
                f"layer {name!r} was replaced after convert_, so errors take another way than the rule's; "
                "call restore_ and convert_ again, or change its weights in place."
            )


def restore_(model: M) -> M:
    """Undo ``convert_`` in place: plain torch layers with the present weights, no feedback, nothing frozen by us."""
    owner, conversion = get_conversion(model)
    layers = [(module, plain_class(module)) for module in owner.modules() if isinstance(module, Rerouted)]
    for layer, plain in layers:
        unroute_(layer, plain)
    for name in conversion.frozen:
        owner.get_parameter(name).requires_grad_(True)
    del owner._torchdfa
    return model


@torch.no_grad()
def refresh_feedback_(model: M) -> M:
    """Recompute product feedback (Eq. 7, Eq. 9) from the present weights, in place in the same buffers."""
    owner, conversion = get_conversion(model)
    require_whole(owner, conversion)
    if not conversion.settings.rule.has_feedback or conversion.settings.init != "product":
        raise ConversionError(
            "refresh_feedback_ recomputes the product of the weights, but this model was converted with "
            f'rule="{conversion.settings.rule.name}", init="{conversion.settings.init}"; use init="product".'
        )
    plan = conversion.plan
    fresh = {name: make_feedback(owner, conversion.settings, plan, name) for name in plan.cuts}
    for name, feedback in fresh.items():
        layer = owner.get_submodule(name)
        layer.feedback.load_state_dict(feedback.state_dict())  # type: ignore[union-attr]
    return model


@contextmanager
def backprop(model: nn.Module) -> Iterator[None]:
    """Within this context, forwards of ``model`` (in this thread) give true gradients at the same weights."""
    bus = get_conversion(model)[1].bus
    before, bus.backprop = bus.backprop, True
    try:
        yield
    finally:
        bus.backprop = before
