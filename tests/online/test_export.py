"""The update as a graph: written in torch, it is exported with its weights as buffers and changes them in place."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from online_cases import blobs, small


class Step(nn.Module):
    """One update of a head with one hidden layer by direct feedback, for devices that run exported programs."""

    def __init__(self, head) -> None:
        super().__init__()
        below, above = head.network_.layers
        for name, array in (("w1", below.weight), ("b1", below.bias), ("w2", above.weight), ("b2", above.bias)):
            self.register_buffer(name, torch.from_numpy(array.copy()))
        self.register_buffer("feedback", torch.from_numpy(above.sender.copy()))
        self.rate = head.learning_rate

    def forward(self, x, onehot):
        hidden = nn.functional.linear(x, self.w1, self.b1).relu()
        error = nn.functional.linear(hidden, self.w2, self.b2).softmax(1) - onehot
        sent = (error @ self.feedback) * (hidden > 0)
        for weight, bias, inputs, errors in ((self.w2, self.b2, hidden, error), (self.w1, self.b1, x, sent)):
            weight.addmm_(errors.T, inputs, alpha=-self.rate)
            bias.sub_(errors.sum(0), alpha=self.rate)
        return error


# torch's own, in run_decompositions
@pytest.mark.filterwarnings("ignore:.*LeafSpec:FutureWarning")
def test_an_exported_update_is_the_heads():
    x, y = blobs(60)
    head = small(rule="bdfa").partial_fit(x[:50], y[:50], classes=[0, 1, 2])
    step = Step(head)
    program = torch.export.export(step, (torch.zeros(1, 8), torch.zeros(1, 3)), strict=False)
    assert set(program.run_decompositions({}).graph_signature.buffers_to_mutate.values()) == {"w1", "b1", "w2", "b2"}
    module = program.module()
    for i in range(50, 60):
        _, scaled = head.scaler_.after(x[i : i + 1], np.ones(1))
        module(torch.from_numpy(scaled.astype(np.float32)), torch.eye(3)[y[i : i + 1]])
        head.partial_fit(x[i : i + 1], y[i : i + 1])
    for name, array in (("w1", head.network_.layers[0].weight), ("w2", head.network_.layers[1].weight)):
        np.testing.assert_allclose(module.get_buffer(name).numpy(), array, rtol=1e-4, atol=1e-6)
