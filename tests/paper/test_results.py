from __future__ import annotations

import json
import re

import pytest

from small_recipes import SHORT, write_result
from torchdfa.errors import UsageError
from torchdfa.paper import results
from torchdfa.paper.recipes import PROTOCOLS, learned, recipes

BP = "table1/cifar10/bp"


def change(path, **values):
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_a_result_is_read_as_it_was_written(tmp_path):
    path = write_result(tmp_path, BP, 2, top1=61.5)
    found = results.read(path)
    assert (found.recipe, found.protocol, found.seed, found.precision) == (BP, "short", 2, "fp32")
    assert found.run.result["top1"] == 61.5
    assert len(found.run.epochs) == 10
    assert found.config.lr == 0.01


def test_no_path_of_a_machine_is_kept(tmp_path):
    path = write_result(tmp_path, BP)
    value = json.loads(path.read_text())
    assert value["run"]["config"]["data_dir"] is None
    assert str(tmp_path) not in path.read_text()


def test_half_written_and_foreign_files_are_named_and_passed_over(tmp_path):
    whole = write_result(tmp_path, BP)
    (tmp_path / "short" / "half.json").write_text(whole.read_text()[:500])
    (tmp_path / "short" / "notes.txt").write_text("my notes")
    (tmp_path / "short" / "other.json").write_text("{}")
    (tmp_path / "short" / "renamed.s0.json").write_text(whole.read_text())
    found, notes = results.read_folder(tmp_path, "short")
    assert [r.path for r in found] == [whole]
    assert [re.sub(".*/short/", "", note) for note in notes] == [
        "half.json is damaged: it is not valid JSON; move it away",
        "notes.txt is damaged: it is not valid JSON; move it away",
        "other.json is not a result file of torchdfa paper; move it away",
        f"renamed.s0.json holds {BP}, seed 0, short",
    ]


def test_no_folder_has_no_results(tmp_path):
    assert results.read_folder(tmp_path / "none", "short") == ([], [])


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"format": 2}, "has format 2, and this version reads up to 1"),
        ({"seed": "0"}, "its 'seed' must be of type int"),
        ({"run": {}}, "it lacks 'format'"),
        ({"result": None}, "it lacks a result"),
    ],
)
def test_damage_is_named(tmp_path, values, sentence):
    path = write_result(tmp_path, BP)
    change(path, **values)
    with pytest.raises(UsageError, match=sentence):
        results.read(path)


@pytest.mark.parametrize(
    "where, value, sentence",
    [
        (("result", "top5"), "99", "its 'top5' must be a number"),
        (("result", "top5"), 101.0, "its 'top5' must lie in 0..100"),
        (("result", "train_top1"), None, "its 'train_top1' must be a number"),
        (("result", "right"), "ff", "its 'right' must hold a bit for each of 10000 test images"),
        (("result", "right"), "no", "its 'right' must be hexadecimal"),
        (("result", "right"), 5, "its 'right' must be hexadecimal"),
        (("epochs",), [], "it has a result but no epochs"),
        (("epochs", 0), 3, "its 'epochs' must be of type dict"),
        (("epochs", 0, "seconds"), "1", "its 'seconds' must be a number"),
        (("alignment", 0), [], "its 'alignment' must be of type dict"),
        (("alignment", 0, "boundary"), None, "its 'boundary' must be of type dict"),
        (("alignment", 0, "boundary", "classifier.0"), 1.0, "its 'boundary' must be of type dict"),
        (("alignment", 0, "boundary", "classifier.0", "degrees"), "70", "its 'degrees' must be a number"),
        (("run", "resolved", "precision"), None, "its 'precision' must be of type str"),
        (("run", "data", "test_images"), 1e4, "its 'test_images' must be of type int"),
        (("diverged",), 7, "its 'diverged' must be of type str"),
    ],
)
def test_every_figure_is_checked_when_the_file_is_read(tmp_path, where, value, sentence):
    path = write_result(tmp_path, BP)
    whole = part = json.loads(path.read_text())
    for key in where[:-1]:
        part = part[key]
    part[where[-1]] = value
    path.write_text(json.dumps(whole))
    with pytest.raises(UsageError, match=sentence):
        results.read(path)


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    run = results.read(write_result(tmp_path, BP)).run
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"--results .*file.* cannot be written"):
        results.write(tmp_path / "file" / "short" / "x.json", BP, "short", run)


def test_results_of_a_recipe_that_changed_are_not_mixed(tmp_path):
    path = write_result(tmp_path, BP)
    value = json.loads(path.read_text())
    value["run"]["config"] |= {"lr": 0.1, "weight_decay": 0.0}
    path.write_text(json.dumps(value))
    found, _ = results.read_folder(tmp_path, "short")
    with pytest.raises(UsageError) as caught:
        results.matching(found, recipes(SHORT))
    assert str(path) in str(caught.value)
    assert "lr 0.1 there, 0.01 now; weight_decay 0.0 there, 0.02 now" in str(caught.value)


def test_results_of_a_recipe_that_is_gone_are_named(tmp_path):
    path = write_result(tmp_path, BP)
    change(path, recipe="table9/bp")
    path.rename(path.with_name("table9.bp.s0.json"))
    found, _ = results.read_folder(tmp_path, "short")
    with pytest.raises(UsageError, match="'table9/bp', which no longer exists; move it away"):
        results.matching(found, recipes(SHORT))


def test_precision_and_threads_do_not_make_another_recipe():
    recipe = recipes(SHORT)["table1/cifar10/cbdfa-product"]
    one, other = recipe.config(0, precision="bf16", threads=1), recipe.config(1, precision="fp32", device="cpu")
    assert learned(one) == learned(other)
    assert learned(one) != learned(recipe.config(0, scale="unit"))


@pytest.mark.parametrize("protocol", list(PROTOCOLS))
def test_the_results_that_come_with_the_package_are_whole_and_of_these_recipes(protocol):
    found, notes = results.read_folder(results.shipped(), protocol)
    assert notes == []
    by_recipe = results.matching(found, recipes(PROTOCOLS[protocol]))
    if protocol == "short":
        assert {f"table1/cifar10/{arm}" for arm in ("bp", "cdfa-product", "cbdfa-product")} <= set(by_recipe)
    for result in found:
        assert result.run.config["data"]["test_images"] == (2000 if "sweep/" in result.recipe else 10_000)
        assert "/" not in json.dumps(result.run.config["config"]["data"])
