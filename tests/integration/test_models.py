"""Networks as people write them: the error that each part gets, against a slow reference where a value is asserted."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cases
import gradients
import torchdfa
from torchdfa import ConversionError, convert_

Loss = Callable[[Tensor], Tensor]


def by_segments(model: nn.Sequential, cuts: Sequence[int], output: int, x: Tensor, loss: Loss) -> dict[str, Tensor]:
    """Eq. 6 by hand: the network in pieces that end where feedback lands; each piece gets its error from outside.

    ``cuts`` are the indices of the layers whose input gets feedback, ``output`` that of the layer whose error is sent.
    """
    edges = [0, *cuts, len(model)]
    pieces = [model[start:stop] for start, stop in pairwise(edges)]
    ends, h = [], x
    for piece in pieces[:-1]:
        ends.append(piece(h))
        h = ends[-1].detach()
    logits = model[edges[-2] : output + 1](h)
    value = loss(model[output + 1 :](logits))
    (error,) = torch.autograd.grad(value, logits, retain_graph=True)
    model.zero_grad()
    value.backward()
    for end, cut in zip(ends, cuts, strict=True):
        if end.requires_grad:
            end.backward(error.reshape(-1, error.shape[-1]).matmul(model[cut].feedback.matrix).reshape(end.shape))
    return gradients.present(model)


def heads() -> dict[str, tuple[list[nn.Module], tuple[int, ...], int]]:
    """Layers on 8 features; the indices of the hidden fully-connected layers, and that of the output layer."""
    first, second, output = nn.Linear(8, 9), nn.Linear(9, 7), nn.Linear(7, 5)
    short = nn.Linear(9, 5)
    return {
        "batch norm": ([first, nn.BatchNorm1d(9), nn.ReLU(True), second, nn.BatchNorm1d(7), output], (0, 3), 5),
        "norm first": ([nn.BatchNorm1d(8), first, nn.ReLU(), nn.LayerNorm(9), short], (1,), 4),
        "dropout": (
            [nn.Dropout(0.3), first, nn.Dropout(0.5, inplace=True), nn.ReLU(), second, nn.Tanh(), nn.Dropout(), output],
            (1, 4), 7,
        ),
        "learned": ([nn.Linear(8, 9, bias=False), nn.PReLU(9), second, nn.GELU(), output], (0, 2), 4),
        "in place": ([first, nn.ReLU(True), second, nn.ELU(inplace=True), output], (0, 2), 4),
        "softmax after": ([first, nn.SiLU(), short, nn.LogSoftmax(-1)], (0,), 2),
        "other norms": ([first, nn.RMSNorm(9), nn.Linear(9, 6), nn.GroupNorm(2, 6), nn.Linear(6, 5)], (0, 2), 4),
        "no activation": ([first, second, output], (0, 1), 2),
        "activation last": ([first, nn.ReLU(), short, nn.Sigmoid()], (0,), 2),
        "gated": ([nn.Linear(8, 18), nn.GLU(), short], (0,), 2),
    }  # fmt: skip


@pytest.mark.parametrize("name", list(heads()))
def test_anything_may_stand_between_the_layers(name: str) -> None:
    torch.manual_seed(0)
    layers, hidden, output = heads()[name]
    trunk = [nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten()]
    model = nn.Sequential(*trunk, *layers).double()
    cuts = [len(trunk) + i for i in (*hidden, output)]
    convert_(model, "dfa")
    assert [i for i, layer in enumerate(model) if getattr(layer, "feedback", None)] == cuts
    x, y = torch.randn(12, 1, 6).double(), torch.arange(12) % 5
    loss = lambda out: F.mse_loss(out, F.one_hot(y, 5).double())  # noqa: E731
    torch.manual_seed(1)
    found = gradients.of(model, loss(model(x)))
    with torchdfa.backprop(model):
        torch.manual_seed(1)
        expected = by_segments(model, cuts, cuts[-1], x, loss)
    gradients.assert_close(found, expected)


@pytest.mark.parametrize("parts", [("0",), ("3",), ("5",), ("7",), ("0", "3"), ("3", "5"), ("0", "7"), ("3", "5", "7")])
def test_layers_frozen_by_hand_leave_the_others_gradients_alone(parts: tuple[str, ...]) -> None:
    for rule in ("fa", "dfa", "bdfa"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 7))
        model.extend([nn.ReLU(), nn.Linear(7, 5)])
        convert_(model.double(), rule)
        x = torch.randn(4, 1, 6).double()
        whole = gradients.of(model, model(x).square().sum())
        for part in parts:
            model.get_submodule(part).requires_grad_(False)
            for p in model.get_submodule(part).parameters():
                p.grad = None
        found = gradients.of(model, model(x).square().sum())
        gradients.assert_equal(found, {n: None if n.split(".")[0] in parts else g for n, g in whole.items()})


@pytest.mark.parametrize(
    "arguments, cuts, output",
    [
        ({"layers": ["3"]}, [3], 7),
        ({"layers": ["7"]}, [7], 7),
        ({"layers": ["5", "3"]}, [3, 5], 7),
        ({"boundary": "transpose"}, [5, 7], 7),
        ({"error_at": "5"}, [3, 5], 5),
        ({"error_at": "5", "layers": ["3"]}, [3], 5),
        ({"error_at": "3", "layers": ["3"]}, [3], 3),
    ],
)
def test_named_layers_and_where_the_error_is_taken(arguments: dict[str, Any], cuts: list[int], output: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv1d(1, 2, 3), nn.Tanh(), nn.Flatten(), nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 7))
    model.extend([nn.Tanh(), nn.Linear(7, 5)])
    convert_(model.double(), "dfa", **arguments)
    x = torch.randn(4, 1, 6).double()
    loss = lambda out: out.square().sum()  # noqa: E731
    found = gradients.of(model, loss(model(x)))
    with torchdfa.backprop(model):
        gradients.assert_close(found, by_segments(model, cuts, output, x, loss))


class Branches(nn.Module):
    """Shared layers, then one of several outputs for a call, as MDNet has for its sequences."""

    def __init__(self, branches: int = 3) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 2, 3)
        self.fc4, self.fc5 = nn.Linear(8, 9), nn.Linear(9, 7)
        self.branches = nn.ModuleList(nn.Linear(7, 2) for _ in range(branches))

    def forward(self, x: Tensor, branch: int | None = None) -> Any:
        h = torch.tanh(self.fc5(torch.tanh(self.fc4(torch.tanh(self.conv(x)).flatten(1)))))
        return [b(h) for b in self.branches] if branch is None else self.branches[branch](h)


@pytest.mark.parametrize("rule", ["dfa", "bdfa"])
def test_one_branch_a_call(rule: str) -> None:
    """A call sends the error of its own branch, through that branch's rows of the feedback, and no other's."""
    torch.manual_seed(0)
    model = convert_(Branches().double(), rule, init="product", scale="unit" if rule == "bdfa" else None)
    x = torch.randn(4, 1, 6).double()
    alone = []
    for branch in range(3):
        found = gradients.of(model, model(x, branch).square().sum())
        assert {n for n, g in found.items() if g is None} == {
            f"branches.{i}.{kind}" for i in range(3) if i != branch for kind in ("weight", "bias")
        }
        rows = model.fc5.feedback.dense()[2 * branch : 2 * branch + 2].double()
        product = model.branches[branch].weight.detach() @ model.fc5.weight.detach()
        torch.testing.assert_close(rows, product if rule == "dfa" else torch.where(product >= 0, 1.0, -1.0).double())
        logits = model(x, branch)
        h4 = torch.tanh(model.fc4(torch.tanh(model.conv(x)).flatten(1)))
        expected = (2 * logits @ rows * (1 - h4.square())).sum(0)  # the loss is the sum of squares
        torch.testing.assert_close(found["fc4.bias"], expected.detach())
        alone.append(found)
    together = gradients.of(model, sum(out.square().sum() for out in model(x)))
    gradients.assert_close(together, gradients.added(gradients.added(alone[0], alone[1]), alone[2]))
    twos = [model(x, branch).square().sum() for branch in (2, 0)]  # two calls, then one backward
    gradients.assert_close(gradients.of(model, twos[0] + twos[1]), gradients.added(alone[2], alone[0]))


def test_last_layer_set_anew_and_feedback_recomputed() -> None:
    """A tracker initialises its last layer anew for each sequence; Eq. 7 then follows, in the same buffers."""
    torch.manual_seed(0)
    model = convert_(Branches(1).double(), "dfa", init="product")
    place = model.fc4.feedback.matrix.data_ptr()
    nn.init.normal_(model.branches[0].weight)
    torchdfa.refresh_feedback_(model)
    expected = model.branches[0].weight @ model.fc5.weight @ model.fc4.weight
    torch.testing.assert_close(model.fc4.feedback.matrix, expected.detach())
    assert model.fc4.feedback.matrix.data_ptr() == place


class Encoder(nn.Module):
    """A transformer classifier whose head has two layers; called with keywords, as such models are."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 5))

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, *, return_dict: bool = False, **rest: Any
    ) -> Any:
        x = self.embed(input_ids)
        if attention_mask is not None:
            x = x * attention_mask.unsqueeze(-1)
        logits = self.head(self.encoder(x).mean(1))
        return {"logits": logits, "hidden": x} if return_dict else logits


def test_transformer_with_keyword_arguments() -> None:
    torch.manual_seed(0)
    model = convert_(Encoder(), "bdfa", init="product").double()
    assert [row.layer for row in torchdfa.report(model).rows][1:] == ["head.0", "head.2"]
    ids, mask = torch.arange(12).view(3, 4) % 11, torch.ones(3, 4, dtype=torch.float64)
    plain = gradients.of(model, model(ids).square().sum())
    out = model(input_ids=ids, attention_mask=mask, return_dict=True)
    gradients.assert_close(gradients.of(model, out["logits"].square().sum()), plain)
    assert all(g is not None and bool(g.any()) for n, g in plain.items() if n.endswith("linear1.weight"))


class Attention(nn.Module):
    """A block written with plain layers; what it does depends on data, so it cannot be traced."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.up, self.down, self.norm = nn.Linear(width, width), nn.Linear(width, width), nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        if x.abs().max() > 1e9:
            raise ValueError("exploded")
        x = x + self.o(F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x)))
        return self.norm(x + self.down(F.gelu(self.up(x))))


def test_an_untraceable_transformer_is_not_taken_for_a_chain() -> None:
    """Query, key, value and the rest follow each other in registration and fit in width, and are no chain."""
    ids = torch.arange(12).view(3, 4) % 11
    for model in (
        nn.Sequential(nn.Embedding(11, 8), Attention(), Attention(), nn.Linear(8, 5)),
        nn.Sequential(OrderedDict(head=nn.Linear(8, 5), blocks=Attention(), embed=nn.Embedding(11, 8)))[::-1],
    ):
        with pytest.raises(ConversionError, match=r"TraceError.*example_input="):
            convert_(model, "dfa")
        with pytest.raises(ConversionError, match="one layer"):
            convert_(model, "dfa", example_input=ids)
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5))
    model = nn.Sequential(nn.Embedding(11, 8), Attention(), Attention(), head)
    convert_(copy.deepcopy(model), "dfa", init="product", head="3")
    convert_(model, "dfa", init="product", example_input=ids)
    assert [row.layer for row in torchdfa.report(model).rows] == ["(12 before)", "3.0", "3.2"]
    assert all(g is not None for g in gradients.of(model, model(ids).square().sum()).values())


class Checked(nn.Module):
    """One assertion on a shape, as everyone writes it; the layers are those of `network`."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        assert isinstance(x, Tensor)
        assert x.shape[1] == 1 if x.dim() == 4 else x.sum() < 1e9
        return self.network(x)


class TwinCritic(nn.Module):
    """Two networks on the same input, one registered after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.l1, self.l2, self.l3 = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.l4, self.l5, self.l6 = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = self.l3(F.relu(self.l2(F.relu(self.l1(x)))))
        return first, self.l6(F.relu(self.l5(F.relu(self.l4(x)))))


class FlatResidual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Conv2d(1, 4, 3)
        self.fc1, self.fc2, self.fc3 = nn.Linear(144, 144), nn.Linear(144, 144), nn.Linear(144, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.trunk(x).relu().flatten(1)
        h[:, 0] = 0
        return self.fc3(h + self.fc2(self.fc1(h).relu()))


@pytest.mark.parametrize("name", [*cases.MODELS, "critic", "residual in the head", "token"])
def test_an_example_shows_of_a_model_what_its_code_shows(name: str) -> None:
    """The same layers, or the same refusal, with an assertion in the way of the trace as without it."""
    x = torch.randn(3, 6) if name == "critic" else cases.batch()[0]
    build = {
        "critic": TwinCritic,
        "residual in the head": FlatResidual,
        "token": lambda: nn.Sequential(nn.Flatten(0, 2), nn.Linear(8, 9), nn.ReLU(), nn.Linear(9, 3)),
    }.get(name, lambda: cases.make(name))

    def found(model: nn.Module, prefix: str = "") -> Any:
        try:
            convert_(model, "dfa", example_input=x)
        except ConversionError as error:
            return str(error).replace(f"'{prefix}", "'")
        plan = model._torchdfa.plan
        return [[n.removeprefix(prefix) for n in names] for names in (*plan.chains, plan.cuts)]

    before = {n: b.clone() for n, b in build().named_buffers()}
    checked = Checked(build())
    with pytest.raises(ConversionError, match="cannot be read from its code"):
        convert_(checked, "dfa")
    assert found(checked, "network.") == found(build())
    assert all(torch.equal(b, checked.network.get_buffer(n)) for n, b in before.items())


def test_a_head_that_cannot_be_read_is_followed_from_what_it_is_called_with() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), Checked(nn.Sequential(*cases.mlp()[1:])))
    model[2].network[0] = nn.Linear(144, 16)
    with pytest.raises(ConversionError, match=r"layers of head= .*example_input="):
        convert_(model, "dfa", head="2")
    convert_(model, "dfa", head="2", example_input=cases.batch()[0])
    assert model._torchdfa.plan.cuts == ("2.network.0", "2.network.2", "2.network.4")


def test_what_a_recording_cannot_follow_is_refused() -> None:
    class Own(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.clone()

        @staticmethod
        def backward(ctx: Any, error: Tensor) -> Tensor:
            return error

    class Hidden(cases.Untraceable):
        def forward(self, x: Tensor) -> Tensor:
            return self.fc2(Own.apply(self.fc1(self.conv(x).flatten(1))) if x.sum() < 1e9 else x)

    with pytest.raises(ConversionError, match=r"made by OwnBackward.*head="):
        convert_(Hidden(), "dfa", example_input=cases.batch()[0])


def test_a_head_applied_to_every_token() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(11, 8), nn.Linear(8, 9), nn.Tanh(), nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 11))
    convert_(model.double(), "dfa")
    ids = torch.arange(12).view(3, 4) % 11
    loss = lambda out: F.cross_entropy(out.flatten(0, 1), ids.flatten())  # noqa: E731
    found = gradients.of(model, loss(model(ids)))
    with torchdfa.backprop(model):
        gradients.assert_close(found, by_segments(model, [1, 3, 5], 5, ids, loss))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(3, 8, batch_first=True)
        self.fc1, self.fc2 = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        states, _ = self.rnn(x)
        return self.fc2(torch.relu(self.fc1(states[:, -1])))


def test_recurrent_trunk() -> None:
    torch.manual_seed(0)
    model = convert_(Recurrent().double(), "dfa")
    x, y = torch.randn(4, 6, 3).double(), torch.arange(4)
    logits = model(x)
    logits.retain_grad()
    found = gradients.of(model, F.cross_entropy(logits, y))
    last = model.rnn(x)[0][:, -1]
    names, weights = zip(*model.rnn.named_parameters(prefix="rnn"), strict=True)
    expected = torch.autograd.grad(last, weights, logits.grad @ model.fc1.feedback.matrix)
    gradients.assert_close({n: found[n] for n in names}, dict(zip(names, expected, strict=True)))


def test_finding_the_head_runs_nothing_on_the_model() -> None:
    """A forward that counts its calls and draws random numbers: converting neither counts nor draws."""

    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros((), dtype=torch.long))
            self.conv, self.norm, self.mix = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)
            self.fc1, self.fc2 = nn.Linear(144, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            x = self.mix(torch.relu(self.norm(self.conv(x))) * (1 + torch.rand(1)))
            return self.fc2(torch.relu(self.fc1(input=x.flatten(1))))

    for layers in ("head", "all"):
        model = Counting()
        before = {n: b.clone() for n, b in model.named_buffers()}
        state, calls = torch.get_rng_state(), []
        model.conv.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        convert_(model, "dfa", layers=layers, example_input=torch.ones(2, 1, 8, 8))
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(model.get_buffer(n), b) for n, b in before.items())
        assert model.training
        assert model.norm.training
        assert len(calls) == (layers == "all")  # only shapes of an example need a forward


@pytest.mark.parametrize(
    "layers, arguments, sentence",
    [
        ([nn.Linear(8, 18), nn.GLU(), nn.Linear(9, 5)], {"init": "product", "layers": ["0", "2"]}, "whose widths fit"),
        ([nn.Linear(8, 9), nn.GLU(), nn.Linear(4, 5), nn.Linear(5, 3)], {"scale": "match", "layers": ["0"]}, "match"),
        ([nn.LSTM(8, 9)], {}, "no fully-connected layer"),
        ([nn.Linear(8, 9), nn.ReLU(), nn.Bilinear(9, 9, 5)], {}, "does not end in"),
    ],
)
def test_networks_that_a_rule_cannot_serve(layers: list[nn.Module], arguments: dict[str, Any], sentence: str) -> None:
    model = nn.Sequential(*layers)
    with pytest.raises(ConversionError, match=sentence):
        convert_(model, "dfa", **arguments)
    assert not any(hasattr(m, "_torchdfa") or hasattr(m, "bus") for m in model.modules())


class ToCpu(torch.autograd.Function):
    """From the meta device, whose tensors have no values, with an error that goes back there."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.zeros(x.shape)

    @staticmethod
    def backward(ctx: Any, error: Tensor) -> Tensor:
        return error.to("meta")


def test_errors_reach_layers_on_another_device() -> None:
    class Split(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc1, self.fc2, self.fc3 = nn.Linear(6, 8), nn.Linear(8, 7), nn.Linear(7, 3)
            self.move: Callable[[Tensor], Tensor] = lambda h: h

        def forward(self, x: Tensor) -> Tensor:
            return self.fc3(self.move(self.fc2(self.fc1(x).relu())))

    model = convert_(Split(), "dfa")
    model.fc1.to("meta")
    model.fc2.to("meta")
    model.move = ToCpu.apply
    model(torch.zeros(4, 6, device="meta")).sum().backward()
    assert {name: str(p.grad.device) for name, p in model.named_parameters() if p.grad is not None} == {
        f"fc{i}.{part}": "cpu" if i == 3 else "meta" for i in (1, 2, 3) for part in ("weight", "bias")
    }


def test_rows_that_do_not_fit_are_named_before_any_gradient() -> None:
    """Flattening between the layers: the first forward says so, where the shapes are known."""
    model = convert_(nn.Sequential(nn.Conv1d(2, 2, 1), nn.Linear(6, 8), nn.Flatten(), nn.Linear(16, 3)), "dfa")
    with pytest.raises(ConversionError, match=r"input of '1' has shape \(4, 2, 6\) and the output of '3' \(4, 3\)"):
        model(torch.randn(4, 2, 6))


def test_weights_without_values_are_refused() -> None:
    with torch.device("meta"):
        model = cases.mlp()
    for rule in ("fa", "dfa", "bdfa"):
        with pytest.raises(ConversionError, match="meta device"):
            convert_(model, rule)


def test_tied_weights_are_refused_wherever_the_twin_is() -> None:
    class Language(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.out = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11, bias=False)
            self.out.weight = self.embed.weight

        def forward(self, ids: Tensor) -> Tensor:
            return self.out(torch.relu(self.mix(self.embed(ids))))

    with pytest.raises(ConversionError, match="'out' and 'embed' share weights"):
        convert_(Language(), "dfa")
    shared = nn.Linear(8, 8)
    with pytest.raises(ConversionError, match=r"called 2 times|share weights"):
        convert_(nn.Sequential(shared, nn.ReLU(), shared, nn.ReLU(), nn.Linear(8, 3)), "dfa")
