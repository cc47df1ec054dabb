from __future__ import annotations

import itertools

import pytest
import torch
from safetensors.torch import load_file

from small_runs import small
from torchdfa.errors import UsageError
from torchdfa.paper import collection
from torchdfa.paper.published import TABLE_1, TABLE_2
from torchdfa.paper.recipes import (
    PROTOCOLS,
    SWEEP_DECAYS,
    learned,
    owners,
    recipes,
    select,
    small_sweep_name,
    small_sweep_points,
    sweep_name,
    sweep_rates,
)
from torchdfa.paper.tuned import SMALL_TUNED, TUNED
from torchdfa.train import loop, program

SHORT, FULL = (recipes(PROTOCOLS[name]) for name in ("short", "full"))


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_every_recipe_is_a_training_that_its_protocol_allows(protocol):
    for recipe in recipes(PROTOCOLS[protocol]).values():
        config = recipe.config(3)
        assert (config.seed, config.model, config.momentum) == (3, "vgg16", 0.9)


def test_every_cell_and_curve_of_the_paper_has_a_recipe():
    for data, cells in TABLE_1.items():
        for arm, published in cells.items():
            assert SHORT[f"table1/{data}/{arm}"].published == published
    assert {f"table2/{name}" for name in TABLE_2} == {name for name in SHORT if name.startswith("table2/")}
    assert {name.split("/")[0] for name in SHORT if name.startswith("figure")} == {"figure1", "figure4", "figure5"}


def test_table_1_learns_by_what_its_columns_say():
    def of(arm):
        config = SHORT[f"table1/cifar100/{arm}"].config(0)
        return config.rule, config.init, config.fc_batch_norm

    assert of("bp-bn") == ("bp", "product", True)
    assert of("cdfa-random") == ("dfa", "random", False)
    assert of("cbdfa-product") == ("bdfa", "product", False)
    assert of("cbdfa-bn") == ("bdfa", "product", True)


def test_conv_only_leaves_the_whole_head_as_it_began(tmp_path):
    recipe = SHORT["table2/conv-only"]
    chosen = {key: recipe.settings[key] for key in ("rule", "fixed_output")}
    config = small(epochs=1, log_alignment=3, **chosen)
    data = program.load(config)
    run = program.train(config, tmp_path / "run", quiet=True)
    began = loop.build(config, data).state_dict()
    ended = load_file(run.folder / "model.safetensors")
    moved = {name for name, value in ended.items() if not torch.equal(value, began[name])}
    assert not [name for name in moved if name.startswith("classifier.")]
    assert "features.0.weight" in moved
    assert SHORT["control/frozen"].config(0).fixed_output is False  # there the output layer learns


def test_the_same_settings_are_run_once():
    for available in (SHORT, FULL):
        own = [recipe for recipe in available.values() if recipe.same_as is None]
        assert len({repr(sorted(learned(r.config(0)).items(), key=str)) for r in own}) == len(own)
    assert SHORT["figure1/bp"].source == SHORT["table2/bp"].source == "table1/cifar10/bp"
    assert SHORT["small/10000/cbdfa-product"].source == "table1/cifar10/cbdfa-product"
    assert FULL["small/50000/bp"].source == "table1/cifar10/bp"


def test_arms_and_controls_have_their_own_rate_and_decay():
    for name, arm in (
        ("table1/cifar100/bp-bn", "bp-bn"),
        ("control/cbdfa-unit", "cbdfa-unit"),
        ("table2/cbdfa", "cbdfa-product"),
        ("table2/conv-only", "conv-only"),
    ):
        config = SHORT[name].config(0)
        assert (config.lr, config.weight_decay) == TUNED[arm]
        assert (FULL[name].config(0).lr, FULL[name].config(0).weight_decay) == (TUNED[arm][0], 5e-3)
    assert {recipe.config(0).lr for name, recipe in SHORT.items() if name.startswith("figure4/")} == {0.003}
    assert {recipe.config(0).lr for name, recipe in SHORT.items() if name.startswith("figure5/")} == {0.01}


def reached(found, names):
    """Mean top-1 by point of a search, from the names of its recipes; without those that diverged or were not run."""
    summaries = {point: found.shipped(SHORT[name]) for point, name in names.items()}
    means = {point: summary.of("top1") for point, summary in summaries.items() if summary}
    return {point: mean.mean for point, mean in means.items() if mean}


def test_rate_and_decay_are_the_best_of_the_sweep_that_comes_with_the_package():
    found = collection.collect("short", None)
    for arm, chosen in TUNED.items():
        tops = reached(found, {p: sweep_name(arm, *p) for p in itertools.product(sweep_rates(arm), SWEEP_DECAYS)})
        assert chosen == max(tops, key=tops.__getitem__), arm


def test_batch_rate_and_decay_for_few_images_are_the_best_of_the_search():
    found = collection.collect("short", None)
    for size, arms in SMALL_TUNED.items():
        for arm, chosen in arms.items():
            tops = reached(found, {p: small_sweep_name(size, arm, *p) for p in small_sweep_points()})
            assert len(tops) > 4, "most of the search has been run, and did not diverge"
            assert chosen == max(tops, key=tops.__getitem__), (size, arm)


def test_small_data_in_small_batches_takes_as_many_steps():
    for size, arms in SMALL_TUNED.items():
        for arm, (batch, rate, decay) in arms.items():
            config = SHORT[f"small-tuned/{size}/{arm}"].config(0)
            assert (config.batch_size, config.lr, config.weight_decay) == (batch, rate, decay)
            assert config.epochs * size / batch == 1000


def test_small_data_takes_equal_steps():
    for size in (1000, 5000, 10_000, 50_000):
        config = SHORT[f"small/{size}/bp"].config(0)
        assert config.epochs * size / config.batch_size == 1000
        assert (config.subset or 50_000) == size


def test_choices_are_made_on_held_out_images_alone():
    swept = [recipe.config(0) for name, recipe in SHORT.items() if "sweep/" in name]
    assert len(swept) > 50
    assert all(config.validate > 0 for config in swept)
    assert all(r.config(0).validate == 0 for name, r in SHORT.items() if "sweep/" not in name)


def test_no_two_recipes_of_a_sweep_have_one_title():
    titles = [recipe.title for name, recipe in SHORT.items() if "sweep/" in name]
    assert len(set(titles)) == len(titles)


def test_a_pattern_is_a_name_its_beginning_or_has_stars():
    def chosen(*patterns):
        return [recipe.name for recipe in select(SHORT, patterns)]

    assert chosen("table1/cifar10/bp") == ["table1/cifar10/bp"]
    assert len(chosen("table1/cifar10")) == len(chosen("table1/cifar10/")) == 8
    assert chosen("table?/bp", "figure1") == ["table2/bp", "figure1/bp", "figure1/dfa"]
    assert len(chosen("*")) == len(SHORT)


def test_chosen_curves_are_run_as_the_recipes_that_own_their_results():
    assert [r.name for r in owners(SHORT, select(SHORT, ["figure1/bp", "table1/cifar10/bp"]))] == ["table1/cifar10/bp"]


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UsageError, match="no recipe matches 'table1/cifar10/bpp'; did you mean table1/cifar10/bp"):
        select(SHORT, ["table1/cifar10/bpp"])
    with pytest.raises(UsageError, match="'torchdfa paper list' names them all"):
        select(SHORT, ["zzzzzzz"])
