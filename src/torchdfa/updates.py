"""Updates within backward: a parameter is updated at the moment when autograd has its whole gradient.

That moment is autograd's own, the one at which it would add to ``.grad``: everything that reads the parameter in this
backward has read it by then, however often the parameter is used. The gradient of an ``InBackwardLinear``'s weight is
not computed before: until then it is a list of products, error^T x input, which the update multiplies out in place.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol
from weakref import WeakValueDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from torchdfa.errors import RunError


class Product(NamedTuple):
    """A share of the gradient of a weight (out, in), error^T x input: (rows, out) and (rows, in)."""

    error: Tensor
    input: Tensor


class Products(list[Product]):
    """What one backward has of a weight's gradient so far. The graph's hook keeps it, so it ends with either."""


class Owner(Protocol):
    """What makes the updates."""

    rounds: int  # calls of step() so far

    def update_(self, parameter: Tensor, group: int, products: Sequence[Product], gradient: Tensor | None) -> None:
        """Change the parameter by its gradient, which is the sum of the products and of ``gradient``."""


class Update:
    """The updates of one parameter. Its owner keeps it alive, not the parameter: copies of a model have none."""

    def __init__(self, owner: Owner, parameter: Tensor, name: str, group: int) -> None:
        self.owner, self.parameter, self.name, self.group = ref(owner), parameter, name, group
        self.round = -1  # of the last update
        self.waiting: WeakValueDictionary[int, Products] = WeakValueDictionary()  # by the number of the backward
        self._handle = _hooked(parameter, partial(_accumulated, ref(self)))
        _UPDATES[id(parameter)] = self

    def remove(self) -> None:
        self._handle.remove()
        del _UPDATES[id(self.parameter)]

    def receive(self, accumulator: Any, product: Product) -> None:
        """Keep a share of the gradient until ``accumulator``, which adds to ``.grad``, has those of all other uses."""
        number = torch._C._current_graph_task_id()
        products = self.waiting.get(number)
        if products is None:
            products = self.waiting[number] = Products()
            self._make_after(accumulator, number, products)
        products.append(product)

    def _make_after(self, accumulator: Any, number: int, products: Products) -> None:
        # A hook of the node, because it runs without a gradient too; registered for this backward alone, because
        # Module.to may give the parameter another node.
        def finish(*_: Any) -> None:
            handle.remove()
            if number == torch._C._current_graph_task_id():  # else that backward broke off
                self.make(products)

        handle = accumulator.register_hook(finish)

    def make(self, products: Sequence[Product]) -> None:
        """Update the parameter, if there is a gradient in any form, and free it."""
        gradient, self.parameter.grad = self.parameter.grad, None
        owner = self.owner()
        if owner is None or (gradient is None and not products):
            return
        if self.round == owner.rounds:
            raise RunError(
                f"parameter {self.name!r} got a second gradient before step(): it has been updated with the first, so "
                "gradients cannot be accumulated, nor a backward repeated (retain_graph); call step() after each "
                "backward, add losses before it, or use torch.optim.SGD."
            )
        self.round = owner.rounds
        owner.update_(self.parameter, self.group, products, gradient)


# By id of the parameter, which the update keeps alive. Not an attribute: copies and pickles must not have it.
_UPDATES: WeakValueDictionary[int, Update] = WeakValueDictionary()


def find(parameter: Tensor) -> Update | None:
    """The updates of a parameter, if an optimizer makes them within backward."""
    return _UPDATES.get(id(parameter))


def _hooked(parameter: Tensor, hook: Any) -> Any:
    """Register a hook also where the parameter is frozen now; it runs if that ends."""
    frozen = not parameter.requires_grad
    try:
        return parameter.requires_grad_(True).register_post_accumulate_grad_hook(hook)
    finally:
        parameter.requires_grad_(not frozen)


def _accumulated(update: ref[Update], parameter: Tensor) -> None:
    found = update()
    if found is not None and torch._C._current_graph_task_id() not in found.waiting:  # else the node's hook follows
        found.make(())


class InBackwardLinear(nn.Linear):
    """``nn.Linear`` whose weight's gradient is multiplied out by its update, where there is one."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's own name)
        # A compiled model takes torch's own gradient, which the update finds in .grad.
        update = None if torch.compiler.is_compiling() else find(self.weight)
        if update is None or not _multiplied_out(input, self.weight):
            return super().forward(input)
        return _Linear.apply(input, self.weight, self.bias, ref(update))


def _multiplied_out(x: Tensor, weight: Tensor) -> bool:
    """Whether nobody but the update wants the gradient, and it is a product of what forward and backward have."""
    return (
        torch.is_grad_enabled()
        and weight.requires_grad
        and not weight._backward_hooks  # they are promised a gradient
        and x.layout is torch.strided
        and weight.is_floating_point()
        and not _autocasts(x.device.type)  # the product is of another dtype than the weight
        and not torch._C._are_functorch_transforms_active()
    )


def _autocasts(device: str) -> bool:
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


class _Linear(torch.autograd.Function):
    """``F.linear`` that gives the weight's gradient to its update, unmultiplied."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, update: ref[Update]) -> Tensor:
        # As torch does, the weight is kept, and its version checked, only where backward reads it.
        ctx.save_for_backward(x, weight if ctx.needs_input_grad[0] else None)
        ctx.update = update
        return F.linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        rows = error.reshape(-1, error.shape[-1])
        sent = None if weight is None else error @ weight
        product = Product(rows, x.reshape(-1, x.shape[-1]))
        of_bias = rows.sum(0) if ctx.needs_input_grad[2] else None
        return sent, _gradient(ctx.update(), ctx.next_functions[1][0], product), of_bias, None


def _gradient(update: Update | None, accumulator: Any, product: Product) -> Tensor | None:
    """The product itself for those who asked for it (torch.autograd.grad); None where its update has taken it."""
    try:
        accumulates = torch._C._will_engine_execute_node(accumulator)
    except RuntimeError:  # torch's answer where torch.autograd.grad was called with the weight
        accumulates, update = True, None
    if not accumulates:  # a backward towards other tensors alone
        return None
    if update is None:
        return product.error.t() @ product.input
    update.receive(accumulator, product)
    return None
