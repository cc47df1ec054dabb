"""The graph of a model: read from its code, or else recorded while an example runs through it.

Either works on a copy that shares the model's parameters, so nothing of the model is changed. A trace of the code knows
no value: a model with control flow on data has none. A recording has the path that the example takes.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from torchdfa.graph import NORMS, Graph, is_layer


def trace(model: nn.Module) -> Graph:
    """The graph read from the model's code; arguments after the first that have a default keep it.

    A forward may raise anything when it is run on proxies.
    """
    twin = _twin(model)
    arguments = list(inspect.signature(twin.forward).parameters.values())
    defaults = {a.name: a.default for a in arguments[1:] if a.default is not a.empty}
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        return Graph(_Tracer().trace(twin, defaults or None), dict(twin.named_modules()))


def record(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Graph:
    """The graph of the calls in ``model(*args, **kwargs)``. Raises what the model raises."""
    twin = _twin(model)
    for module in twin.modules():
        if isinstance(module, NORMS):
            module.eval()  # an example of one row has no statistics
    args, kwargs = tree_map(lambda x: x.detach().clone() if isinstance(x, Tensor) else x, (args, kwargs))
    with torch.random.fork_rng(devices=[]), torch.enable_grad(), _Recorder(twin) as recorder:
        recorder.add_inputs((args, kwargs))
        recorder.graph.output(tuple(recorder.inputs(twin(*args, **kwargs))))
    return Graph(recorder.graph, dict(twin.named_modules()))


def _twin(model: nn.Module) -> nn.Module:
    shared: dict[int, Any] = {id(p): p for p in model.parameters()}
    for module in model.modules():  # hooks of weight_norm and of pruning leave made weights, which nothing can copy
        shared |= {id(v): v for v in vars(module).values() if isinstance(v, Tensor) and not v.is_leaf}
    return copy.deepcopy(model, shared)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_layer(m) or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        return _noted(super().create_node(*args, **kwargs))


def _noted(node: fx.Node) -> fx.Node:
    node.meta["no_grad"] = node.op.startswith("call") and not torch.is_grad_enabled()
    return node


class _Recorder(TorchFunctionMode):
    """Notes which call made each tensor: those of torch's modules as one, all others by function."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.parameters = {id(p): name for name, p in model.named_parameters()}
        self.nodes: dict[int, fx.Node] = {}  # by identity of the tensor
        self.kept: list[Tensor] = []  # so that no identity comes twice
        self.depth = 0  # of calls of torch's modules
        for name, module in model.named_modules():
            if name and _Tracer().is_leaf_module(module, name):
                module.register_forward_pre_hook(self._enter)
                module.register_forward_hook(self._leave(name), with_kwargs=True)

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if self.depth:
            return result
        if isinstance(result, Iterator):
            result = list(result)
            self._add("call_function", func, (args, kwargs), result)
            return iter(result)
        # What returns nothing changes its first argument: x[0] = y.
        self._add("call_function", func, (args, kwargs), args[0] if result is None and args else result)
        return result

    def _enter(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.depth += 1

    def _leave(self, name: str) -> Callable[..., None]:
        def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            self.depth -= 1
            if not self.depth:
                self._add("call_module", name, (args, kwargs), output)

        return leave

    def add_inputs(self, arguments: Any) -> None:
        for tensor in _tensors(arguments):
            self._keep(tensor, self.graph.create_node("placeholder", "input"))

    def inputs(self, arguments: Any) -> list[fx.Node]:
        """The nodes of the tensors in ``arguments``; constants have none."""
        return [node for tensor in _tensors(arguments) if (node := self._node(tensor)) is not None]

    def _node(self, tensor: Tensor) -> fx.Node | None:
        if id(tensor) not in self.nodes and id(tensor) in self.parameters:
            self._keep(tensor, self.graph.create_node("get_attr", self.parameters[id(tensor)]))
        node = self.nodes.get(id(tensor))
        if tensor.grad_fn is not None and (node is None or node.meta["no_grad"]):
            raise TypeError(f"a tensor is made by {tensor.grad_fn.name()}, which cannot be followed")
        return node

    def _add(self, kind: str, target: Any, arguments: Any, result: Any) -> None:
        if tensors := _tensors(result):
            node = self.graph.create_node(kind, target, tuple(self.inputs(arguments)), name="call")
            for tensor in tensors:
                if tensor.grad_fn is None or torch.is_grad_enabled():  # else it is an input, passed on or written to
                    self._keep(tensor, node)

    def _keep(self, tensor: Tensor, node: fx.Node) -> None:
        self.nodes[id(tensor)] = _noted(node)
        self.kept.append(tensor)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]
