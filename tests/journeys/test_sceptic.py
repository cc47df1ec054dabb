"""The sceptic: the paper's table with our figures, a run of her own beside them, and what goes wrong on the way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from small_recipes import write_result
from torchdfa import cli


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def say(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(["paper", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_table_1_stands_beside_the_papers_without_any_run_of_hers(here, capsys):
    code, out, _ = say(capsys, "table", "1")
    assert code == 0
    row = next(line for line in out.splitlines() if "table1/cifar10/bp " in line + " ")
    assert "81.11" in row
    assert "(n=" in row
    code, out, _ = say(capsys, "table", "small-data")
    assert code == 0
    assert "not run: small/50000/bp-conv-rate-unit" in out
    assert "torchdfa paper run" in out
    assert not list(here.iterdir())


def test_her_own_run_joins_the_table_the_figure_and_the_page(here, capsys):
    write_result(here / "runs" / "paper", "table1/cifar10/bp", top1=64.25)
    _, out, _ = say(capsys, "table", "1", "--out", "table.csv")
    assert "64.25 (n=1)" in out
    assert "64.25 (n=1)" in (here / "table.csv").read_text()
    assert say(capsys, "figure", "4")[0] == 0
    assert (here / "figure4.png").stat().st_size > 10_000
    assert say(capsys, "page")[0] == 0
    assert "64.25 (n=1)" in (here / "paper.html").read_text()


def test_list_names_recipes_and_runs(here, capsys):
    write_result(here / "runs" / "paper", "table2/bp")
    _, out, _ = say(capsys, "list", "table2")
    assert [line.split()[0] for line in out.splitlines() if line.startswith(" table2/")] == [
        *("table2/bp", "table2/cbdfa", "table2/conv-only"),
        *("table2/bp-augmented", "table2/cbdfa-augmented", "table2/conv-only-augmented"),
    ]


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["table", "3"], "there is no table '3'; take one of 1, 2, controls"),
        (["figure", "2"], "there is no figure '2'; take one of 1, 4, 5"),
        (["run", "table3"], "no recipe matches 'table3'; did you mean"),
        (["run", "table1/cifar10/bp", "--data-dir", "nowhere"], "cifar10 was not found in"),
        (["run", "--hours", "-1", "--data-dir", "nowhere"], "--hours must be a positive number"),
        (["run", "--protocol", "long"], "--protocol must be one of short, medium, full; got 'long'"),
        (["page", "--out", "page.pdf"], "--out must name a .html file; got page.pdf"),
        (["add", "nowhere"], "nowhere is not a run folder"),
        (["duplicates", "mnist"], "data must be cifar10 or cifar100; got 'mnist'"),
    ],
)
def test_wrong_words_get_one_sentence(here, capsys, arguments, sentence):
    code, out, err = say(capsys, *arguments)
    assert code == 2
    assert err.startswith("torchdfa: ")
    assert sentence in err
    assert len(err.splitlines()) == 1
    assert out == ""


def test_foreign_files_are_named_and_do_no_harm(here, capsys):
    path = write_result(here / "runs" / "paper", "table1/cifar10/bp", top1=64.25)
    path.with_name("stray.json").write_text('{"half": ')
    code, out, err = say(capsys, "table", "1")
    assert code == 0
    assert "64.25 (n=1)" in out
    assert "passed over: runs/paper/short/stray.json is damaged" in err


def test_a_recipe_that_changed_since_is_not_mixed_in(here, capsys):
    path = write_result(here / "runs" / "paper", "table1/cifar10/bp")
    value = json.loads(path.read_text())
    value["run"]["config"]["weight_decay"] = 0.1
    path.write_text(json.dumps(value))
    code, _, err = say(capsys, "table", "1")
    assert code == 2
    assert "weight_decay 0.1 there, 0.02 now" in err
