"""SGD that updates each parameter within backward, so that no gradient is kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.sgd import sgd

from torchdfa.errors import ConversionError, RunError
from torchdfa.layers import FeedbackInBackwardLinear, FeedbackLinear
from torchdfa.updates import InBackwardLinear, Product, Update, find

_CLASSES: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: InBackwardLinear,
    FeedbackLinear: FeedbackInBackwardLinear,
}
_PLAIN = {ours: plain for plain, ours in _CLASSES.items()}
_NOT_OFFERED = {"dampening": 0, "maximize": False, "differentiable": False}


class InBackwardSGD(torch.optim.SGD):
    """``torch.optim.SGD`` whose updates are made by ``loss.backward()`` and whose gradients are never kept.

    A parameter is updated as soon as its gradient is complete, and ``.grad`` is None before and after. The gradient
    of a fully-connected layer's weight is not made at all: error^T x input is added to the momentum, or to the
    weight, by the matrix product itself. Updates equal those of ``torch.optim.SGD`` up to rounding, under every rule
    of ``convert_``, which may be called before or after.

    The loop stays as it was, ``step()`` included, and so do schedulers; ``state_dict`` is that of
    ``torch.optim.SGD``, and either loads the other's. Hyperparameters count as they are during backward. What needs
    a gradient after backward cannot be had: clipping, accumulation, ``GradScaler``, averaging over processes.

    ``torch.nn.Linear`` and its rerouted class become ``InBackwardLinear`` in place, until ``remove()``; all other
    parameters, and these layers under autocast or torch.compile, are updated from a gradient that lives for a moment.

    Args:
        model: the module whose layers and parameters learn.
        params: parameters, or groups of them, as for any optimizer; by default all of ``model``.
        lr: learning rate.
        momentum: momentum factor.
        weight_decay: L2 penalty.
        nesterov: Nesterov momentum.

    Raises:
        ConversionError: for a model, parameter or group that cannot be updated so; the sentence says why.
        RunError: in backward, where a parameter gets a second gradient before ``step()``; it keeps the first's update.
    """

    _step_supports_amp_scaling = True  # not so: step() says so, where GradScaler would say something else

    def __init__(
        self,
        model: nn.Module,
        params: Iterable[Tensor] | Iterable[dict[str, Any]] | None = None,
        *,
        lr: float | Tensor = 1e-3,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise ConversionError(f"model must be the torch.nn.Module that learns, found {type(model).__name__}.")
        _require_one_process(model)
        self.rounds = 0
        self._model: nn.Module | None = None  # until all groups have been accepted
        given: Any = model.parameters() if params is None else params
        super().__init__(given, lr, momentum, weight_decay=weight_decay, nesterov=nesterov)
        self._updates: list[Update] = []
        self._layers: list[nn.Module] = []
        self._model = model
        self._attach(range(len(self.param_groups)))

    def __getstate__(self) -> dict[str, Any]:
        """A copy belongs to no model: it is ``torch.optim.SGD`` with gradients."""
        return super().__getstate__() | {"rounds": 0, "_model": None, "_updates": [], "_layers": []}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As for any optimizer."""
        _require_offered(param_group)
        super().add_param_group(param_group)
        try:
            self._attach([len(self.param_groups) - 1])
        except ConversionError:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of this class or of ``torch.optim.SGD``."""
        for group in state_dict["param_groups"]:
            _require_offered(group)
        super().load_state_dict(state_dict)

    def remove(self) -> None:
        """End the updates in backward: layers are torch's again, gradients are kept, and ``step()`` takes them."""
        for update in self._updates:
            update.remove()
        for layer in self._layers:
            layer.__class__ = _PLAIN.get(type(layer), type(layer))
        self._model, self._updates, self._layers = None, [], []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Open the next round of updates; gradients that were set by hand are taken now."""
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._require_unscaled()
        for index, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self.update_(parameter, index, (), parameter.grad)
        self.rounds += 1
        return None if closure is None else loss

    @torch.no_grad()
    def update_(self, parameter: Tensor, group: int, products: Sequence[Product], gradient: Tensor | None) -> None:
        """Change a parameter by its gradient, the sum of the products and of ``gradient``."""
        chosen, state = self.param_groups[group], self.state[parameter]
        if products:
            _descend_(parameter, products, gradient, state, chosen)
            return
        assert gradient is not None
        buffers = [state.get("momentum_buffer")]
        given = {name: chosen[name] for name in ("lr", "momentum", "weight_decay", "nesterov")}
        sgd([parameter], [gradient], buffers, has_sparse_grad=gradient.is_sparse,
            foreach=False, fused=False, dampening=0, maximize=False, **given)  # fmt: skip
        if chosen["momentum"]:
            state["momentum_buffer"] = buffers[0]

    def _attach(self, groups: Iterable[int]) -> None:
        """Begin to update the parameters of these groups in backward."""
        if self._model is None:
            return
        names = {id(p): name for name, p in self._model.named_parameters()}
        found = [(p, names.get(id(p), "not of the model"), i) for i in groups for p in self.param_groups[i]["params"]]
        for parameter, name, _ in found:
            _require_plain(parameter, name)
        self._updates += [Update(self, parameter, name, index) for parameter, name, index in found]
        given = {id(parameter) for parameter, _, _ in found}
        layers = [m for m in self._model.modules() if type(m) in _CLASSES and id(m.weight) in given]
        for layer in layers:
            layer.__class__ = _CLASSES[type(layer)]
        self._layers += layers

    def _require_unscaled(self) -> None:
        if hasattr(self, "found_inf"):  # GradScaler.step sets it
            raise RunError(
                "GradScaler cannot be used with InBackwardSGD: backward has updated the weights with gradients times "
                "the loss scale, and nothing can undo that; load the weights again, and use bfloat16 without a scaler, "
                "or torch.optim.SGD."
            )


def _descend_(
    weight: Tensor, products: Sequence[Product], gradient: Tensor | None, state: dict[str, Any], group: dict[str, Any]
) -> None:
    """One step of SGD on a weight (out, in) whose gradient is the sum of the products and of ``gradient``.

    The equations of ``torch.optim.SGD``, ordered so that the gradient g is never made: m <- mu m + g + decay w, and
    w <- w - lr m. Nesterov's w <- w - lr (g + decay w + mu m) is written with the old and the new m instead of g.
    """
    lr, mu, decay = float(group["lr"]), group["momentum"], group["weight_decay"]
    if not mu:
        _add_products_(weight, products, 1 - lr * decay, -lr)
        if gradient is not None:
            weight.add_(gradient, alpha=-lr)
        return
    buffer, kept = state.get("momentum_buffer"), mu
    if buffer is None:
        buffer = state["momentum_buffer"] = torch.zeros_like(weight)
    if group["nesterov"]:
        weight.add_(buffer, alpha=lr * mu)
        kept = mu * (1 - lr * decay)  # because the weight that decays below has this share of the buffer in it
    _add_products_(buffer, products, kept, 1.0)
    if gradient is not None:
        buffer.add_(gradient)
    if decay:
        buffer.add_(weight, alpha=decay)
    weight.add_(buffer, alpha=-lr * (1 + mu) if group["nesterov"] else -lr)


def _add_products_(target: Tensor, products: Sequence[Product], kept: float, factor: float) -> None:
    """target <- kept * target + factor * (the sum of the products)."""
    for product in products:
        target.addmm_(product.error.t(), product.input, beta=kept, alpha=factor)
        kept = 1.0


def _require_one_process(model: nn.Module) -> None:
    wrapped = any(isinstance(m, (DataParallel, DistributedDataParallel)) for m in model.modules())
    if wrapped or (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        raise ConversionError(
            "InBackwardSGD is for one process: each would update its own copy of the weights before gradients are "
            "averaged (DDP, FSDP, DataParallel); use torch.optim.SGD."
        )


def _require_offered(group: dict[str, Any]) -> None:
    for name, value in _NOT_OFFERED.items():
        if group.get(name, value) != value:
            raise ConversionError(f"{name}={group[name]!r} is not offered by InBackwardSGD; use torch.optim.SGD.")


def _require_plain(parameter: Tensor, name: str) -> None:
    if type(parameter) not in (nn.Parameter, Tensor) or type(parameter.data) is not Tensor:
        raise ConversionError(
            f"parameter {name!r} is a {type(parameter.data).__name__} in a {type(parameter).__name__}; only plain "
            "tensors can be updated in backward (run one forward of a lazy module first; shard nothing)."
        )
    if find(parameter) is not None:
        raise ConversionError(
            f"parameter {name!r} is updated in backward by another InBackwardSGD already; call its remove() first."
        )
