"""The products of matrices in a forward and a backward, counted: none that the rule does not need.

For a batch of B rows, a layer of n inputs and m outputs costs 2 B n m forward, 2 B n m for the gradient of its
weights, and 2 B n m again where the error goes back through its live weights. Feedback from K outputs to n units
costs 2 B K n.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from torchdfa import convert_

BATCH, N0, N1, N2, K = 8, 4 * 6 * 6, 32, 24, 5
WEIGHTS = 2 * BATCH * (N0 * N1 + N1 * N2 + N2 * K)
FIRST, SECOND, OUTPUT = (2 * BATCH * n for n in (N0 * N1, N1 * N2, N2 * K))


def feedback(*units: int) -> int:
    return 2 * BATCH * K * sum(units)


def head() -> list[nn.Module]:
    return [nn.Linear(N0, N1), nn.ReLU(), nn.Linear(N1, N2), nn.ReLU(), nn.Linear(N2, K)]


def cnn() -> nn.Sequential:
    trunk = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten())
    return nn.Sequential(trunk, nn.Sequential(*head()))


def counted(action: Any) -> tuple[int, Any]:
    with FlopCounterMode(display=False) as counter:
        result = action()
    return counter.get_total_flops(), result


def trunk_backward(model: nn.Sequential, x: Tensor) -> int:
    """What the convolutions cost once an error has reached their output."""
    features = model[0](x)
    return counted(lambda: features.backward(torch.ones_like(features)))[0]


CNN = [
    ("bp", "direct", WEIGHTS + FIRST + SECOND + OUTPUT),
    ("fa", "direct", WEIGHTS + FIRST + SECOND + OUTPUT),
    ("fa", "transpose", WEIGHTS + FIRST + SECOND + OUTPUT),
    ("dfa", "direct", WEIGHTS + feedback(N0, N1, N2)),
    ("dfa", "transpose", WEIGHTS + feedback(N1, N2) + FIRST),
    ("bdfa", "direct", WEIGHTS + feedback(N0, N1, N2)),
    ("bdfa", "transpose", WEIGHTS + feedback(N1, N2) + FIRST),
    ("frozen", "direct", OUTPUT + FIRST + SECOND + OUTPUT),  # the output layer's gradient, and the error's way back
]


@pytest.mark.parametrize("rule, boundary, expected", CNN)
def test_cnn(rule: str, boundary: Any, expected: int) -> None:
    torch.manual_seed(0)
    model = convert_(cnn(), rule, boundary=boundary)
    x = torch.randn(BATCH, 1, 10, 10)
    trunk = trunk_backward(model, x)
    forward, loss = counted(lambda: model(x).square().mean())
    assert forward == counted(lambda: cnn()(x))[0]
    assert counted(loss.backward)[0] == trunk + expected


@pytest.mark.parametrize(
    "rule, expected",
    [
        ("bp", WEIGHTS + SECOND + OUTPUT),
        ("fa", WEIGHTS + SECOND + OUTPUT),
        ("dfa", WEIGHTS + feedback(N1, N2)),
        ("bdfa", WEIGHTS + feedback(N1, N2)),
        ("frozen", OUTPUT),  # nothing before the output layer learns, so no error leaves it
    ],
)
def test_mlp(rule: str, expected: int) -> None:
    torch.manual_seed(0)
    model = convert_(nn.Sequential(*head()), rule)
    loss = model(torch.randn(BATCH, N0)).square().mean()
    assert counted(loss.backward)[0] == expected


def test_packed_signs_leave_the_weight_gradients_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The products with packed signs are no matmul of torch, so the counter sees everything but them."""
    monkeypatch.setattr("torchdfa.feedback.UNPACKED_LIMIT_BYTES", 0)
    torch.manual_seed(0)
    model = convert_(cnn(), "bdfa")
    assert all(model[1][i].feedback.signs is None for i in (0, 2, 4))
    x = torch.randn(BATCH, 1, 10, 10)
    trunk = trunk_backward(model, x)
    loss = model(x).square().mean()
    assert counted(loss.backward)[0] == trunk + WEIGHTS


def test_a_frozen_trunk_gets_no_error() -> None:
    torch.manual_seed(0)
    model = convert_(cnn(), "dfa")
    model[0].requires_grad_(False)
    loss = model(torch.randn(BATCH, 1, 10, 10)).square().mean()
    assert counted(loss.backward)[0] == WEIGHTS + feedback(N1, N2)


def test_a_hidden_layer_frozen_by_hand_has_no_gradient_to_compute() -> None:
    torch.manual_seed(0)
    model = convert_(nn.Sequential(*head()), "dfa")
    model[2].requires_grad_(False)
    loss = model(torch.randn(BATCH, N0)).square().mean()
    assert counted(loss.backward)[0] == FIRST + OUTPUT + feedback(N1)


def test_direct_feedback_to_every_layer() -> None:
    """No convolution passes an error to the one before it: each costs its weight gradient and one projection."""
    torch.manual_seed(0)
    x = torch.randn(BATCH, 1, 10, 10)
    model = convert_(cnn(), "dfa", layers="all", example_input=x)
    convolutions = 2 * BATCH * (8 * 8 * 3 * 9 + 6 * 6 * 4 * 3 * 9)
    loss = model(x).square().mean()
    assert counted(loss.backward)[0] == WEIGHTS + convolutions + feedback(3 * 8 * 8, N0, N1, N2)


def test_backprop_context_costs_what_backprop_costs() -> None:
    import torchdfa

    torch.manual_seed(0)
    model = convert_(nn.Sequential(*head()), "dfa")
    with torchdfa.backprop(model):
        loss = model(torch.randn(BATCH, N0)).square().mean()
    assert counted(loss.backward)[0] == WEIGHTS + SECOND + OUTPUT
