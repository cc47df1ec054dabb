"""What a backward leaves in a model, for tests that compare two ways to get it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

Gradients = Mapping[str, "Tensor | None"]


def of(model: nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    """The gradients that ``loss.backward()`` alone leaves on the model's Parameters, by name."""
    model.zero_grad()
    loss.backward()
    return present(model)


def present(model: nn.Module) -> dict[str, Tensor | None]:
    """Copies of the gradients on the model's Parameters now, by name."""
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def assert_equal(found: Gradients, expected: Gradients) -> None:
    """Bit by bit."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        other = found[name]
        assert (other is None) == (gradient is None), name
        assert gradient is None or other is None or torch.equal(other, gradient), name


def assert_close(found: Gradients, expected: Gradients, rtol: float = 1e-9, atol: float = 1e-12) -> None:
    """To the rounding of float64, unless told otherwise."""
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        other = found[name]
        assert (other is None) == (gradient is None), name
        if gradient is not None and other is not None:
            torch.testing.assert_close(other, gradient, rtol=rtol, atol=atol, msg=lambda m, name=name: f"{name}: {m}")


def scaled(gradients: Gradients, factor: float) -> dict[str, Tensor | None]:
    return {name: None if g is None else g * factor for name, g in gradients.items()}


def added(first: Gradients, second: Gradients) -> dict[str, Tensor | None]:
    """The sum, where None is nothing."""
    sums: dict[str, Tensor | None] = {}
    for name, a in first.items():
        b = second[name]
        sums[name] = a if b is None else b if a is None else a + b
    return sums
