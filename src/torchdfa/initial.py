"""The initial feedback of each layer that a plan cuts: random, or the product of the weights (Eq. 7, Eq. 9)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torchdfa.counter import random_matrix, stream_key
from torchdfa.errors import ConversionError
from torchdfa.feedback import (
    ConvFeedback,
    DenseFeedback,
    Feedback,
    SignFeedback,
    at_least_float32,
    chain_product,
    require_usable,
    scale_factor,
)
from torchdfa.head import Plan
from torchdfa.rules import Rule
from torchdfa.seeded import SeedFeedback
from torchdfa.settings import Settings


def make_feedback(model: nn.Module, settings: Settings, plan: Plan, name: str) -> Feedback:
    """The feedback of the cut layer ``name``: the rows of all outputs that send to it, stacked."""
    layer = model.get_submodule(name)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    if weight.is_meta:
        raise ConversionError(
            f"the weights of {name!r} are on the meta device, where feedback would have no values; "
            "give the model its weights first (to_empty and initialise, or load them)."
        )
    product = forward_product(model, settings.rule, plan, name)
    if settings.rule.route == "chain":
        rows, width = weight.shape[0], weight[0].numel()
    else:
        rows, width = sum(output_width(model, out) for out in plan.outputs_of(name)), plan.widths[name]
    raw = _raw(settings, product, rows, width, name)
    if settings.rule.store == "signs":
        raw = torch.where(raw >= 0, 1.0, -1.0)
    if product is not None and (settings.init == "product" or settings.scale == "match"):
        require_usable(product, name)
    factor = scale_factor(raw, settings.scale, product, width)
    if settings.store == "seed":
        return _seeded(settings, layer, raw, factor, name)
    if settings.rule.store == "signs":
        return SignFeedback(raw.to(weight.device), factor, weight.dtype)
    matrix = (raw if factor == 1.0 else raw * factor).to(weight.device, weight.dtype, copy=True)
    if settings.rule.route == "chain" and not isinstance(layer, nn.Linear):
        return ConvFeedback(matrix.view_as(weight), _plain_padding(layer, name))
    return DenseFeedback(matrix)


def _seeded(settings: Settings, layer: nn.Module, raw: Tensor, factor: float, name: str) -> SeedFeedback:
    if settings.rule.route == "chain" and not isinstance(layer, nn.Linear):
        raise ConversionError(
            f'store="seed" is for feedback that is a matrix, but rule "fa" gives the convolution {name!r} a kernel; '
            'use store="buffers", or leave the layer out with layers=[...].'
        )
    signs = settings.rule.store == "signs"
    distribution = "sign" if signs else settings.distribution
    key = stream_key(settings.seed, name)
    weight: Tensor = layer.weight  # type: ignore[assignment]
    return SeedFeedback(tuple(raw.shape), key, distribution, factor, weight.dtype, signs)


def _raw(settings: Settings, product: Tensor | None, rows: int, width: int, name: str) -> Tensor:
    if settings.init == "random":
        return random_matrix(rows, width, settings.distribution, stream_key(settings.seed, name))
    if product is None:
        raise ConversionError(
            f'init="product" (Eq. 7) needs fully-connected layers alone, whose widths fit, from {name!r} to the '
            'output; use init="random", or convert the head only (layers="head").'
        )
    return product


def forward_product(model: nn.Module, rule: Rule, plan: Plan, name: str) -> Tensor | None:
    """The present W_L ... W_{i+1} (Eq. 7) that the feedback of ``name`` stands for, or None where undefined."""
    if rule.route == "chain":
        return at_least_float32(model.get_submodule(name).weight).flatten(1)  # type: ignore[arg-type]
    products = []
    for output in plan.outputs_of(name):
        path = plan.linear_path(name, output)
        if path is None:
            return None
        product = chain_product([model.get_submodule(n).weight for n in path])  # type: ignore[misc]
        if product is None:
            return None
        products.append(product)
    return torch.cat(products)


def output_width(model: nn.Module, name: str) -> int:
    """Elements of the error that is taken at the layer ``name``."""
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
