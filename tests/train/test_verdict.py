from __future__ import annotations

import pytest

from fake_runs import write_run
from torchdfa.train.compare import table
from torchdfa.train.verdict import clearly_better, notes, sentence


def rows(tmp_path, *runs):
    """A row for each (rule, top1, other settings)."""
    return table(
        [write_run(tmp_path / f"{i}", rule=rule, top1=top1, **more) for i, (rule, top1, more) in enumerate(runs)]
    )


def test_a_difference_within_the_test_set_is_not_called_one(tmp_path):
    said = sentence(rows(tmp_path, ("bp", 88.0, {"tests": 100}), ("bdfa", 91.0, {"tests": 100})))
    assert said == (
        "On the 100 test images of digits, CBDFA product (91.0 %) is highest; BP (88.0 %) lies too near it to be "
        "called worse (95 %); each is one run, and another seed may change the order."
    )


def test_a_difference_beyond_the_test_set_is_called_one(tmp_path):
    said = sentence(rows(tmp_path, ("bp", 81.0, {"tests": 10_000}), ("bdfa", 79.0, {"tests": 10_000})))
    assert "BP (81.00 %) is highest; CBDFA product (79.00 %) falls short by more than chance explains" in said


def test_seeds_that_spread_wide_take_a_difference_away(tmp_path):
    big = {"tests": 10_000}
    found = rows(tmp_path, *[("bp", 80 + d, big | {"seed": d + 3}) for d in (-3, 0, 3)],
                 *[("bdfa", 78 + d, big | {"seed": d + 3}) for d in (-3, 0, 3)])  # fmt: skip
    assert [row["n"] for row in found] == [3, 3]
    assert not clearly_better(found[0], found[1])
    assert "lies too near" in sentence(found)
    assert "all are means over at least 3 seeds" in sentence(found)


def test_better_needs_an_interval_above_zero(tmp_path):
    a, b = rows(tmp_path, ("bp", 90.0, {"tests": 1000}), ("bdfa", 87.0, {"tests": 1000}))
    assert clearly_better(a, b)
    assert not clearly_better(b, a)
    assert not clearly_better(a, a)


def test_one_run_is_compared_with_nothing(tmp_path):
    assert sentence(rows(tmp_path, ("bdfa", 80.0, {"tests": 100}))) == (
        "CBDFA product got 80.0 % of the 100 test images of digits right (95 % interval 71.1 % to 86.7 %); "
        "there is no other finished run to compare it with."
    )


def test_no_finished_run(tmp_path):
    found = rows(tmp_path, ("bp", 80.0, {"done": 2}), ("bdfa", 80.0, {"done": 0}))
    assert sentence(found) == "No run has finished, so there is nothing to compare yet."
    assert notes(found)[:2] == [
        "note: BP is not finished: 2 of 5 epochs done",
        "note: CBDFA product is not finished: 0 of 5 epochs done",
    ]


@pytest.mark.parametrize("change", [{"data": "cifar10"}, {"validate": 0.2}, {"tests": 400}, {"image_size": 16}])
def test_figures_on_other_images_are_not_set_against_each_other(tmp_path, change):
    said = sentence(rows(tmp_path, ("bp", 99.0, {}), ("bdfa", 60.0, change)))
    assert said.startswith("The runs were not tested on the same images")


def test_a_subset_of_the_training_images_leaves_the_test_the_same(tmp_path):
    found = rows(tmp_path, ("bp", 99.0, {}), ("bdfa", 60.0, {"subset": 500}))
    assert "falls short" in sentence(found)
    assert "warning: the runs differ in more than the rule: subset (None, 500)" in notes(found)


def test_held_out_training_images_are_not_called_test_images(tmp_path):
    assert "held-out training images" in sentence(rows(tmp_path, ("bp", 90.0, {"validate": 0.1})))


def test_settings_that_differ_besides_the_rule_are_named(tmp_path):
    found = rows(tmp_path, ("bp", 90.0, {"lr": 0.05}), ("bdfa", 90.0, {"lr": 0.002, "epochs": 7, "threads": 2}))
    assert notes(found)[0] == "warning: the runs differ in more than the rule: epochs (5, 7); lr (0.05, 0.002)"


def test_another_machine_makes_times_incomparable(tmp_path):
    found = rows(tmp_path, ("bp", 90.0, {}), ("bdfa", 90.0, {"compile": True}))
    assert notes(found)[0] == (
        "warning: seconds and images/s cannot be compared, the runs differ in compile (False, True)"
    )


def test_a_repeated_seed_is_named(tmp_path):
    found = rows(tmp_path, ("bp", 90.0, {"seed": 1}), ("bp", 91.0, {"seed": 1}))
    assert "warning: runs of BP share a seed, so their spread says too little" in notes(found)


def test_what_the_comparison_lacks_is_said(tmp_path):
    assert notes(rows(tmp_path, ("bdfa", 90.0, {}), ("dfa", 91.0, {}))) == [
        "not shown here: what the feedback itself teaches (no run with --rule frozen); what backpropagation reaches "
        "(no run with --rule bp); whether another learning rate than 0.01 suits one of the rules better"
    ]


def test_a_full_comparison_has_no_notes(tmp_path):
    found = rows(tmp_path, ("bp", 90.0, {"lr": 0.05}), ("bdfa", 89.0, {"lr": 0.01}), ("frozen", 70.0, {"lr": 0.05}))
    assert notes(found) == ["warning: the runs differ in more than the rule: lr (0.05, 0.01, 0.05)"]
    assert sentence(found).endswith(
        "; CBDFA product (89.0 %) is above the frozen control, so the hidden layers have learned."
    )


def test_feedback_no_better_than_frozen_layers_is_said(tmp_path):
    found = rows(tmp_path, ("bp", 90.0, {}), ("bdfa", 80.5, {}), ("frozen", 80.0, {}))
    assert sentence(found).endswith(
        "; CBDFA product (80.5 %) is not clearly above the frozen control, whose hidden layers never learn."
    )
