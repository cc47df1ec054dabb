"""store="seed": the numbers of stored random feedback at zero bytes."""

from __future__ import annotations

import copy
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import cases
import gradients
import torchdfa
from live_memory import LiveMemory
from torchdfa import ConversionError, convert_
from torchdfa.counter import random_columns, random_matrix
from torchdfa.ops import seed_mm
from torchdfa.ops.seed_mm import reference
from torchdfa.seeded import SeedFeedback

CPU = torch.device("cpu")


def loss_of(model: Any, seed: int = 0) -> Tensor:
    x, y = cases.batch(seed=seed)
    return F.cross_entropy(model(x.to(next(model.parameters()).dtype)), y)


def pair(name: str, rule: str, **arguments: Any) -> tuple[nn.Module, nn.Module]:
    return convert_(cases.make(name), rule, **arguments), convert_(cases.make(name), rule, store="seed", **arguments)


@pytest.mark.parametrize("distribution", ["normal", "uniform", "sign"])
def test_blocks_of_columns_are_those_of_the_matrix(distribution: str) -> None:
    whole = random_matrix(20, 31, distribution, 77)
    found = random_columns(range(3, 9), range(5, 31), 31, distribution, 77, CPU)
    assert torch.equal(found, whole[3:9, 5:])


@pytest.mark.parametrize("rule", ["fa", "dfa", "bdfa"])
@pytest.mark.parametrize("distribution", ["normal", "sign"])
@pytest.mark.parametrize("scale", ["he", "unit", 0.3])
def test_gradients_are_those_of_stored_feedback(rule: str, distribution: str, scale: Any) -> None:
    stored, seeded = pair("mlp", rule, distribution=distribution, scale=scale, seed=5)
    gradients.assert_equal(gradients.of(seeded, loss_of(seeded)), gradients.of(stored, loss_of(stored)))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("rule", ["dfa", "bdfa"])
def test_in_other_dtypes_too(rule: str, dtype: torch.dtype) -> None:
    models = [convert_(cases.make("vgg").to(dtype).eval(), rule, store=store) for store in ("buffers", "seed")]
    stored, seeded = (gradients.of(m, loss_of(m)) for m in models)
    gradients.assert_equal(seeded, stored)


def test_several_outputs_share_their_rows() -> None:
    found = []
    for store in ("buffers", "seed"):
        torch.manual_seed(0)
        model = convert_(cases.TwoBranch(), "dfa", store=store)
        actor, critic = model(cases.batch()[0])
        found.append(gradients.of(model, actor.square().mean() + critic.square().mean()))
    gradients.assert_equal(found[1], found[0])


def test_costs_no_bytes_and_says_so() -> None:
    stored, seeded = pair("vgg", "bdfa", seed=3)
    report = torchdfa.report(seeded)
    assert (report.feedback_bytes, report.actual_bytes) == (0, 0)
    assert report.settings["store"] == "seed"
    assert "store" not in torchdfa.report(stored).settings
    assert {row.store for row in report.rows if row.feedback_shape} == {"seed"}
    for mine, theirs in zip(report.rows, torchdfa.report(stored).rows, strict=True):
        assert mine.scale == (theirs.scale and pytest.approx(theirs.scale, rel=1e-6))
    assert set(seeded.state_dict()) == set(cases.make("vgg").state_dict())
    assert not [b for m in seeded.modules() if isinstance(m, SeedFeedback) for b in m.buffers()]


@pytest.mark.parametrize("rule", ["dfa", "bdfa"])
def test_dense_is_the_stored_matrix(rule: str) -> None:
    stored, seeded = pair("mlp", rule)
    for a, b in zip(stored.modules(), seeded.modules(), strict=True):
        if isinstance(b, SeedFeedback):
            assert torch.equal(a.dense(), b.dense())


def test_copies_saved_models_and_diagnostics_keep_it(tmp_path: Any) -> None:
    stored, model = pair("mlp", "dfa")
    expected = gradients.of(stored, loss_of(stored))
    torch.save(model, tmp_path / "model.pt")
    other = convert_(cases.make("mlp"), "dfa", store="seed")
    other.load_state_dict(model.state_dict())
    for twin in (copy.deepcopy(model), torch.load(tmp_path / "model.pt", weights_only=False), other):
        gradients.assert_equal(gradients.of(twin, loss_of(twin)), expected)
    one, two = (torchdfa.diagnostics.measure(m, lambda m=m: loss_of(m)) for m in (stored, model))
    assert one == two


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute")
@pytest.mark.parametrize("rule", ["dfa", "bdfa"])
def test_compiles_without_graph_breaks(rule: str) -> None:
    torch.compiler.reset()
    stored, model = pair("mlp", rule)
    forward = torch.compile(model, fullgraph=True, backend="aot_eager")
    expected = gradients.of(stored, loss_of(stored))
    gradients.assert_close(gradients.of(model, loss_of(forward)), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "arguments", [{"init": "product"}, {"scale": "match"}, {"init": "product", "scale": "he"}], ids=str
)
def test_product_feedback_has_no_seed(arguments: dict[str, Any]) -> None:
    model = cases.make("mlp")
    with pytest.raises(ConversionError, match='store="seed" regenerates random feedback'):
        convert_(model, "dfa", store="seed", **arguments)
    convert_(model, "bp", store="seed", **arguments)  # nothing to store


def test_other_refusals() -> None:
    with pytest.raises(ConversionError, match="store='disk' must be one of 'buffers', 'seed'"):
        convert_(cases.make("mlp"), "dfa", store="disk")
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 5))
    with pytest.raises(ConversionError, match="gives the convolution '2' a kernel"):
        convert_(model, "fa", layers="all", example_input=cases.batch()[0], store="seed")
    assert type(model[4]) is nn.Linear
    seeded = convert_(cases.make("mlp"), "dfa", store="seed")
    with pytest.raises(ConversionError, match="refresh_feedback_ recomputes"):
        torchdfa.refresh_feedback_(seeded)


STREAM = (77, 2, 40, "normal", 0.5, torch.float32)


def test_opcheck_gradient_and_vmap() -> None:
    error = torch.randn(4, 3, 6, dtype=torch.float64)
    matrix = (random_matrix(8, 40, "normal", 77)[2:] * 0.5).double()
    torch.library.opcheck(seed_mm, (error.clone().requires_grad_(), *STREAM))
    torch.testing.assert_close(seed_mm(error, *STREAM), error @ matrix, rtol=1e-13, atol=1e-13)
    x = error.clone().requires_grad_()
    seed_mm(x, *STREAM).square().sum().backward()
    torch.testing.assert_close(x.grad, 2 * error @ matrix @ matrix.T, rtol=1e-12, atol=1e-12)
    mapped = torch.vmap(lambda e: seed_mm(e, *STREAM), 1)(error)
    torch.testing.assert_close(mapped.movedim(0, 1), error @ matrix, rtol=1e-13, atol=1e-13)
    with pytest.raises(RuntimeError, match="error must be floating-point"):
        seed_mm(error.long(), *STREAM)


@pytest.mark.parametrize("distribution", ["normal", "sign"])
def test_a_step_holds_a_block_of_numbers(distribution: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole matrix would take 8 MB, and the words that it is drawn from 16 MB each time."""
    monkeypatch.setattr(sys.modules["torchdfa.ops.seed_mm"], "CHUNK_BYTES", 2**20)
    error, stream = torch.ones(2, 1000), (77, 0, 2000, distribution, 1.0, torch.float32)
    with LiveMemory() as memory:
        found = reference(error, *stream)
    assert memory.peak <= 1.2 * 2**20
    expected = random_matrix(1000, 2000, distribution, 77).sum(0).expand(2, -1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)
