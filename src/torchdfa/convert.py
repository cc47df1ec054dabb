"""Convert a model to a rule in place, undo it, and recompute its feedback."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from torchdfa.counter import DISTRIBUTIONS, random_matrix, stream_key
from torchdfa.errors import ConversionError
from torchdfa.feedback import (
    INITS,
    SCALES,
    ConvFeedback,
    DenseFeedback,
    Feedback,
    SignFeedback,
    chain_product,
    require_usable,
    scale_factor,
)
from torchdfa.head import Plan, make_plan
from torchdfa.layers import Bus, Rerouted, reroute_, unroute_
from torchdfa.rules import RULES, Rule

M = TypeVar("M", bound=nn.Module)
BOUNDARIES = ("direct", "transpose")


@dataclass(frozen=True)
class Settings:
    """The arguments of one conversion, as recorded on the model."""

    rule: Rule
    init: str
    distribution: str
    scale: float | str
    boundary: str
    seed: int


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
) -> M:
    """Change ``model`` in place so that its layers learn by ``rule``; returns the same model.

    Parameters keep their identity, names and optimizer state; the training loop stays as it is.

    Args:
        model: any module. Convert it after its weights are initialised or loaded and before DDP or compile.
        rule: ``"bp"``, ``"fa"`` (Eq. 5), ``"dfa"`` (Eq. 6), ``"bdfa"`` (Eq. 9: feedback kept as signs) or
            ``"frozen"`` (the hidden layers of the head keep their initial weights; Hoffer et al., 2018).
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
        example_input: a batch (or a tuple of arguments), only its shape matters; needed for feedback to convolutions.
        seed: random feedback depends on this and the layer's name alone.

    Raises:
        ConversionError: for a wrong argument, or a model without layers that the rule could concern.
    """
    settings = _check_arguments(model, rule, layers, init, distribution, scale, boundary, seed)
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


def _check_arguments(
    model: nn.Module,
    rule: str,
    layers: Any,
    init: str,
    distribution: str,
    scale: Any,
    boundary: str,
    seed: int,
) -> Settings:
    if not isinstance(model, nn.Module):
        raise ConversionError(f"model must be a torch.nn.Module, found {type(model).__name__}.")
    for name, value, allowed in (
        ("rule", rule, tuple(RULES)),
        ("init", init, INITS),
        ("distribution", distribution, DISTRIBUTIONS),
        ("boundary", boundary, BOUNDARIES),
    ):
        if value not in allowed:
            raise ConversionError(f"{name}={value!r} must be one of {', '.join(map(repr, allowed))}.")
    if boundary == "transpose" and layers != "head":
        raise ConversionError('boundary="transpose" is for layers="head"; leave the first layer out of layers=.')
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise ConversionError(f"seed={seed!r} must be an integer.")
    if find_conversion(model) is not None:
        raise ConversionError("the model is already converted; call torchdfa.restore_(model) first.")
    if scale is None:
        scale = "match" if init == "product" else "he"
    _check_scale(scale)
    return Settings(RULES[rule], init, distribution, scale, boundary, seed)


def _check_scale(scale: Any) -> None:
    if isinstance(scale, str) and scale in SCALES:
        return
    number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    if not number or not math.isfinite(scale) or scale <= 0:
        raise ConversionError(f"scale={scale!r} must be a positive number or one of {', '.join(map(repr, SCALES))}.")


def _freeze(model: nn.Module, plan: Plan, layers: Any) -> tuple[str, ...]:
    hidden = plan.cuts if layers != "head" else [name for chain in plan.chains for name in chain]
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


def make_feedback(model: nn.Module, settings: Settings, plan: Plan, name: str) -> Feedback:
    """The feedback of the cut layer ``name``: the rows of all outputs that send to it, stacked."""
    layer = model.get_submodule(name)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    product = _product(model, settings.rule, plan, name)
    if settings.rule.route == "chain":
        rows, width = weight.shape[0], weight[0].numel()
    else:
        rows, width = sum(_output_width(model, out) for out in plan.outputs_of(name)), plan.widths[name]
    raw = _raw(settings, product, rows, width, name)
    if settings.rule.store == "signs":
        raw = torch.where(raw >= 0, 1.0, -1.0)
    if product is not None and (settings.init == "product" or settings.scale == "match"):
        require_usable(product, name)
    factor = scale_factor(raw, settings.scale, product, width)
    if settings.rule.store == "signs":
        return SignFeedback(raw.to(weight.device), factor, weight.dtype)
    matrix = (raw if factor == 1.0 else raw * factor).to(weight.device, weight.dtype, copy=True)
    if settings.rule.route == "chain" and not isinstance(layer, nn.Linear):
        return ConvFeedback(matrix.view_as(weight), _plain_padding(layer, name))
    return DenseFeedback(matrix)


def _raw(settings: Settings, product: Tensor | None, rows: int, width: int, name: str) -> Tensor:
    if settings.init == "random":
        return random_matrix(rows, width, settings.distribution, stream_key(settings.seed, name))
    if product is None:
        raise ConversionError(
            f'init="product" (Eq. 7) needs fully-connected layers alone from {name!r} to the output; '
            'use init="random", or convert the head only (layers="head").'
        )
    return product


def _product(model: nn.Module, rule: Rule, plan: Plan, name: str) -> Tensor | None:
    """The forward weights that the feedback of ``name`` stands for, or None where no product is defined."""
    if rule.route == "chain":
        return model.get_submodule(name).weight.detach().float().flatten(1)  # type: ignore[operator]
    products = []
    for output in plan.outputs_of(name):
        path = plan.linear_path(name, output)
        if path is None:
            return None
        products.append(chain_product([model.get_submodule(n).weight for n in path]))  # type: ignore[misc]
    return torch.cat(products)


def forward_product(owner: nn.Module, conversion: Conversion, name: str) -> Tensor | None:
    """The present W_L ... W_{i+1} (Eq. 7) that the feedback of the cut layer ``name`` stands for, or None."""
    return _product(owner, conversion.settings.rule, conversion.plan, name)


def _output_width(model: nn.Module, name: str) -> int:
    layer = model.get_submodule(name)
    if not isinstance(layer, nn.Linear):
        raise ConversionError(f"the error is taken at {name!r}, which must be an nn.Linear; choose one with error_at=.")
    return layer.out_features


def _plain_padding(layer: nn.Module, name: str) -> Any:
    if getattr(layer, "padding_mode", None) != "zeros" or isinstance(layer.padding, str):
        raise ConversionError(
            f'rule "fa" needs zero padding given in numbers, but {name!r} has padding={layer.padding!r}, '
            f"padding_mode={getattr(layer, 'padding_mode', None)!r}; leave it out with layers=[...]."
        )
    return layer


def _warn_of_single_outputs(model: nn.Module, plan: Plan) -> None:
    for output in plan.outputs:
        if _output_width(model, output) == 1:
            warnings.warn(
                f"{output!r} has one output unit, so feedback gives every hidden unit of a layer the same direction; "
                "consider two output units with cross-entropy.",
                stacklevel=3,
            )


def _reroute(model: nn.Module, conversion: Conversion, feedback: dict[str, Feedback]) -> None:
    plan, chained = conversion.plan, conversion.settings.rule.route == "chain"
    for name in dict.fromkeys([*plan.cuts, *(() if chained else plan.outputs)]):
        sends = {name: slice(None)} if chained else _sends(model, plan, name)
        reroute_(
            model.get_submodule(name),
            conversion.bus,
            name,
            feedback=feedback.get(name),
            readers=1 if chained else len(plan.outputs_of(name)),
            later=() if chained else plan.later(name),
            sends=sends,
        )


def _sends(model: nn.Module, plan: Plan, output: str) -> dict[str, slice]:
    """The cut layers that ``output`` sends its error to, and the rows of their feedback that are its own."""
    sends: dict[str, slice] = {}
    for name in plan.cuts if output in plan.outputs else ():
        start = 0
        for other in plan.outputs_of(name):
            stop = start + _output_width(model, other)
            if other == output:
                sends[name] = slice(start, stop)
            start = stop
    return sends


def find_conversion(model: nn.Module) -> tuple[nn.Module, Conversion] | None:
    """The converted module within ``model`` (which DDP or torch.compile may wrap) and its record, or None."""
    for module in model.modules():
        record = module.__dict__.get("_torchdfa")
        if isinstance(record, Conversion):
            return module, record
    return None


def get_conversion(model: nn.Module) -> tuple[nn.Module, Conversion]:
    """Like ``find_conversion``, but a model that is not converted is an error."""
    found = find_conversion(model)
    if found is None:
        raise ConversionError("the model is not converted; call torchdfa.convert_(model, rule) first.")
    return found


def restore_(model: M) -> M:
    """Undo ``convert_`` in place: plain torch layers with the present weights, no feedback, nothing frozen by us."""
    owner, conversion = get_conversion(model)
    for module in list(owner.modules()):
        if isinstance(module, Rerouted):
            unroute_(module)
    for name in conversion.frozen:
        owner.get_parameter(name).requires_grad_(True)
    del owner._torchdfa
    return model


@torch.no_grad()
def refresh_feedback_(model: M) -> M:
    """Recompute product feedback (Eq. 7, Eq. 9) from the present weights, in place in the same buffers."""
    owner, conversion = get_conversion(model)
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
