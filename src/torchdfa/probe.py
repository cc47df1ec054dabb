"""What one forward of an example shows of a model: the shapes its layers read, and skip connections."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from torchdfa.graph import is_layer


def layer_inputs(model: nn.Module, example_input: Any) -> list[tuple[str, tuple[int, ...]]]:
    """Every call of a layer on ``example_input``, in order: its name, and the shape that it reads without the batch."""
    calls: list[tuple[str, tuple[int, ...]]] = []
    names = {module: name for name, module in model.named_modules() if is_layer(module)}

    def record(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
        x = args[0] if args else kwargs["input"]
        calls.append((names[module], tuple(x.shape[1:])))

    hooks = [module.register_forward_pre_hook(record, with_kwargs=True) for module in names]
    with _evaluation(model, hooks), torch.no_grad():
        _call(model, example_input)
    return calls


def bypassed(model: nn.Module, example_input: Any, cuts: Collection[str]) -> str | None:
    """``Graph.bypassed`` for a model that cannot be traced, from the autograd graph of one forward.

    Each cut layer reads a leaf. Where the same Parameter is behind a cut and behind something after it with no
    cut between, a skip connection leads around that cut.
    """
    behind: dict[str, set[Tensor]] = {}  # the leaves behind each cut's input
    leaves: dict[str, Tensor] = {}  # what each cut reads instead

    def cut(
        module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]
    ) -> tuple[tuple[Tensor], dict[str, Any]]:
        x = args[0] if args else kwargs["input"]
        behind[names[module]] = _leaves(x)
        leaves[names[module]] = x.detach().requires_grad_()
        return (leaves[names[module]],), {}

    names = {model.get_submodule(name): name for name in cuts}
    hooks = [module.register_forward_pre_hook(cut, with_kwargs=True) for module in names]
    with _evaluation(model, hooks), torch.enable_grad():
        results = [x for x in tree_leaves(_call(model, example_input)) if isinstance(x, Tensor)]
    parameters = set(model.parameters())
    ends = [*behind.values(), *map(_leaves, results)]
    for name, entry in behind.items():
        for end in ends:
            if end is not entry and name in _cuts_before(end, behind, leaves) and entry & end & parameters:
                return name
    return None


def _cuts_before(end: set[Tensor], behind: dict[str, set[Tensor]], leaves: dict[str, Tensor]) -> set[str]:
    found: set[str] = set()
    pending = [end]
    while pending:
        reached = pending.pop()
        new = {name for name, leaf in leaves.items() if leaf in reached} - found
        found |= new
        pending += [behind[name] for name in new]
    return found


def _leaves(tensor: Tensor) -> set[Tensor]:
    """The leaves of the autograd graph behind ``tensor``."""
    found: set[Tensor] = set()
    seen: set[Any] = set()
    pending = [tensor.grad_fn] if tensor.grad_fn else []
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(node.variable)
        pending += [parent for parent, _ in node.next_functions if parent is not None]
    return found


def _call(model: nn.Module, example_input: Any) -> Any:
    return model(*example_input) if isinstance(example_input, (tuple, list)) else model(example_input)


@contextmanager
def _evaluation(model: nn.Module, hooks: list[Any]) -> Iterator[None]:
    """Evaluation mode; afterwards training flags, buffers and random state are put back and ``hooks`` removed."""
    training = [module for module in model.modules() if module.training]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        model.eval()
        with torch.random.fork_rng(devices=[]):
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for module in training:
            module.training = True
        for buffer, before in buffers:
            buffer.copy_(before)
