"""Updates within backward equal those of torch.optim.SGD in float64, and what cannot be is refused by name."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

import cases
import torchdfa
from live_memory import LiveMemory
from torchdfa import ConversionError, InBackwardSGD, RunError, convert_, restore_
from torchdfa.layers import FeedbackInBackwardLinear, FeedbackLinear
from torchdfa.optim import _descend_
from torchdfa.updates import InBackwardLinear, Product

SETTINGS: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1},
    {"momentum": 0.9},
    {"momentum": 0.9, "weight_decay": 0.1},
    {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True},
]
RULES = ["bp", "fa", "dfa", "bdfa", "frozen"]


def batch(seed: int = 0, size: int = 6) -> tuple[Tensor, Tensor]:
    x, y = cases.batch(size, seed)
    return x.double(), y


def loss_of(model: nn.Module, seed: int = 0) -> Tensor:
    x, y = batch(seed)
    return F.cross_entropy(model(x), y)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[[nn.Module, int], Tensor], i: int) -> None:
    optimizer.zero_grad()
    loss(model, i).backward()
    if isinstance(optimizer, InBackwardSGD):
        assert all(p.grad is None for p in model.parameters())
    optimizer.step()


def assert_equal_weights(model: nn.Module, other: nn.Module, tolerance: float = 1e-12) -> None:
    for (name, p), q in zip(model.named_parameters(), other.parameters(), strict=True):
        assert float((p - q).detach().norm()) <= tolerance * float(q.detach().norm()), name


def assert_equals_sgd(
    model: nn.Module,
    loss: Callable[[nn.Module, int], Tensor] = loss_of,
    steps: int = 6,
    tolerance: float = 1e-12,
    **arguments: Any,
) -> InBackwardSGD:
    """Train ``model`` and a copy of it with torch's optimizer, by the same losses; at the end they are the same."""
    arguments = {"lr": 0.05} | (arguments or {"momentum": 0.9, "weight_decay": 0.01})
    twin = copy.deepcopy(model)
    before = [p.detach().clone() for p in model.parameters()]
    ours, theirs = InBackwardSGD(model, **arguments), torch.optim.SGD(twin.parameters(), **arguments)
    for i in range(steps):
        step(model, ours, loss, i)
        step(twin, theirs, loss, i)
    assert any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert_equal_weights(model, twin, tolerance)
    return ours


@pytest.fixture
def model() -> nn.Module:
    return cases.make("vgg").double()


@pytest.mark.parametrize("arguments", SETTINGS, ids=lambda a: "-".join(a) or "plain")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["vgg", "mlp"])
def test_equals_sgd(name: str, rule: str, arguments: dict[str, Any]) -> None:
    assert_equals_sgd(convert_(cases.make(name).double(), rule), steps=20, **{"lr": 0.05} | arguments)


@pytest.mark.parametrize("boundary", ["direct", "transpose"])
@pytest.mark.parametrize("init", ["random", "product"])
@pytest.mark.parametrize("rule", ["fa", "dfa", "bdfa"])
def test_equals_sgd_with_every_feedback(rule: str, init: Any, boundary: Any) -> None:
    """Product feedback and live transposed weights depend on weights that are updated as backward goes."""
    assert_equals_sgd(convert_(cases.make("vgg").double(), rule, init=init, boundary=boundary))


@pytest.mark.parametrize("name", list(cases.MODELS))
def test_equals_sgd_for_every_model(name: str) -> None:
    assert_equals_sgd(convert_(cases.make(name).double(), "bdfa", example_input=batch()[0]))


def test_equals_sgd_with_feedback_to_every_layer() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5)).double()
    assert_equals_sgd(convert_(model, "dfa", layers="all", example_input=batch()[0]))


@given(
    lr=st.floats(0, 1),
    mu=st.floats(0, 0.999),
    decay=st.floats(0, 1),
    nesterov=st.booleans(),
    rows=st.lists(st.integers(0, 3), min_size=1, max_size=3),
    dense=st.booleans(),
    steps=st.integers(1, 4),
)
@settings(deadline=None, max_examples=60)
def test_steps_are_those_of_the_written_out_equations(
    lr: float, mu: float, decay: float, nesterov: bool, rows: list[int], dense: bool, steps: int
) -> None:
    """g <- g + decay w; m <- mu m + g; w <- w - lr (g + mu m if Nesterov else m), on lists of numbers."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weight, state = drawn(2, 3), {}
    group = {"lr": lr, "momentum": mu, "weight_decay": decay, "nesterov": nesterov and mu > 0}
    w, m = weight.flatten().tolist(), [0.0] * 6
    for _ in range(steps):
        products = [Product(drawn(n, 2), drawn(n, 3)) for n in rows]
        gradient = drawn(2, 3) if dense else None
        for i in range(6):
            out, into = divmod(i, 3)
            g = 0.0 if gradient is None else float(gradient[out, into])
            g += sum(float(e[out]) * float(x[into]) for p in products for e, x in zip(p.error, p.input, strict=True))
            g += decay * w[i]
            m[i] = mu * m[i] + g
            w[i] -= lr * (g + mu * m[i] if group["nesterov"] else m[i])
        _descend_(weight, products, gradient, state, group)
    torch.testing.assert_close(weight, torch.tensor(w, dtype=torch.float64).view(2, 3), rtol=1e-11, atol=1e-12)


def test_schedulers_and_groups() -> None:
    model = cases.make("vgg").double()
    twin = copy.deepcopy(model)

    def groups(of: nn.Module) -> list[dict[str, Any]]:
        return [
            {"params": of.features.parameters(), "lr": 0.01, "momentum": 0.5},
            {"params": [p for n, p in of.classifier.named_parameters() if "weight" in n], "weight_decay": 0.1},
        ]

    ours = InBackwardSGD(model, groups(model), lr=0.1, momentum=0.9)
    theirs = torch.optim.SGD(groups(twin), lr=0.1, momentum=0.9)
    for optimizer, of in ((ours, model), (theirs, twin)):
        biases = [p for n, p in of.classifier.named_parameters() if "bias" in n]
        optimizer.add_param_group({"params": biases, "lr": 0.2, "nesterov": True})
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
        for i in range(8):
            step(of, optimizer, loss_of, i)
            schedule.step()
    assert_equal_weights(model, twin)
    assert ours.param_groups[2]["lr"] == theirs.param_groups[2]["lr"] < 0.05


def test_a_group_added_later_has_its_layers_updated_by_products() -> None:
    model = cases.mlp().double()
    optimizer = InBackwardSGD(model, model[1].parameters(), lr=0.1)
    assert kinds(model) == [InBackwardLinear, nn.Linear, nn.Linear]
    optimizer.add_param_group({"params": model[3].parameters()})
    assert kinds(model) == [InBackwardLinear, InBackwardLinear, nn.Linear]
    other = InBackwardSGD(model, model[5].parameters(), lr=0.1)
    for group in ({"params": model[5].parameters()}, {"params": [torch.zeros(2)], "maximize": True}):
        with pytest.raises(ConversionError, match=r"'5.weight' is updated .* another|maximize=True is not offered"):
            optimizer.add_param_group(group)
        assert len(optimizer.param_groups) == 2
    loss_of(model).backward()
    assert all(p.grad is None for p in model.parameters())
    other.remove()


@pytest.mark.parametrize("first", [InBackwardSGD, torch.optim.SGD])
def test_state_is_that_of_sgd_and_either_loads_the_others(first: type) -> None:
    def made(kind: type, model: nn.Module) -> torch.optim.Optimizer:
        return kind(model if kind is InBackwardSGD else model.parameters(), lr=0.05, momentum=0.9, nesterov=True)

    model = convert_(cases.make("vgg").double(), "bdfa")
    reference = copy.deepcopy(model)
    second = torch.optim.SGD if first is InBackwardSGD else InBackwardSGD
    sgd = made(torch.optim.SGD, reference)
    for i in range(6):
        step(reference, sgd, loss_of, i)
    optimizer = made(first, model)
    for i in range(3):
        step(model, optimizer, loss_of, i)
    saved = io.BytesIO()
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, saved)
    saved.seek(0)
    states = torch.load(saved, weights_only=True)
    model = convert_(cases.make("vgg", seed=5).double(), "bdfa")
    optimizer = made(second, model)
    model.load_state_dict(states["model"])
    optimizer.load_state_dict(states["optimizer"])
    for i in range(3, 6):
        step(model, optimizer, loss_of, i)
    assert_equal_weights(model, reference)


def allocated(run: Callable[[], Any]) -> list[tuple[int, ...]]:
    """Shapes of all tensors that operations made while ``run`` ran, views and in-place results left out."""
    made: list[tuple[int, ...]] = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            known = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
            output = func(*args, **(kwargs or {}))
            new = [x for x in tree_leaves(output) if isinstance(x, Tensor)]
            made.extend(tuple(x.shape) for x in new if x.untyped_storage()._cdata not in known)
            return output

    with Watch():
        run()
    return made


@pytest.mark.parametrize("arguments", SETTINGS, ids=lambda a: "-".join(a) or "plain")
@pytest.mark.parametrize("rule", ["bp", "dfa"])
def test_no_gradient_of_a_weight_is_ever_made(rule: str, arguments: dict[str, Any]) -> None:
    model = convert_(nn.Sequential(nn.Linear(7, 11), nn.ReLU(), nn.Linear(11, 13), nn.ReLU(), nn.Linear(13, 3)), rule)
    x, y = torch.randn(5, 7), torch.arange(5) % 3
    weights = {tuple(p.shape) for n, p in model.named_parameters() if "weight" in n}
    gradients = allocated(lambda: F.cross_entropy(model(x), y).backward())
    assert weights <= {*gradients, *(shape[::-1] for shape in gradients)}  # with torch's own they are seen
    model.zero_grad()
    optimizer = InBackwardSGD(model, lr=0.1, **arguments)
    for _ in range(2):  # the first makes momentum
        made = allocated(lambda: F.cross_entropy(model(x), y).backward())
        optimizer.step()
    assert made
    assert not weights & {*made, *(shape[::-1] for shape in made)}


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "bdfa"])
def test_a_step_leaves_as_much_memory_as_it_found_and_its_peak_lacks_the_gradients(rule: str) -> None:
    rest, peak = {}, {}
    for kind in ("sgd", "in backward"):
        torch.manual_seed(0)
        layers = [nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)]
        model = convert_(nn.Sequential(*layers), rule)
        optimizer = (
            InBackwardSGD(model, lr=0.1, momentum=0.9)
            if kind == "in backward"
            else torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        )
        x, y = torch.randn(16, 64), torch.arange(16) % 10
        for _ in range(3):  # the first makes momentum, and imports parts of torch
            with LiveMemory() as memory:
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                rest[kind] = memory.now()
                optimizer.zero_grad()
        peak[kind] = memory.peak
    weights = 4 * (64 * 256 + 256 * 256 + 256 * 10)
    assert rest["in backward"] == 0
    assert rest["sgd"] >= weights
    assert peak["sgd"] - peak["in backward"] > 0.8 * weights


# What else may be done with a weight


class Uses(nn.Module):
    """Two layers of 8 to 8 with further uses of their weights, one way for each ``kind``."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.kind, self.flatten = kind, nn.Flatten()
        self.a, self.b, self.c = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.d, self.table = nn.Linear(8, 8), nn.Embedding(8, 8)
        if kind == "tied layers":
            self.d.weight = self.b.weight
        if kind == "tied embedding":
            self.b.weight = self.table.weight
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        h = self.b(torch.tanh(self.a(self.flatten(x))))
        if self.kind == "called twice":
            h = self.b(torch.tanh(h))
        if self.kind == "tied layers":
            h = self.d(torch.tanh(h))
        if self.kind == "tied embedding":
            h = h + self.table(torch.arange(len(x)))
        if self.kind == "used by hand":
            h = h @ self.b.weight
        if self.kind == "rows of rows":
            h = self.d(h.view(len(x), 2, 4).repeat(1, 1, 2).transpose(0, 1)).sum(0)
        if self.kind == "one row":
            h = h + self.d(h[0])
        if self.kind == "no rows":
            h = h + self.d(h[:0]).sum()
        return self.c(torch.tanh(h))


KINDS = ["once", "called twice", "tied layers", "tied embedding", "used by hand", "rows of rows", "one row", "no rows"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_use_of_a_weight_counts(kind: str) -> None:
    for nesterov in (False, True):
        assert_equals_sgd(Uses(kind), lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    assert_equals_sgd(Uses(kind), lr=0.05, weight_decay=0.1)


def test_penalties_on_weights_and_on_gradients() -> None:
    def loss(model: nn.Module, i: int) -> Tensor:
        x, y = batch(i)
        x.requires_grad_()
        first = F.cross_entropy(model(x), y)
        (slope,) = torch.autograd.grad(first, x, create_graph=True)
        return first + slope.square().sum() + 0.1 * sum(p.square().sum() for p in model.parameters())

    assert_equals_sgd(Uses("called twice"), loss)


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_activation_checkpointing(reentrant: bool, rule: str) -> None:
    def loss(model: nn.Module, i: int) -> Tensor:
        x, y = batch(i)
        hidden = checkpoint(model.features, x.requires_grad_(), use_reentrant=reentrant).flatten(1)
        return F.cross_entropy(checkpoint(model.classifier, hidden, use_reentrant=reentrant), y)

    assert_equals_sgd(convert_(cases.make("vgg").double().eval(), rule), loss)


def test_several_forwards_and_losses_of_one_backward(model: nn.Module) -> None:
    def loss(model: nn.Module, i: int) -> Tensor:
        with torch.no_grad():
            model(batch(7)[0])
        first = loss_of(model, i)
        with torch.inference_mode():
            model(batch(8)[0])
        return first + 0.5 * loss_of(model, i + 1)

    assert_equals_sgd(convert_(model, "dfa"), loss)


def test_a_transformer_layer() -> None:
    """Attention reads its projections' weights itself; the two fully-connected layers are multiplied out."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double()
    optimizer = assert_equals_sgd(model, lambda m, i: m(batch(i)[0].flatten(1).view(6, 8, 8)).square().mean())
    assert [type(m).__name__ for m in optimizer._layers] == ["InBackwardLinear"] * 2


def test_modules_converted_to_another_dtype_or_memory_format_afterwards() -> None:
    model = cases.make("vgg")
    optimizer = InBackwardSGD(model, lr=0.05, momentum=0.9)
    model.double().to(memory_format=torch.channels_last)
    twin = cases.make("vgg").double()
    theirs = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    for i in range(3):
        step(model, optimizer, loss_of, i)
        step(twin, theirs, loss_of, i)
    assert_equal_weights(model, twin)


def test_autocast_equals_sgd_bit_by_bit() -> None:
    def loss(model: nn.Module, i: int) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return F.cross_entropy(model(batch(i)[0].float()), batch(i)[1])

    assert_equals_sgd(convert_(cases.make("vgg"), "bdfa"), loss, tolerance=0.0)


def test_weights_of_lower_precision() -> None:
    """No gradient is rounded to bfloat16, so that it is closer to float64 than torch.optim.SGD, if anything."""
    model = cases.mlp().bfloat16()
    assert_equals_sgd(model, lambda m, i: F.cross_entropy(m(batch(i)[0].bfloat16()), batch(i)[1]), tolerance=0.02)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
@pytest.mark.parametrize("rule", ["bp", "dfa"])
def test_a_compiled_model_is_updated_from_gradients_that_are_not_kept(rule: str) -> None:
    torch.compiler.reset()
    model = convert_(cases.mlp().double(), rule)
    twin = copy.deepcopy(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    ours = InBackwardSGD(model, lr=0.05, momentum=0.9)
    theirs = torch.optim.SGD(twin.parameters(), lr=0.05, momentum=0.9)
    for i in range(3):
        step(compiled, ours, loss_of, i)
        step(twin, theirs, loss_of, i)
    assert_equal_weights(model, twin)
    torch.compiler.reset()


def test_frozen_parameters_stay_and_learn_once_they_are_thawed(model: nn.Module) -> None:
    frozen = [*model.classifier[0].parameters(), *model.features.parameters()]

    def loss(model: nn.Module, i: int) -> Tensor:
        for p in (*model.classifier[0].parameters(), *model.features.parameters()):
            p.requires_grad_(i >= 3)
        return loss_of(model, i)

    for p in frozen:
        p.requires_grad_(False)
    before = [p.detach().clone() for p in frozen]
    assert_equals_sgd(copy.deepcopy(model), loss)
    optimizer = InBackwardSGD(model, lr=0.05, weight_decay=0.1)
    assert not any(p.requires_grad for p in frozen)
    step(model, optimizer, loss_of, 0)
    assert all(torch.equal(p, b) for p, b in zip(frozen, before, strict=True))


def test_sparse_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Linear(4, 3)).double()
    assert_equals_sgd(
        model, lambda m, i: F.cross_entropy(m(torch.arange(5) + i % 3), torch.arange(5) % 3), momentum=0.9
    )


def test_hooks_on_a_weight_get_a_gradient(model: nn.Module) -> None:
    def loss(model: nn.Module, i: int) -> Tensor:
        if not model.classifier[3].weight._backward_hooks:
            model.classifier[3].weight.register_hook(lambda g: g * (g > 0))
        return loss_of(model, i)

    assert_equals_sgd(model, loss)


def test_post_accumulate_hooks_find_no_gradient(model: nn.Module) -> None:
    _optimizer = InBackwardSGD(model, lr=0.05)
    seen = []
    for parameter in (model.classifier[3].weight, model.classifier[3].bias):
        parameter.register_post_accumulate_grad_hook(lambda p: seen.append(p.grad))
    loss_of(model).backward()
    assert seen == [None, None]


@pytest.mark.parametrize("frozen", [True, False])
def test_a_loss_through_another_model_updates_that_too_unless_it_is_frozen(frozen: bool) -> None:
    torch.manual_seed(0)
    critic, maker = nn.Linear(4, 1), nn.Linear(2, 4)
    of_critic, of_maker = InBackwardSGD(critic, lr=0.1), InBackwardSGD(maker, lr=0.1)
    before, made = critic.weight.detach().clone(), maker.weight.detach().clone()
    critic.requires_grad_(not frozen)
    critic(maker(torch.ones(3, 2))).sum().backward()
    of_maker.step()
    critic.requires_grad_(True)
    assert not torch.equal(maker.weight, made)
    assert torch.equal(critic.weight, before) == frozen
    with nullcontext() if frozen else pytest.raises(RunError, match="second gradient"):
        critic(torch.ones(3, 4)).sum().backward()
        of_critic.step()
        assert not torch.equal(critic.weight, before)


def test_steps_with_a_closure_and_gradients_set_by_hand(model: nn.Module) -> None:
    twin = copy.deepcopy(model)
    ours, theirs = InBackwardSGD(model, lr=0.05), torch.optim.SGD(twin.parameters(), lr=0.05)
    for of, optimizer in ((model, ours), (twin, theirs)):

        def closure(of: nn.Module = of, optimizer: Any = optimizer) -> Tensor:
            optimizer.zero_grad()
            loss = loss_of(of)
            loss.backward()
            return loss

        assert torch.equal(optimizer.step(closure), loss_of(cases.make("vgg").double()))
        optimizer.zero_grad()
        of.features[0].weight.grad = torch.ones_like(of.features[0].weight)
        optimizer.step()
    assert_equal_weights(model, twin)


# What asks for gradients gets them, and updates nothing


@pytest.fixture
def watched(model: nn.Module) -> Iterator[nn.Module]:
    """A model under an optimizer; after the test its weights are what they were."""
    convert_(model, "dfa")
    optimizer = InBackwardSGD(model, lr=0.5, momentum=0.9)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    yield model
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())
    assert not any(update.waiting for update in optimizer._updates)
    step(model, optimizer, loss_of, 0)
    assert not torch.equal(model.classifier[5].weight, before["classifier.5.weight"])


def true_gradients(inputs: Callable[[nn.Module], list[Tensor]]) -> tuple[Tensor | None, ...]:
    plain = convert_(cases.make("vgg").double(), "dfa")
    return torch.autograd.grad(loss_of(plain), inputs(plain))


def test_gradients_that_are_returned(watched: nn.Module) -> None:
    found = torch.autograd.grad(loss_of(watched), list(watched.parameters()))
    for g, true in zip(found, true_gradients(lambda m: list(m.parameters())), strict=True):
        torch.testing.assert_close(g, true, rtol=1e-12, atol=1e-14)


def test_gradients_of_the_input_alone(watched: nn.Module) -> None:
    x, y = batch()
    x.requires_grad_()
    torch.autograd.grad(F.cross_entropy(watched(x), y), x)
    F.cross_entropy(watched(x), y).backward(inputs=[x])
    with torchdfa.backprop(watched):
        torch.autograd.grad(F.cross_entropy(watched(x), y), x)


def test_diagnostics(watched: nn.Module) -> None:
    plain = convert_(cases.make("vgg").double(), "dfa")
    found = torchdfa.diagnostics.measure(watched, lambda: loss_of(watched))
    assert found.to_dict() == torchdfa.diagnostics.measure(plain, lambda: loss_of(plain)).to_dict()


def test_torch_func(watched: nn.Module) -> None:
    watched.eval()
    x, y = batch()
    parameters = dict(watched.named_parameters())
    detached = {name: p.detach() for name, p in parameters.items()}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(torch.func.functional_call(watched, parameters, (x,)), y)

    found = torch.func.grad(loss)(detached, x, y)
    true = torch.autograd.grad(loss_of(watched), list(parameters.values()))
    for g, t in zip(found.values(), true, strict=True):
        torch.testing.assert_close(g, t)
    torch.func.grad(lambda x: F.cross_entropy(watched(x), y))(x)
    torch.func.vmap(lambda x: watched(x[None]))(x)
    watched.train()


def test_a_copy_of_the_model_is_not_updated(watched: nn.Module) -> None:
    for twin in (copy.deepcopy(watched), pickle.loads(pickle.dumps(watched))):
        before = copy.deepcopy(twin.state_dict())
        loss_of(twin).backward()
        assert all(torch.equal(p, before[name]) for name, p in twin.named_parameters())
        assert all(p.grad is not None for p in twin.parameters())


def test_a_copy_of_model_and_optimizer_is_sgd_with_gradients(model: nn.Module) -> None:
    optimizer = InBackwardSGD(model, lr=0.05, momentum=0.9)
    step(model, optimizer, loss_of, 0)
    pairs = [(model, optimizer), copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    for of, by in pairs:
        step(of, by, loss_of, 1) if by is optimizer else kept_gradients(of, by)
    for of, _ in pairs[1:]:
        assert_equal_weights(of, model)


def kept_gradients(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss_of(model, 1).backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()


# Layers and life time


def kinds(model: nn.Module) -> list[type]:
    return [type(model[i]) for i in (1, 3, 5)]


@pytest.mark.parametrize("convert_first", [True, False])
def test_converts_and_restores_in_either_order(convert_first: bool) -> None:
    model, twin = cases.mlp().double(), None
    if convert_first:
        convert_(model, "dfa")
        optimizer = InBackwardSGD(model, lr=0.05)
    else:
        optimizer = InBackwardSGD(model, lr=0.05)
        convert_(model, "dfa")
    assert kinds(model) == [FeedbackInBackwardLinear] * 3
    assert "sends_error_to=['3', '5']" in repr(model[5])
    twin = convert_(cases.mlp().double(), "dfa")
    twin.load_state_dict(model.state_dict())
    theirs = torch.optim.SGD(twin.parameters(), lr=0.05)
    for i in range(2):
        step(model, optimizer, loss_of, i)
        step(twin, theirs, loss_of, i)
    if convert_first:
        restore_(model)
        assert kinds(model) == [InBackwardLinear] * 3
        step(model, optimizer, loss_of, 2)
        optimizer.remove()
    else:
        optimizer.remove()
        assert kinds(model) == [FeedbackLinear] * 3
        restore_(model)
        step_with_gradients(model, optimizer)
    restore_(twin)
    step(twin, theirs, loss_of, 2)
    assert kinds(model) == [nn.Linear] * 3
    assert_equal_weights(model, twin)


def step_with_gradients(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    loss_of(model, 2).backward()
    assert all(p.grad is not None for p in model.parameters())
    optimizer.step()


def test_updates_end_with_their_optimizer(model: nn.Module) -> None:
    optimizer = InBackwardSGD(model, lr=0.05)
    loss, alive = loss_of(model), weakref.ref(optimizer)
    del optimizer
    assert alive() is None
    before = copy.deepcopy(model.state_dict())
    loss.backward()
    plain = cases.make("vgg").double()
    loss_of(plain).backward()
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, before[name])
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-12, atol=1e-14)
    InBackwardSGD(model, lr=0.05)  # a new one may follow


# Refusals


def test_a_second_gradient_before_a_step_is_refused_and_changes_nothing(model: nn.Module) -> None:
    optimizer = InBackwardSGD(model, lr=0.05, momentum=0.9)
    loss = loss_of(model)
    loss.backward(retain_graph=True)
    after = copy.deepcopy(model.state_dict())
    own = r"'classifier.5.(bias|weight)' got a second gradient before step\(\)"
    for again, sentence in ((loss, "modified by an inplace operation"), (loss_of(model.eval(), 1), own)):
        with pytest.raises(RuntimeError, match=sentence):
            again.backward()
        assert all(torch.equal(v, after[name]) for name, v in model.state_dict().items())
        assert all(p.grad is None for p in model.parameters())
    optimizer.step()
    loss_of(model).backward()


def test_a_backward_within_a_backward_that_both_need_a_weight_is_refused() -> None:
    layer = nn.Linear(3, 3).double()
    optimizer = InBackwardSGD(layer, lr=0.1)
    x = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"second gradient before step\(\)|modified by an inplace operation"):
        layer(checkpoint(layer, x, use_reentrant=True)).sum().backward()
    optimizer.step()
    layer(x).sum().backward()


def test_a_graph_from_before_an_update_is_refused_by_its_weights_versions(model: nn.Module) -> None:
    optimizer = InBackwardSGD(model, lr=0.05)
    first, second = loss_of(model), loss_of(model, 1)
    first.backward()
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        second.backward()


def test_losses_of_different_parameters_may_have_backwards_of_their_own() -> None:
    model, twin = (cases.make("vgg").double() for _ in range(2))
    ours, theirs = InBackwardSGD(model, lr=0.05), torch.optim.SGD(twin.parameters(), lr=0.05)
    for of, optimizer in ((model, ours), (twin, theirs)):
        x, y = batch()
        hidden = of.features(x)
        F.cross_entropy(of.classifier(hidden.detach().flatten(1)), y).backward()
        hidden.square().mean().backward()
        optimizer.step()
    assert_equal_weights(model, twin)


def test_what_a_backward_that_broke_off_has_left_is_dropped() -> None:
    """The weight waits for its second use when another node raises."""

    class Break(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, error: Tensor) -> Tensor:
            raise ZeroDivisionError

    layer = nn.Linear(3, 3).double()
    twin = copy.deepcopy(layer)
    ours, theirs = InBackwardSGD(layer, lr=0.1), torch.optim.SGD(twin.parameters(), lr=0.1)
    x = torch.randn(2, 3, dtype=torch.float64)
    graph = layer(Break.apply(layer(x))).sum()
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            graph.backward(retain_graph=True)
    assert_equal_weights(layer, twin, 0.0)
    for of, optimizer in ((layer, ours), (twin, theirs)):
        of(x).square().sum().backward()
        optimizer.step()
    assert_equal_weights(layer, twin)


def test_a_gradient_scaler_is_refused_and_a_disabled_one_is_not(model: nn.Module) -> None:
    optimizer = InBackwardSGD(model, lr=0.0)
    for unscaled in (False, True):
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        scaler.scale(loss_of(model)).backward()
        if unscaled:
            scaler.unscale_(optimizer)
        with pytest.raises(RunError, match="GradScaler cannot be used with InBackwardSGD"):
            scaler.step(optimizer)
        optimizer.rounds += 1
    del optimizer
    optimizer = InBackwardSGD(model, lr=0.1)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    for i in range(2):
        scaler.scale(loss_of(model, i)).backward()
        scaler.step(optimizer)
        scaler.update()


def test_more_than_one_process_is_refused(model: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    sentence = "InBackwardSGD is for one process"
    with pytest.raises(ConversionError, match=sentence):
        InBackwardSGD(nn.DataParallel(model), lr=0.1)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    with pytest.raises(ConversionError, match=sentence):
        InBackwardSGD(model, lr=0.1)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 1)
    InBackwardSGD(model, lr=0.1)


def refused(arguments: Callable[[nn.Module], dict[str, Any]], model: nn.Module) -> None:
    InBackwardSGD(**arguments(model))


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (lambda m: {"model": m.parameters()}, "model must be the torch.nn.Module that learns, found generator"),
        (lambda m: {"model": m, "params": [{"params": m.parameters(), "maximize": True}]}, "maximize=True is not off"),
        (lambda m: {"model": m, "params": [{"params": m.parameters(), "dampening": 0.5}]}, "dampening=0.5 is not off"),
        (lambda m: {"model": nn.Sequential(m, nn.LazyLinear(3))}, "'1.weight' is a .*run one forward of a lazy module"),
        (lambda m: {"model": m, "lr": -1.0}, "Invalid learning rate: -1.0"),
        (lambda m: {"model": m, "nesterov": True}, "Nesterov momentum requires a momentum"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_refusals_change_nothing(arguments: Callable[[nn.Module], dict[str, Any]], sentence: str) -> None:
    model = cases.mlp()
    with pytest.raises(ValueError, match=sentence):
        refused(arguments, model)
    assert kinds(model) == [nn.Linear] * 3
    InBackwardSGD(model, lr=0.1)


def test_a_second_optimizer_and_foreign_states_are_refused(model: nn.Module) -> None:
    optimizer = InBackwardSGD(model, lr=0.1)
    with pytest.raises(ConversionError, match=r"'features.0.weight' is updated .* another .* remove\(\) first"):
        InBackwardSGD(model, lr=0.1)
    state = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9, dampening=0.5).state_dict()
    with pytest.raises(ConversionError, match=r"dampening=0\.5 is not offered"):
        optimizer.load_state_dict(state)
    assert optimizer.param_groups[0]["lr"] == 0.1
    optimizer.remove()
    InBackwardSGD(model, lr=0.1)
