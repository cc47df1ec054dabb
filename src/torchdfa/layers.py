"""Layers that read a detached copy of their input, or send the error of their output, or both.

A converted layer keeps its identity, Parameters, buffers and hooks: only its class changes, to one of the
one-line classes below. Within one model the layers share a ``Bus``.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from torchdfa.errors import ConversionError
from torchdfa.feedback import Feedback
from torchdfa.rules import Relay, SendError
from torchdfa.updates import InBackwardLinear


class Tap(NamedTuple):
    """One call of a layer that was cut off, waiting for the outputs that send it an error."""

    shape: torch.Size  # of its input
    units: int  # of its feedback
    ports: dict[str, Tensor | None]  # where each output to come will send to; None where the input needs no gradient
    upstream: tuple[str, ...]  # the sites, waiting too, from whose calls its input comes
    node: int | None  # the number of the autograd node that made its output; None: not known, or none


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
    earlier: tuple[str, ...]  # cut sites upstream, in order: this layer's input comes from their latest calls
    later: tuple[str, ...]  # sites downstream: their taps are stale once this layer is called again
    sends: tuple[str, ...]  # of an output: the sites it sends its error to

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's own name, callers may pass it by keyword)
        plain: Callable[[Tensor], Tensor] = super().forward
        if not torch.is_grad_enabled():
            return plain(input)
        taps = self.bus.taps
        for site in (self.site, *self.later):
            taps.pop(site, None)
        cut = self.feedback is not None and input.requires_grad
        if cut and self.bus.watched is not None:
            self.bus.watched[self.site] = input
        if self.bus.backprop:
            return plain(input)
        upstream = self._upstream(input)
        ports = self._ports(input) if cut else dict.fromkeys(self.readers)
        output = plain(input.detach() if cut else input)
        if self.feedback is not None:
            taps[self.site] = Tap(input.shape, self.feedback.shape[1], ports, upstream, _node_number(output))
        return self._send(output, upstream)

    def _upstream(self, x: Tensor) -> tuple[str, ...]:
        """The sites of which ``x`` is made: what comes after this layer sends no error to others.

        Autograd's graph tells, and ends at the outputs of the layers that were cut before. So an error stops where
        the model stops it (``detach``, ``no_grad``), and never reaches the activations of another call.
        """
        waiting = {site: tap for site in self.earlier if (tap := self.bus.taps.get(site)) is not None}
        if not waiting:
            return ()
        linked = {site for tap in waiting.values() for site in tap.upstream}
        if torch.compiler.is_compiling():
            direct = [site for site in waiting if site not in linked]
        else:
            made = _reached(x, {tap.node for tap in waiting.values()})
            direct = [s for s, t in waiting.items() if t.node in made or (t.node is None and s not in linked)]
        if not direct and x.grad_fn is not None:
            raise ConversionError(
                f"layer {self.site!r} reads what does not come from the latest call of the layers before it "
                f"({', '.join(map(repr, waiting))}), so its error would reach another batch; call the parts of "
                "the model one after the other for each batch."
            )
        return tuple(dict.fromkeys(name for site in direct for name in (*waiting[site].upstream, site)))

    def _ports(self, x: Tensor) -> dict[str, Tensor | None]:
        feedback = cast("Feedback", self.feedback)
        return {out: Relay.apply(x, feedback, rows, *feedback.tensors()) for out, rows in self.readers.items()}

    def _send(self, output: Tensor, upstream: tuple[str, ...]) -> Tensor:
        taps = self.bus.taps
        ports: list[Tensor] = []
        for site in (*upstream, self.site):
            tap = taps.get(site)
            if tap is None or self.site not in tap.ports:
                continue
            port = tap.ports.pop(self.site)
            if not tap.ports:
                del taps[site]
            if port is not None:
                self._check_shapes(site, tap, output)
                ports.append(port)
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


def _node_number(output: Tensor) -> int | None:
    """The number of the autograd node that made ``output``; they rise in each thread, and none comes twice."""
    if torch.compiler.is_compiling() or output.grad_fn is None:
        return None
    return output.grad_fn._sequence_nr()


def _reached(x: Tensor, wanted: set[int | None]) -> set[int]:
    """Those of the nodes ``wanted`` from which ``x`` comes without another of them between."""
    found: set[int] = set()
    seen: set[int] = set()
    oldest = min((number for number in wanted if number is not None), default=math.inf)
    pending = [x.grad_fn]
    while pending:
        node = pending.pop()
        number = -1 if node is None else node._sequence_nr()
        if node is None or number < oldest or number in seen:
            continue
        seen.add(number)
        if number in wanted:
            found.add(number)
        else:
            pending += [parent for parent, _ in node.next_functions]
    return found


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
_ATTRIBUTES = ("bus", "site", "feedback", "readers", "earlier", "later", "sends")


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
    earlier: tuple[str, ...],
    later: tuple[str, ...],
    sends: tuple[str, ...],
) -> None:
    """Turn ``layer`` in place into its rerouted class."""
    layer.__class__ = _CLASSES[type(layer)]
    rerouted = cast("Rerouted", layer)
    rerouted.bus, rerouted.site, rerouted.feedback = bus, site, feedback
    rerouted.readers, rerouted.earlier, rerouted.later, rerouted.sends = readers, earlier, later, sends


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
