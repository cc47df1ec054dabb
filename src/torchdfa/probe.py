"""What one forward of an example shows of a model: the shapes its layers read, and what a part is called with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn

from torchdfa.errors import ConversionError
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


class _Reached(Exception):
    """The forward got to the submodule in question; what follows is not needed."""


def arguments_of(model: nn.Module, part: nn.Module, example_input: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What ``part`` is called with in the forward of an example."""
    found: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.append((args, kwargs))
        raise _Reached

    hooks = [part.register_forward_pre_hook(record, with_kwargs=True)]
    with _evaluation(model, hooks), torch.no_grad(), suppress(_Reached):
        _call(model, example_input)
    if not found:
        raise ConversionError("the submodule that head= names is not called in the forward of example_input=.")
    return found[0]


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
