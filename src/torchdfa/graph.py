"""How a model's layers follow each other, read from the graph of its calls."""

from __future__ import annotations

from typing import NamedTuple

from torch import fx, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

LAYERS = (nn.Linear, _ConvNd)
# Layers with parameters of their own that leave a fully-connected chain a chain.
NORMS = (_NormBase,)
_TRANSPARENT = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.PReLU)
# Functions of one tensor after which a row is no longer a row: a chain ends there.
_MIXING = {
    "mean",
    "sum",
    "max",
    "min",
    "amax",
    "amin",
    "getitem",
    "select",
    "unbind",
    "chunk",
    "split",
    "transpose",
    "permute",
    "swapaxes",
    "swapdims",
    "movedim",
    "moveaxis",
    "t",
    "T",
    "mT",
    "H",
    "mH",
    "adjoint",
    "einsum",
    "flip",
    "fliplr",
    "flipud",
    "roll",
    "rot90",
    "sort",
    "gather",
    "index_select",
    "take",
    "take_along_dim",
    "expand",
    "repeat",
}


class Chain(NamedTuple):
    """Fully-connected layers from the first after the trunk to one output, by name, in order of execution.

    ``between``: other modules with parameters on the way, such as norms.
    """

    names: tuple[str, ...]
    has_trunk: bool
    between: tuple[str, ...] = ()


def is_layer(module: nn.Module) -> bool:
    """Whether the rules can concern this module: a linear map with weights."""
    return isinstance(module, LAYERS)


def own_parameters(module: nn.Module) -> bool:
    return next(module.parameters(recurse=False), None) is not None


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

    def learns(self, node: fx.Node) -> bool:
        """Whether ``node`` has parameters that a gradient can reach."""
        if is_stop(node):
            return False
        if node.op == "get_attr":
            return True
        return node.op == "call_module" and next(self.modules[str(node.target)].parameters(), None) is not None

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
                found[names] = Chain(names, has_trunk, self._between(names))
        # A returned intermediate (features beside logits) is no head of its own.
        inner = {names for names in found for other in found if names != other and names == other[: len(names)]}
        return [c for names, c in found.items() if names not in inner]

    def _walk(self, node: fx.Node) -> tuple[tuple[str, ...], bool]:
        names: list[str] = []
        while not is_stop(node):
            if node.op in ("placeholder", "get_attr") or self._ends_chain(node):
                return tuple(reversed(names)), node.op != "placeholder"
            if name := self.layer(node):
                names.append(name)
            inputs = data_inputs(node)
            if len(inputs) != 1:
                return tuple(reversed(names)), True
            node = inputs[0]
        return tuple(reversed(names)), False  # nothing learns beyond

    def _between(self, names: tuple[str, ...]) -> tuple[str, ...]:
        node = next(node for node in self.nodes if self.layer(node) == names[-1])
        found: list[str] = []
        while self.layer(node) != names[0]:
            node = data_inputs(node)[0]
            if node.op == "call_module" and self.layer(node) is None and own_parameters(self.modules[str(node.target)]):
                found.append(str(node.target))
        return tuple(found)

    def _ends_chain(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            if isinstance(module, (nn.Linear, *_TRANSPARENT)):
                return False
            return next(module.parameters(), None) is not None
        return function_name(node) in _MIXING

    def upstream(self, name: str) -> list[str]:
        """The layers that ``name`` depends on, in order of execution, itself last."""
        wanted = {node for node in self.nodes if self.layer(node) == name}
        for node in reversed(self.nodes):
            if node in wanted:
                wanted.update(data_inputs(node))
        return [n for node in self.nodes if node in wanted and not is_stop(node) and (n := self.layer(node))]

    def last_layers(self) -> list[str]:
        """The layers from which the returned tensors come without another layer between."""
        found: dict[str, None] = {}
        pending, seen = self.results(), set()
        while pending:
            node = pending.pop(0)
            if node in seen:
                continue
            seen.add(node)
            if not is_stop(node) and (name := self.layer(node)):
                found[name] = None
            else:
                pending.extend(data_inputs(node))
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
        return {node for node in self._before(end, cuts) if self.learns(node)}


def function_name(node: fx.Node) -> str:
    """The bare name of the function, method or attribute that ``node`` takes."""
    if node.op == "call_module":
        return ""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name == "getattr":
        name = str(node.args[1])
    elif name == "__get__":  # of a tensor's attribute
        name = getattr(getattr(node.target, "__self__", None), "__name__", "")
    return name.strip("_")


_SIZES = {"size", "dim", "numel", "ndimension", "stride", "shape", "ndim", "dtype", "device", "len"}


def is_size(node: fx.Node) -> bool:
    """Whether ``node`` is a number read off a tensor's shape, not data."""
    if function_name(node) in _SIZES:
        return True
    inputs = node.all_input_nodes
    return bool(inputs) and node.op == "call_function" and all(is_size(i) for i in inputs)


def is_stop(node: fx.Node) -> bool:
    """Whether no gradient goes back through ``node``: it detaches, or runs without gradients."""
    return bool(node.meta["no_grad"]) or function_name(node) in ("detach", "data")


def data_inputs(node: fx.Node) -> list[fx.Node]:
    """The inputs of ``node`` that carry data and to which a gradient goes back."""
    return [] if is_stop(node) else [i for i in node.all_input_nodes if not is_size(i)]
