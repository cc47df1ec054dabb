"""Which layers a rule concerns: the trailing fully-connected head, all layers, or those named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter

from torchdfa.errors import ConversionError
from torchdfa.graph import Chain, Graph, is_layer
from torchdfa.layers import can_reroute
from torchdfa.probe import arguments_of, layer_inputs
from torchdfa.tracing import record, trace


@dataclass(frozen=True)
class Plan:
    """The layers of a conversion, by name.

    ``chains``: for each output, the layers in order of execution, the output layer (where the error is taken)
    last. ``cuts``: the layers that read a detached copy of their input, on which fixed feedback lands.
    ``widths``: the units of each cut layer's input. ``linear_chains``: the runs of fully-connected layers with
    nothing else between them, along which the product of Eq. 7 is defined. ``between``: other modules with parameters
    (norms, PReLU) between the layers of a head.
    """

    chains: tuple[tuple[str, ...], ...]
    cuts: tuple[str, ...]
    widths: dict[str, int]
    linear_chains: tuple[tuple[str, ...], ...]
    between: tuple[str, ...] = ()

    @property
    def outputs(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(chain[-1] for chain in self.chains))

    def outputs_of(self, name: str) -> list[str]:
        """The outputs whose error reaches the layer ``name``."""
        return [output for output in self.outputs if any(name in c for c in self.chains if c[-1] == output)]

    def earlier(self, name: str) -> tuple[str, ...]:
        """The cut layers that run before ``name``, in order."""
        before = [n for chain in self.chains if name in chain for n in chain[: chain.index(name)]]
        return tuple(n for n in dict.fromkeys(before) if n in self.cuts)

    def later(self, name: str) -> tuple[str, ...]:
        """The cut layers that run after ``name``."""
        after = [n for chain in self.chains if name in chain for n in chain[chain.index(name) + 1 :]]
        return tuple(n for n in dict.fromkeys(after) if n in self.cuts)

    def linear_path(self, name: str, output: str) -> tuple[str, ...] | None:
        """The fully-connected layers from ``name`` to ``output``, or None where something else lies between."""
        for chain in self.linear_chains:
            if name in chain and output in chain[chain.index(name) :]:
                return chain[chain.index(name) : chain.index(output) + 1]
        return None


def make_plan(
    model: nn.Module,
    *,
    head: str | None,
    layers: str | Sequence[str],
    boundary: str,
    error_at: str | None,
    example_input: Any,
) -> Plan:
    """Find the layers to convert; every doubt is a ``ConversionError`` that says what could be passed."""
    if head == "" or (head is not None and str(head) != head):  # "" is torch's name of the model itself
        raise ConversionError(f"head={head!r} must be the name of a submodule; {_candidates(model)}")
    if head is not None and layers != "head":
        raise ConversionError(f"head={head!r} and layers={layers!r} both choose layers; pass one of them.")
    if layers == "head":
        chains, cuts, between = _head(model, head, boundary, example_input)
        chains, cuts = _take_error_at(chains, cuts, error_at)
        linear_chains = chains
    else:
        chains, cuts, linear_chains = _chosen(model, layers, error_at, example_input)
        between = ()
    for name in dict.fromkeys(name for chain in chains for name in chain):
        _require_initialised(model, name)
    for name in dict.fromkeys([*cuts, *(chain[-1] for chain in chains)]):
        _require_convertible(model, name)
    return Plan(tuple(chains), tuple(cuts), _widths(model, cuts, example_input), tuple(linear_chains), between)


def _head(
    model: nn.Module, head: str | None, boundary: str, example_input: Any
) -> tuple[list[tuple[str, ...]], list[str], tuple[str, ...]]:
    found = _find_chains(model, head, example_input)
    if all(len(chain.names) == 1 for chain in found):
        name = found[0].names[0]
        raise ConversionError(
            f"the fully-connected head is one layer ({name!r}), so no hidden layer needs an error and there is "
            f"nothing to convert; pass layers=[{name!r}] to send fixed feedback to the layers before it, "
            'layers="all", or a head with hidden layers.'
        )
    cuts: dict[str, None] = {}
    for chain in found:
        direct = chain.has_trunk and boundary == "direct"
        cuts.update(dict.fromkeys(chain.names if direct else chain.names[1:]))
    return [chain.names for chain in found], list(cuts), tuple(name for chain in found for name in chain.between)


def _find_chains(model: nn.Module, head: str | None, example_input: Any) -> list[Chain]:
    scope = _submodule(model, head)
    if isinstance(scope, nn.Linear) and head is not None:
        return [Chain((head,), True)]
    graph = _graph(model, scope, example_input)
    chains = graph.chains()
    if not chains:
        raise ConversionError(_no_head_sentence(model, head))
    _require_single_calls(graph.calls(), [name for chain in chains for name in chain.names])
    if head is None:
        return chains
    return [Chain(_within(head, chain.names), True, _within(head, chain.between)) for chain in chains]


def _within(head: str, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(f"{head}.{name}" for name in names)


def _graph(model: nn.Module, scope: nn.Module, example_input: Any) -> Graph:
    """The graph of ``scope``, the model or its head: from its code, and where that cannot be read from the example."""
    try:
        return trace(scope)
    except Exception as error:  # a forward may raise anything when it is run on proxies
        reason = _first_line(error)
    if example_input is None:
        where = "the model" if scope is model else "head="
        raise ConversionError(
            f"how the layers of {where} follow each other cannot be read from its code ({reason}); pass one batch as "
            "example_input= to follow it through the model, or name a submodule that can be read by itself with head=."
        )
    args, kwargs = arguments_of(model, scope, example_input)
    try:
        return record(scope, args, kwargs)
    except Exception as error:
        raise ConversionError(
            f"how the layers follow each other cannot be seen, neither in the code ({reason}) nor along "
            f"example_input= ({_first_line(error)}); name a submodule that can be read by itself with head=."
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:120]}"


def _submodule(model: nn.Module, head: str | None) -> nn.Module:
    if head is None:
        return model
    try:
        return model.get_submodule(head)
    except AttributeError:
        raise ConversionError(f"head={head!r} is not a submodule of the model; {_candidates(model)}") from None


def _no_head_sentence(model: nn.Module, head: str | None) -> str:
    where = "the model" if head is None else f"head={head!r}"
    if not any(isinstance(m, nn.Linear) for m in model.modules()):
        return f"{where} has no fully-connected layer (nn.Linear), so there is no head to convert."
    return f"{where} does not end in fully-connected layers that follow each other; {_candidates(model)}"


def _candidates(model: nn.Module) -> str:
    linears = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    blocks = dict.fromkeys(n.rpartition(".")[0] for n in linears if "." in n)
    heads = f"head= may name one of: {', '.join(map(repr, list(blocks)[-8:]))}; " if blocks else ""
    return f"{heads}layers= may list any of: {', '.join(map(repr, linears[-8:])) or 'none'}."


def _take_error_at(
    chains: list[tuple[str, ...]], cuts: list[str], error_at: str | None
) -> tuple[list[tuple[str, ...]], list[str]]:
    if error_at is None:
        return chains, cuts
    kept = [chain[: chain.index(error_at) + 1] for chain in chains if error_at in chain]
    if not kept:
        names = sorted({name for chain in chains for name in chain})
        raise ConversionError(f"error_at={error_at!r} must be one of the converted layers: {names}.")
    return list(dict.fromkeys(kept)), [name for name in cuts if any(name in chain for chain in kept)]


def _chosen(
    model: nn.Module, layers: str | Sequence[str], error_at: str | None, example_input: Any
) -> tuple[list[tuple[str, ...]], list[str], list[tuple[str, ...]]]:
    graph = _graph(model, model, example_input)
    calls = graph.calls()
    order = list(dict.fromkeys(calls))
    if not order:
        raise ConversionError("the model has no Linear or convolution, so there is no layer to convert.")
    outputs = [error_at] if error_at else graph.last_layers()
    if error_at is not None and error_at not in order:
        raise ConversionError(f"error_at={error_at!r} is not a Linear or convolution of the model: {order[-8:]}.")
    chains = [tuple(graph.upstream(out)) for out in outputs]
    reachable = dict.fromkeys(name for chain in chains for name in chain)
    cuts = _chosen_names(model, layers, chains, reachable)
    _require_single_calls(calls, [*cuts, *outputs])
    if name := graph.bypassed(set(cuts)):
        raise ConversionError(
            f"a skip connection leads around {name!r}, so its feedback and the error of the layers after it would "
            "add up; leave it out of layers=, or convert the head only (layers='head')."
        )
    linear_chains = [chain.names for chain in graph.chains()]
    return chains, cuts, linear_chains


def _chosen_names(
    model: nn.Module, layers: Any, chains: list[tuple[str, ...]], reachable: dict[str, None]
) -> list[str]:
    if layers == "all":
        return [name for name in reachable if any(name in chain[1:] for chain in chains)]
    known = [name for name, module in model.named_modules() if is_layer(module)]
    if isinstance(layers, str) or not isinstance(layers, Collection) or not layers:
        raise ConversionError(f'layers={layers!r} must be "head", "all" or a list of layer names such as {known[-2:]}.')
    for name in layers:
        if name not in reachable:
            why = "has no path to where the error is taken" if name in known else "is not a Linear or convolution"
            raise ConversionError(f"layers names {name!r}, which {why}; it may list: {list(reachable)}.")
    return [name for name in reachable if name in set(layers)]


def _require_single_calls(calls: Sequence[str], names: Sequence[str]) -> None:
    times = Counter(calls)
    for name in names:
        if times[name] > 1:
            raise ConversionError(
                f"layer {name!r} is called {times[name]} times in one forward; feedback needs layers that are called "
                "once. Give each call its own layer, or convert a part that runs once with head= or layers=[...]."
            )


def _require_convertible(model: nn.Module, name: str) -> None:
    layer = model.get_submodule(name)
    if not can_reroute(layer):
        raise ConversionError(
            f"layer {name!r} is a {type(layer).__name__}; only torch.nn.Linear, Conv1d, Conv2d and Conv3d themselves "
            "can read feedback, not their subclasses or parametrized forms. Name other layers with layers=[...]."
        )
    _require_untied(model, name, layer)


def _require_initialised(model: nn.Module, name: str) -> None:
    if any(isinstance(p, UninitializedParameter) for p in model.get_submodule(name).parameters()):
        raise ConversionError(f"layer {name!r} has no weights yet (lazy module); run one forward before converting.")


def _require_untied(model: nn.Module, name: str, layer: nn.Module) -> None:
    own = {id(p) for p in layer.parameters(recurse=False)}
    for other, module in model.named_modules(remove_duplicate=False):
        if other != name and any(id(p) in own for p in module.parameters(recurse=False)):
            raise ConversionError(
                f"layers {name!r} and {other!r} share weights (weight tying), so no feedback can replace one alone; "
                "untie them, or leave them out with layers=[...] or head=."
            )


def _widths(model: nn.Module, cuts: Sequence[str], example_input: Any) -> dict[str, int]:
    widths = {n: m.in_features for n in cuts if isinstance(m := model.get_submodule(n), nn.Linear)}
    convs = [name for name in cuts if name not in widths]
    if not convs:
        return widths
    if example_input is None:
        raise ConversionError(
            f"feedback to the input of the convolution {convs[0]!r} has one weight for each (output unit, "
            "channel, row, column), so its shape depends on the input; pass one batch as example_input=."
        )
    shapes = dict(layer_inputs(model, example_input))
    for name in convs:
        size = 1
        for extent in shapes[name]:
            size *= extent
        widths[name] = size
    return widths
