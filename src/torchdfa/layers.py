"""Layers that read a detached copy of their input, or send the error of their output, or both.

A converted layer keeps its identity, Parameters, buffers and hooks: only its class changes, to one of the
one-line classes below. Within one model the layers share a ``Bus``.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from torchdfa.errors import ConversionError
from torchdfa.feedback import Feedback
from torchdfa.rules import Relay, SendError
from torchdfa.updates import InBackwardLinear


class Tap(NamedTuple):
    """The input of a layer that read a detached copy, waiting for the outputs that send it an error."""

    shape: torch.Size
    units: int  # of its feedback
    ports: dict[str, Tensor]  # where each output that has not been computed yet will send to


class Bus(threading.local):
    """What the layers of one model pass to each other during one forward. Each thread has its own.

    Copies and pickles are empty: taps belong to a call, not to a model.
    """

    def __init__(self) -> None:
        self.taps: dict[str, Tap] = {}
        self.backprop = False  # True inside torchdfa.backprop(model)
        self.watched: dict[str, Tensor] | None = None  # the diagnostics' view of every tapped input

    def __reduce__(self) -> tuple[type[Bus], tuple[()]]:
        return Bus, ()


class Rerouted(nn.Module):
    """Mixin in front of a torch layer; ``convert_`` sets these attributes."""

    bus: Bus
    site: str  # the layer's name in the model
    feedback: Feedback | None  # set where the layer reads a detached input
    readers: dict[str, slice]  # the outputs that send to this layer's tap, and their rows of its feedback
    later: tuple[str, ...]  # sites downstream: their taps are stale once this layer is called again
    sends: tuple[str, ...]  # of an output: the sites it sends its error to

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's own name, callers may pass it by keyword)
        return self._send(super().forward(self._cut(input)))

    def _cut(self, x: Tensor) -> Tensor:
        bus = self.bus
        if not torch.is_grad_enabled():
            return x
        for site in (self.site, *self.later):
            bus.taps.pop(site, None)
        if self.feedback is None or not x.requires_grad:
            return x
        if bus.watched is not None:
            bus.watched[self.site] = x
        if bus.backprop:
            return x
        bus.taps[self.site] = Tap(x.shape, self.feedback.shape[1], dict(self._ports(x, self.feedback)))
        return x.detach()

    def _ports(self, x: Tensor, feedback: Feedback) -> Iterator[tuple[str, Tensor]]:
        for output, rows in self.readers.items():
            yield output, Relay.apply(x, feedback, rows, *feedback.tensors())

    def _send(self, output: Tensor) -> Tensor:
        bus = self.bus
        if bus.backprop or not torch.is_grad_enabled():
            return output
        ports: list[Tensor] = []
        for site in self.sends:
            tap = bus.taps.get(site)
            if tap is None or self.site not in tap.ports:
                continue
            self._check_shapes(site, tap, output)
            ports.append(tap.ports.pop(self.site))
            if not tap.ports:
                del bus.taps[site]
        return SendError.apply(output, *ports) if ports else output

    def _check_shapes(self, site: str, tap: Tap, output: Tensor) -> None:
        if site == self.site:
            return
        if output.numel() // max(1, output.shape[-1]) * tap.units != tap.shape.numel():
            raise ConversionError(
                f"the input of {site!r} has shape {tuple(tap.shape)} and the output of {self.site!r} "
                f"{tuple(output.shape)}: feedback of {tap.units} units a row needs the same number of rows in both. "
                f"Leave {site!r} out with layers=[...] or take the error elsewhere with error_at=."
            )

    def extra_repr(self) -> str:
        parts = [super().extra_repr()]
        if self.feedback is not None:
            parts.append("input=detached")
        if self.sends:
            parts.append(f"sends_error_to={list(self.sends)}")
        return ", ".join(parts)


class FeedbackLinear(Rerouted, nn.Linear):
    """``nn.Linear`` in a rerouted head."""


class FeedbackInBackwardLinear(FeedbackLinear, InBackwardLinear):
    """``InBackwardLinear`` in a rerouted head: cut, product and sending stay in this order."""


class FeedbackConv1d(Rerouted, nn.Conv1d):
    """``nn.Conv1d`` in a rerouted network."""


class FeedbackConv2d(Rerouted, nn.Conv2d):
    """``nn.Conv2d`` in a rerouted network."""


class FeedbackConv3d(Rerouted, nn.Conv3d):
    """``nn.Conv3d`` in a rerouted network."""


_CLASSES: dict[type[nn.Module], type[Rerouted]] = {
    nn.Linear: FeedbackLinear,
    InBackwardLinear: FeedbackInBackwardLinear,
    nn.Conv1d: FeedbackConv1d,
    nn.Conv2d: FeedbackConv2d,
    nn.Conv3d: FeedbackConv3d,
}
_ATTRIBUTES = ("bus", "site", "feedback", "readers", "later", "sends")


def can_reroute(layer: nn.Module) -> bool:
    """Whether the layer's type is one that ``reroute_`` knows; subclasses may do anything in forward."""
    return type(layer) in _CLASSES


def reroute_(
    layer: nn.Module,
    bus: Bus,
    site: str,
    *,
    feedback: Feedback | None,
    readers: dict[str, slice],
    later: tuple[str, ...],
    sends: tuple[str, ...],
) -> None:
    """Turn ``layer`` in place into its rerouted class."""
    layer.__class__ = _CLASSES[type(layer)]
    rerouted = cast("Rerouted", layer)
    rerouted.bus, rerouted.site, rerouted.feedback = bus, site, feedback
    rerouted.readers, rerouted.later, rerouted.sends = readers, later, sends


def plain_class(layer: Rerouted) -> type[nn.Module]:
    """The torch class that ``layer`` had before ``reroute_``."""
    for plain, rerouted in _CLASSES.items():
        if type(layer) is rerouted:
            return plain
    raise ConversionError(
        f"layer {layer.site!r} has become a {type(layer).__name__} since convert_ (parametrization, sharding?); "
        "undo that before restore_."
    )


def unroute_(layer: Rerouted, plain: type[nn.Module]) -> None:
    """Turn a rerouted layer in place into ``plain``, the torch class it had."""
    for name in _ATTRIBUTES:
        delattr(layer, name)
    cast("nn.Module", layer).__class__ = plain
