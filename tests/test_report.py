from __future__ import annotations

import json

import pytest

import cases
import torchdfa


def test_rows_say_where_each_error_comes_from_and_what_it_costs() -> None:
    model = torchdfa.convert_(cases.make("vgg"), "bdfa", init="product")
    rows = {row.layer: row for row in torchdfa.report(model).rows}
    assert list(rows) == ["(1 before)", "classifier.0", "classifier.3", "classifier.5"]
    assert [rows[k].rule for k in rows] == ["bp", "bdfa", "bdfa", "bp"]
    assert rows["(1 before)"].error_from == "feedback at the input of classifier.0, then live weights"
    assert rows["classifier.0"].error_from == "feedback at the input of classifier.3"
    assert rows["classifier.5"].error_from == "the loss"
    assert rows["classifier.0"].feedback_shape == (5, 16)
    assert rows["classifier.0"].logical_bytes == 5 * 2 + 4
    assert rows["classifier.0"].actual_bytes == 5 * 2 + 4 + 5 * 16 * 4
    assert rows["classifier.0"].scale == pytest.approx(float(model.classifier[3].feedback.scale))


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "bdfa", "frozen"])
def test_total_is_what_the_buffers_hold(rule: str) -> None:
    model = torchdfa.convert_(cases.make("vgg"), rule)
    held = [b for n, b in model.state_dict().items() if "feedback" in n]
    report = torchdfa.report(model)
    assert report.feedback_bytes == sum(b.numel() * b.element_size() for b in held)
    assert f"{report.feedback_bytes:,} bytes" in str(report)
    json.dumps(report.to_dict())


def test_transpose_boundary_leaves_the_convolutions_their_live_weights() -> None:
    model = torchdfa.convert_(cases.make("vgg"), "dfa", boundary="transpose")
    assert torchdfa.report(model).rows[0].error_from == "live weights"


def test_a_layer_that_runs_bp_says_so() -> None:
    model = torchdfa.convert_(cases.make("vgg"), "dfa", layers=["classifier.5"])
    rows = {row.layer: row for row in torchdfa.report(model).rows}
    assert rows["classifier.3"].rule == "dfa"
    assert rows["classifier.0"].rule == "bp"
    assert rows["classifier.0"].error_from == "feedback at the input of classifier.5, then live weights"


def test_frozen_layers_are_named() -> None:
    model = torchdfa.convert_(cases.make("vgg"), "frozen")
    found = {row.layer: row.rule for row in torchdfa.report(model).rows}
    assert found == {"features.0": "bp", "classifier.0": "frozen", "classifier.3": "frozen", "classifier.5": "bp"}

    model.classifier[3].requires_grad_(True)
    found = {row.layer: row.rule for row in torchdfa.report(model).rows}
    assert found == {"features.0": "bp", "classifier.0": "frozen", "classifier.3": "bp", "classifier.5": "bp"}


def test_two_branches() -> None:
    model = torchdfa.convert_(cases.TwoBranch(), "dfa")
    rows = [(row.layer, row.feedback_shape) for row in torchdfa.report(model).rows]
    assert rows == [
        ("(1 before)", (7, 144)),
        ("shared", (5, 16)),
        ("shared", (2, 16)),
        ("actor.0", (5, 12)),
        ("actor.2", None),
        ("critic", None),
    ]
