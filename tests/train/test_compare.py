from __future__ import annotations

import csv
import hashlib
import io
import json

import pytest
from rich.console import Console

from fake_runs import write_run
from torchdfa.errors import RunError, UsageError
from torchdfa.train.compare import compare, rendered, table


def printed(folders, out=None, width=90):
    console = Console(width=width, file=io.StringIO())
    rows = compare(folders, out, console)
    return rows, console.file.getvalue()


@pytest.fixture
def three(tmp_path):
    figures = (("bp", 98.3), ("dfa", 98.1), ("bdfa", 97.8))
    return [write_run(tmp_path / rule, rule=rule, top1=top1) for rule, top1 in figures]


def test_a_row_holds_the_figures_of_the_last_epoch(three):
    row = table(three)[2]
    expected = {
        "rule": "CBDFA product", "data": "digits", "model": "cnn", "lr": 0.01, "epochs": 5, "n": 1, "seeds": [0],
        "top1": 97.8, "top1_std": None, "top5": 99.5, "balanced_accuracy": 96.8, "seconds": 12.5,
        "images_per_second": 1500.0, "feedback_bytes": 1284, "feedback_bytes_actual": 42244, "test_images": 360,
        "finished": True, "status": "finished", "folders": [str(three[2])],
    }  # fmt: skip
    assert {key: row[key] for key in expected} == expected
    assert row["interval"] == pytest.approx([95.70, 98.89], abs=0.01)


def test_a_better_epoch_before_the_last_is_not_picked(tmp_path):
    folder = write_run(tmp_path / "a", top1=70.0)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines[2]["test_top1"] = 99.0
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert table([folder])[0]["top1"] == 70.0


def test_the_printed_table(three):
    _, text = printed(three)
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0].strip() == "data digits, model cnn, epochs 5, lr 0.01, seed 0"
    assert " BP              98.3  96.4–99.2   99.5      97.3     12.5    1500                –" in lines
    assert " CBDFA product   97.8  95.7–98.9   99.5      96.8     12.5    1500  1.28kB (42.2kB)" in lines
    assert "figures of the last epoch, not of the best" in text
    assert "CDFA product (98.1 %) and CBDFA product (97.8 %) lie too near" in text


@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_no_figure_is_cut_at_any_width(three, width):
    _, text = printed(three, width=width)
    assert "…" not in text
    for figure in ("96.4–99.2", "98.3", "12.5", "1.28kB", "(42.2kB)"):
        assert figure in text


def test_columns_that_say_nothing_are_left_out(three):
    rows = [row | {"top5": None, "balanced_accuracy": row["top1"]} for row in table(three)]
    headers = [str(column.header) for column in rendered(rows).columns]
    assert "top-5\n%" not in headers
    assert "balanced\n%" not in headers
    assert "state" not in headers


def test_seeds_are_grouped_as_mean_and_std_with_n(tmp_path):
    folders = [write_run(tmp_path / str(s), top1=90.0 + s, seed=s, tests=10_000) for s in (0, 1, 2)]
    rows, text = printed(folders)
    assert (rows[0]["n"], rows[0]["top1"], rows[0]["top1_std"]) == (3, 91.0, 1.0)
    assert "91.00 ± 1.00" in text
    assert "seed 0, 1, 2 (n=3)" in text


def test_an_unfinished_run_is_shown_as_such(three, tmp_path):
    stopped = write_run(tmp_path / "stopped", rule="bdfa", init="random", done=2)
    rows, text = printed([*three, stopped])
    assert (rows[3]["finished"], rows[3]["status"], rows[3]["feedback_bytes"]) == (False, "2 of 5 epochs", None)
    assert "2 of 5 epochs" in text
    assert "note: CBDFA random is not finished: 2 of 5 epochs done" in text


def test_picture_csv_and_json_lie_side_by_side(three, tmp_path):
    rows, text = printed(three, tmp_path / "out" / "all.png")
    assert (tmp_path / "out" / "all.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "out" / "all.json").read_text()) == rows
    lines = list(csv.DictReader((tmp_path / "out" / "all.csv").read_text().splitlines()))
    assert [line["rule"] for line in lines] == ["BP", "CDFA product", "CBDFA product"]
    assert (lines[0]["top1"], lines[0]["interval_low"][:5], lines[0]["seeds"]) == ("98.3", "96.36", "0")
    assert str(tmp_path / "out" / "all.csv") in text
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["all.csv", "all.json", "all.png"]


def test_a_folder_as_out_gets_compare_png(three, tmp_path):
    printed(three, tmp_path / "new")
    assert (tmp_path / "new" / "compare.png").is_file()


def test_nothing_is_written_without_out_and_runs_are_untouched(three, tmp_path):
    def hashes():
        return {p: hashlib.sha256(p.read_bytes()).digest() for p in tmp_path.rglob("*") if p.is_file()}

    before = hashes()
    printed(three)
    assert hashes() == before
    printed(three, tmp_path / "c.png")
    assert {p: h for p, h in hashes().items() if p.stem != "c"} == before


def test_names_from_outside_are_no_formulas_in_the_csv(tmp_path):
    folder = write_run(tmp_path / "a", data="/photos/=1+1")
    printed([folder], tmp_path / "c.png")
    assert ",'=1+1," in (tmp_path / "c.csv").read_text()


def test_names_from_outside_are_no_markup_on_the_screen(tmp_path):
    _, text = printed([write_run(tmp_path / "a", data="/photos/[bold]x")])
    assert "data [bold]x, model" in text


@pytest.mark.parametrize("width", [40, 160])
def test_the_same_runs_give_the_same_files(three, tmp_path, width):
    printed(three, tmp_path / "a.png")
    printed(three, tmp_path / "b.png", width)
    for suffix in (".png", ".csv", ".json"):
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_no_run_at_all():
    with pytest.raises(UsageError, match="at least one run folder"):
        compare([])


def test_pictures_and_tables_beside_the_runs_are_passed_over(three, tmp_path):
    printed(three, tmp_path / "c.png")
    assert [row["rule"] for row in table(sorted(tmp_path.glob("*")))] == ["CBDFA product", "BP", "CDFA product"]
    with pytest.raises(UsageError, match="at least one run folder"):
        compare([tmp_path / "c.png"])


def test_a_folder_that_is_no_run_is_named(three, tmp_path):
    with pytest.raises(UsageError, match="nowhere is not a run folder"):
        compare([*three, tmp_path / "nowhere"])


def test_out_in_a_run_folder_is_refused(three):
    with pytest.raises(UsageError, match="lies in a run folder, whose files have checksums"):
        compare(three, three[0] / "c.png")


def test_out_of_another_kind_is_refused(three, tmp_path):
    with pytest.raises(UsageError, match=r"--out must name a \.png file"):
        compare(three, tmp_path / "c.txt")


def test_out_below_a_file_is_refused(three, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="the folder cannot be made"):
        compare(three, tmp_path / "file" / "x" / "c.png")


def test_a_folder_that_cannot_be_written_is_named(three, tmp_path):
    target = tmp_path / "full"
    target.mkdir()
    (target / "c.json").mkdir()  # a file cannot take a folder's place
    with pytest.raises(RunError, match=r"c\.json cannot be written"):
        printed(three, target / "c.png")
