"""How a model's layers follow each other, read from a symbolic trace.

The trace runs on a copy that shares the model's parameters, so nothing of the model is changed; arguments
after the first that have a default keep it. A model that cannot be traced (control flow on data) has no
graph; its layers are then taken in the order in which they were registered.
"""

from __future__ import annotations

import copy
import inspect
from typing import Any, NamedTuple

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

LAYERS = (nn.Linear, _ConvNd)
# Layers with parameters of their own that leave a fully-connected chain a chain.
_TRANSPARENT = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
# Functions of one tensor after which a row is no longer a row: a chain ends there.
_MIXING = {"mean", "sum", "max", "min", "amax", "amin", "getitem", "select", "unbind", "chunk", "split"}


class Chain(NamedTuple):
    """Fully-connected layers from the first after the trunk to one output, by name, in order of execution."""

    names: tuple[str, ...]
    has_trunk: bool


def is_layer(module: nn.Module) -> bool:
    """Whether the rules can concern this module: a linear map with weights."""
    return isinstance(module, LAYERS)


def own_parameters(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_layer(m) or super().is_leaf_module(m, module_qualified_name)


def trace(model: nn.Module) -> Graph | None:
    """The graph of ``model``, or None where it cannot be traced."""
    parameters: dict[int, Any] = {id(p): p for p in model.parameters()}
    try:
        twin = copy.deepcopy(model, parameters)
        arguments = list(inspect.signature(twin.forward).parameters.values())
        defaults = {a.name: a.default for a in arguments[1:] if a.default is not a.empty}
        with torch.random.fork_rng(devices=[]):
            return Graph(_Tracer().trace(twin, defaults or None), dict(twin.named_modules()))
    except Exception:  # a forward may raise anything when run on proxies; order of registration remains
        return None


class Graph:
    """The traced calls of a model, asked about its layers."""

    def __init__(self, graph: fx.Graph, modules: dict[str, nn.Module]):
        self.modules = modules
        self.nodes = list(graph.nodes)

    def layer(self, node: fx.Node) -> str | None:
        """The name of the Linear or convolution that ``node`` calls, or None."""
        if node.op == "call_module" and is_layer(self.modules[str(node.target)]):
            return str(node.target)
        return None

    def calls(self) -> list[str]:
        """Every call of a layer, in order of execution."""
        return [name for node in self.nodes if (name := self.layer(node))]

    def results(self) -> list[fx.Node]:
        """The tensors that the model returns."""
        return list(self.nodes[-1].all_input_nodes)

    def chains(self) -> list[Chain]:
        """One chain of fully-connected layers for each returned tensor that ends in one."""
        found: dict[tuple[str, ...], Chain] = {}
        for result in self.results():
            names, has_trunk = self._walk(result)
            if names:
                found[names] = Chain(names, has_trunk)
        # A returned intermediate (features beside logits) is no head of its own.
        inner = {names for names in found for other in found if names != other and names == other[: len(names)]}
        return [c for names, c in found.items() if names not in inner]

    def _walk(self, node: fx.Node) -> tuple[tuple[str, ...], bool]:
        names: list[str] = []
        while True:
            if node.op in ("placeholder", "get_attr") or self._ends_chain(node):
                return tuple(reversed(names)), node.op != "placeholder"
            if name := self.layer(node):
                names.append(name)
            inputs = data_inputs(node)
            if len(inputs) != 1:
                return tuple(reversed(names)), True
            node = inputs[0]

    def _ends_chain(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            if isinstance(module, (nn.Linear, *_TRANSPARENT)):
                return False
            return next(module.parameters(), None) is not None
        return function_name(node) in _MIXING

    def between(self, names: tuple[str, ...]) -> list[str]:
        """The modules with parameters, other than layers, on a chain from its first layer to its last."""
        node = next(node for node in self.nodes if self.layer(node) == names[-1])
        found: list[str] = []
        while self.layer(node) != names[0]:
            node = data_inputs(node)[0]
            if node.op == "call_module" and self.layer(node) is None and own_parameters(self.modules[str(node.target)]):
                found.append(str(node.target))
        return found

    def upstream(self, name: str) -> list[str]:
        """The layers that ``name`` depends on, in order of execution, itself last."""
        wanted = {node for node in self.nodes if self.layer(node) == name}
        for node in reversed(self.nodes):
            if node in wanted:
                wanted.update(node.all_input_nodes)
        return [layer for node in self.nodes if node in wanted and (layer := self.layer(node))]

    def last_layers(self) -> list[str]:
        """The layers from which the returned tensors come without another layer between."""
        found: dict[str, None] = {}
        pending, seen = self.results(), set()
        while pending:
            node = pending.pop(0)
            if node in seen:
                continue
            seen.add(node)
            if name := self.layer(node):
                found[name] = None
            else:
                pending.extend(node.all_input_nodes)
        return list(found)

    def bypassed(self, cuts: set[str]) -> str | None:
        """A cut layer around which a skip connection leads, or None.

        That is where the layers before the cut also reach something after it without passing a cut: their
        error would be the feedback plus what the skip carries back.
        """
        entries = {name: data_inputs(node)[0] for node in self.nodes if (name := self.layer(node)) in cuts}
        ends = [*dict.fromkeys([*entries.values(), *self.results()])]
        learning = {end: self._learning_before(end, cuts) for end in ends}
        behind = {end: {self.layer(node) for node in self._before(end, set())} for end in ends}
        for name, entry in entries.items():
            for end in ends:
                if end is not entry and name in behind[end] and learning[entry] & learning[end]:
                    return name
        return None

    def _before(self, end: fx.Node, cuts: set[str]) -> set[fx.Node]:
        """``end`` and the nodes it depends on, not looking past the layers in ``cuts``."""
        seen: set[fx.Node] = set()
        pending = [end]
        while pending:
            node = pending.pop()
            if node not in seen:
                seen.add(node)
                pending.extend(() if self.layer(node) in cuts else data_inputs(node))
        return seen

    def _learning_before(self, end: fx.Node, cuts: set[str]) -> set[fx.Node]:
        return {
            node
            for node in self._before(end, cuts)
            if node.op == "get_attr"
            or (node.op == "call_module" and next(self.modules[str(node.target)].parameters(), None) is not None)
        }


def function_name(node: fx.Node) -> str:
    """The bare name of the function or method that ``node`` calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")


def is_size(node: fx.Node) -> bool:
    """Whether ``node`` is a number read off a tensor's shape, not data."""
    name = function_name(node)
    if name in ("size", "dim", "numel", "ndimension", "stride"):
        return True
    if name == "getattr":
        return node.args[1] in ("shape", "ndim", "dtype", "device")
    inputs = node.all_input_nodes
    return bool(inputs) and node.op == "call_function" and all(is_size(i) for i in inputs)


def data_inputs(node: fx.Node) -> list[fx.Node]:
    """The inputs of ``node`` that carry data."""
    return [i for i in node.all_input_nodes if not is_size(i)]


def registered_chain(model: nn.Module) -> list[Chain]:
    """The trailing run of ``nn.Linear`` in order of registration, as one chain.

    Nothing tells how these layers are called, so only those of one parent whose widths fit are taken as a run.
    """
    run: list[tuple[str, nn.Linear]] = []
    has_trunk = False
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            if run and not _may_follow(*run[-1], name, module):
                run, has_trunk = [], True
            run.append((name, module))
        elif own_parameters(module) and not isinstance(module, _TRANSPARENT):
            run, has_trunk = [], True
    return [Chain(tuple(name for name, _ in run), has_trunk)] if run else []


def _may_follow(name: str, layer: nn.Linear, next_name: str, next_layer: nn.Linear) -> bool:
    return name.rpartition(".")[0] == next_name.rpartition(".")[0] and layer.out_features == next_layer.in_features


def registered_between(model: nn.Module, names: tuple[str, ...]) -> list[str]:
    """As ``Graph.between`` for a chain in order of registration; none where something else is registered within it."""
    owners = [name for name, module in model.named_modules() if own_parameters(module)]
    if names[0] not in owners or names[-1] not in owners:
        return []
    others = [n for n in owners[owners.index(names[0]) : owners.index(names[-1])] if n not in names]
    return others if all(isinstance(model.get_submodule(n), _TRANSPARENT) for n in others) else []
