"""Automatic mixed precision: gradients stay near those of full precision, and the scaler finds overflow everywhere."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import gradients
from torchdfa import convert_

RULES = ["fa", "dfa", "bdfa", "frozen"]

cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def network(rule: str, device: str = "cpu") -> nn.Module:
    """Smooth activations: near a kink, rounding alone would change a gradient."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Tanh(), nn.Flatten(), nn.Linear(144, 32), nn.LayerNorm(32),
        nn.GELU(), nn.Linear(32, 24, bias=False), nn.Tanh(), nn.Linear(24, 5),
    )  # fmt: skip
    return convert_(model, rule, init="product").to(device)


def batch(device: str = "cpu") -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(16, 1, 8, 8, generator=generator), torch.arange(16) % 5
    return x.to(device), y.to(device)


def amp_loss(model: nn.Module, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    x, y = batch(device)
    with torch.autocast(device, dtype):
        return F.cross_entropy(model(x), y)


def assert_near(found: gradients.Gradients, expected: gradients.Gradients, relative: float) -> None:
    """In norm, tensor by tensor; a bias before batch norm has no gradient to compare."""
    for name, gradient in expected.items():
        other = found[name]
        assert (other is None) == (gradient is None), name
        if gradient is not None and other is not None and name != "0.bias":
            assert other.dtype == gradient.dtype == torch.float32
            assert float((other - gradient).norm() / gradient.norm()) < relative, name


def near_full_precision(rule: str, dtype: torch.dtype, relative: float, device: str = "cpu") -> None:
    model = network(rule, device)
    x, y = batch(device)
    full = gradients.of(model, F.cross_entropy(model(x), y))
    assert_near(gradients.of(model, amp_loss(model, dtype, device)), full, relative)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype, relative", [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_cpu_autocast(rule: str, dtype: torch.dtype, relative: float) -> None:
    near_full_precision(rule, dtype, relative)


@pytest.mark.parametrize("rule", RULES)
def test_backward_inside_the_autocast_context(rule: str) -> None:
    model = network(rule)
    x, y = batch()
    outside = gradients.of(model, amp_loss(model, torch.bfloat16))
    with torch.autocast("cpu", torch.bfloat16):
        gradients.assert_close(gradients.of(model, F.cross_entropy(model(x), y)), outside, rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("rule", RULES)
def test_a_part_in_full_precision(rule: str) -> None:
    """The usual exception: the last layer outside autocast. Its error is float32, the taps are bfloat16."""

    class FullOutput(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.out = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.tanh(self.fc2(torch.tanh(self.fc1(x))))
            with torch.autocast("cpu", enabled=False):
                return self.out(h.float())

    torch.manual_seed(0)
    model = convert_(FullOutput(), rule)
    x = torch.randn(8, 6)
    full = gradients.of(model, model(x).square().sum())
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).square().sum()
    assert_near(gradients.of(model, loss), full, 0.05)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rule", RULES)
def test_cpu_grad_scaler_unscales_every_gradient(rule: str, dtype: torch.dtype) -> None:
    model = network(rule)
    plain = gradients.of(model, amp_loss(model, dtype))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    optimizer.zero_grad()
    scaler.scale(amp_loss(model, dtype)).backward()
    scaler.unscale_(optimizer)
    assert_near(gradients.present(model), plain, 0.02)  # scaled, fewer errors are lost below the smallest float16


@pytest.mark.parametrize("rule", ["fa", "dfa", "bdfa"])
def test_cpu_grad_scaler_skips_a_step_that_overflows_in_feedback(rule: str) -> None:
    """An error that overflows float16 on its way through feedback is infinite, not clipped or lost."""
    model = network(rule)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    scaler.scale(amp_loss(model, torch.float16)).backward()
    assert not torch.isfinite(model[4].weight.grad).all()
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 2.0**23
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.parametrize("rule", RULES)
def test_model_in_bfloat16_altogether(rule: str) -> None:
    model = network(rule)
    x, y = batch()
    full = gradients.of(model, F.cross_entropy(model(x), y))
    model.bfloat16()
    found = gradients.of(model, F.cross_entropy(model(x.bfloat16()).float(), y))
    for name, gradient in full.items():
        if gradient is not None and name != "0.bias":
            assert found[name].dtype == torch.bfloat16
            assert float((found[name].float() - gradient).norm() / gradient.norm()) < 0.1, name


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("only", ["last", "before"])
def test_autocast_in_a_part_of_the_head(rule: str, only: str) -> None:
    """The output's error has another dtype than the layers to which it is sent."""

    def loss() -> Tensor:
        x, y = batch()
        with torch.autocast("cpu", torch.bfloat16, enabled=only == "before"):
            x = model[:-1](x)
        with torch.autocast("cpu", torch.bfloat16, enabled=only == "last"):
            return F.cross_entropy(model[-1](x if only == "last" else x.float()), y)

    model = network(rule)
    x, y = batch()
    full = gradients.of(model, F.cross_entropy(model(x), y))
    assert_near(gradients.of(model, loss()), full, 0.05)


@cuda
@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype, relative", [(torch.bfloat16, 0.05), (torch.float16, 0.01)])
def test_cuda_autocast(rule: str, dtype: torch.dtype, relative: float) -> None:
    near_full_precision(rule, dtype, relative, "cuda")


@cuda
@pytest.mark.gpu
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_cuda_grad_scaler(rule: str, dtype: torch.dtype) -> None:
    model = network(rule, "cuda")
    plain = gradients.of(model, amp_loss(model, dtype, "cuda"))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cuda", init_scale=256.0)
    optimizer.zero_grad()
    scaler.scale(amp_loss(model, dtype, "cuda")).backward()
    scaler.unscale_(optimizer)
    assert_near(gradients.present(model), plain, 0.02)
    scaler.step(optimizer)
    scaler.update()
    assert scaler.get_scale() == 256.0


@cuda
@pytest.mark.gpu
@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
def test_cuda_holds_nothing_and_asks_for_no_transfer() -> None:
    """A step has no point where the host waits for the device."""
    model = network("bdfa", "cuda")
    x, y = batch("cuda")
    F.cross_entropy(model(x), y).backward()
    model.zero_grad()
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.set_sync_debug_mode("error")
    try:
        F.cross_entropy(model(x), y).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    model.zero_grad()
    assert torch.cuda.memory_allocated() == held
