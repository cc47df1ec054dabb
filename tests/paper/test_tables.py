from __future__ import annotations

import json
from statistics import stdev

import pytest

from small_recipes import write_result
from torchdfa.errors import UsageError
from torchdfa.paper import collection, near_duplicates, results, tables


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    folder = tmp_path / "shipped"
    folder.mkdir()
    monkeypatch.setattr(results, "shipped", lambda: folder)
    return folder


def rows(table):
    return {row[-1]: row for row in table.rows}


def test_table_1_shows_the_paper_ours_and_yours(shipped, tmp_path):
    for seed, top1 in enumerate((60.0, 61.0, 65.0)):
        write_result(shipped, "table1/cifar10/bp", seed, top1=top1)
    write_result(tmp_path / "own", "table1/cifar10/bp", 0, top1=50.0)
    table = tables.TABLES["1"](collection.collect("short", tmp_path / "own"))
    spread = stdev([60, 61, 65])
    row = rows(table)["table1/cifar10/bp"]
    assert row[:4] == ("CIFAR-10", "BP", "81.11", f"62.00 ± {spread:.2f} (n=3)")
    assert row[4:] == ("98.63", "99.50 ± 0.00 (n=3)", "50.00 (n=1)", "99.50 (n=1)", "table1/cifar10/bp")
    assert len(table.rows) == 16
    assert "table1/cifar10/cbdfa-random" in table.missing
    assert "table1/cifar10/bp" not in table.missing


def test_without_own_results_there_is_no_column_for_them(shipped):
    write_result(shipped, "table1/cifar10/bp")
    table = tables.TABLES["1"](collection.collect("short", None))
    assert not [name for name in table.header if name.startswith("yours")]


def test_table_2_shows_the_paper_beside_ours(shipped):
    write_result(shipped, "table2/cbdfa-augmented", top1=77.0)
    row = rows(tables.TABLES["2"](collection.collect("short", None)))["table2/cbdfa-augmented"]
    assert row[1:4] == ("CBDFA Eq. (9), augmented", "90.13", "77.00 (n=1)")


def test_controls_are_compared_at_the_same_training_accuracy(shipped):
    write_result(shipped, "table1/cifar10/bp", top1=60.0)
    write_result(shipped, "control/frozen", top1=66.0)
    table = tables.TABLES["controls"](collection.collect("short", None))
    # The curves end at 98.65 % training accuracy; 98 % is first reached in the ninth of ten epochs.
    assert table.header[3] == "top-1 % once training reached 98 %"
    rise = 1 - 0.5 ** (8 * 9 / 10)
    frozen = rows(table)["control/frozen"]
    assert frozen[:4] == ("frozen random head", "66.00 (n=1)", "99.50 (n=1)", f"{10 + 56 * rise:.2f} (n=1)")
    assert frozen[4:6] == ("3.00", "71°")  # medians of 2, 3, 4 and of 70, 71, 72


def test_of_a_seed_that_was_run_twice_the_own_run_counts(shipped, tmp_path):
    write_result(shipped, "small/1000/bp", 0, top1=30.0)
    write_result(shipped, "small/1000/bp", 1, top1=40.0)
    write_result(tmp_path, "small/1000/bp", 0, top1=34.0)
    table = tables.TABLES["small-data"](collection.collect("short", tmp_path))
    assert table.rows[0][:2] == ("1,000", f"37.00 ± {stdev([34, 40]):.2f} (n=2)")
    assert table.rows[0][2] == "–"


def test_runs_of_one_recipe_on_other_images_are_noted_once(shipped, tmp_path):
    for name in ("table1/cifar10/bp", "control/frozen"):
        write_result(shipped, name)
        write_result(tmp_path / "own", name, 1)
    assert collection.collect("short", tmp_path / "own").notes == ()
    for path in (tmp_path / "own" / "short").iterdir():
        value = json.loads(path.read_text())
        value["run"]["data"]["sha256"] = "0" * 64
        path.write_text(json.dumps(value))
    (note,) = collection.collect("short", tmp_path / "own").notes
    assert note.startswith("runs of control/frozen and 1 more recipes had images of different checksums")


def test_a_run_that_diverged_is_shown_as_such(shipped):
    path = write_result(shipped, "sweep/bp/lr0.01-wd0.0005")
    result = results.read(path)
    results.write(
        path, result.recipe, "short", result.run.__class__(path, result.run.config, [], None), "training diverged"
    )
    table = tables.TABLES["sweep"](collection.collect("short", None))
    assert table.rows[0] == ("BP", "0.01", "1 diverged", "–", "–")
    assert table.rows[1] == ("CDFA Eq. (7)", "–", "–", "–", "–")


def test_accuracy_without_near_duplicates(shipped):
    # Images 0 to 3 have near copies; of the others, image 4 alone is right.
    near_duplicates.write(near_duplicates.path(shipped, "cifar10"), {"test_images": 10_000, "found": [0, 1, 2, 3]})
    right = bytes([0b00011111, *[0] * 1249]).hex()
    write_result(shipped, "table1/cifar10/bp", right=right)
    table = tables.TABLES["duplicates"](collection.collect("short", None))
    assert rows(table)["table1/cifar10/bp"][2:5] == ("0.05 (n=1)", "0.01 (n=1)", "100.00 (n=1)")
    assert "4 of the 10,000 test images of cifar10" in table.note


def test_a_list_among_the_own_results_goes_before_the_one_of_the_package(shipped, tmp_path):
    near_duplicates.write(near_duplicates.path(shipped, "cifar10"), {"test_images": 10_000, "found": [0]})
    source = tmp_path / "duplicates.csv"
    source.write_text("TestID,TrainID,Judgment\n3,17,0\n1,20,1\n3,18,1\n")
    (tmp_path / "own").mkdir()
    near_duplicates.write(near_duplicates.path(tmp_path / "own", "cifar10"), near_duplicates.listed("cifar10", source))
    write_result(shipped, "table1/cifar10/bp", right=bytes([0b00001010, *[0] * 1249]).hex())
    table = tables.TABLES["duplicates"](collection.collect("short", tmp_path / "own"))
    assert rows(table)["table1/cifar10/bp"][2:5] == ("0.02 (n=1)", "0.00 (n=1)", "100.00 (n=1)")
    assert "2 of the 10,000 test images of cifar10 (the list in" in table.note


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "TestID\nx\n", "TestID\n10000\n", "TestID\n"])
def test_a_wrong_list_is_named(tmp_path, text):
    (tmp_path / "list.csv").write_text(text)
    with pytest.raises(UsageError, match=r"--list .*list\.csv must"):
        near_duplicates.listed("cifar10", tmp_path / "list.csv")


def test_runs_that_kept_no_single_images_have_dashes_there(shipped):
    near_duplicates.write(near_duplicates.path(shipped, "cifar10"), {"test_images": 10_000, "found": [0]})
    write_result(shipped, "table1/cifar10/bp")
    table = tables.TABLES["duplicates"](collection.collect("short", None))
    assert rows(table)["table1/cifar10/bp"][2:5] == ("–", "–", "–")


def test_wrong_protocol():
    with pytest.raises(UsageError, match="--protocol must be one of short, medium, full; got 'long'"):
        collection.collect("long", None)


@pytest.mark.parametrize("name", list(tables.TABLES))
def test_every_table_can_be_drawn_without_results(shipped, name):
    table = tables.TABLES[name](collection.collect("full", None))
    assert {len(row) for row in table.rows} == {len(table.header)}
    assert table.missing
