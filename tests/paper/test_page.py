from __future__ import annotations

import csv
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib.image
import pytest

from small_recipes import write_result
from torchdfa.errors import RunError
from torchdfa.paper import collection, figures, page, results, tables
from torchdfa.train.csvfile import to_csv

DOCS = Path(__file__).parents[2] / "docs" / "results" / "paper"


@pytest.fixture
def found(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "shipped", lambda: tmp_path / "shipped")
    write_result(tmp_path / "shipped", "table1/cifar10/bp", top1=61.25)
    write_result(tmp_path / "shipped", "table1/cifar10/cbdfa-random", 0, top1=70.0)
    write_result(tmp_path / "shipped", "table1/cifar10/cbdfa-random", 1, top1=72.0)
    write_result(tmp_path / "shipped", "figure4/cifar10/bp", top1=60.0)
    write_result(tmp_path / "shipped", "figure4/cifar10/cbdfa-random", 0, top1=70.0)
    write_result(tmp_path / "shipped", "figure4/cifar10/cbdfa-random", 1, top1=72.0)
    return collection.collect("short", None)


class Text(HTMLParser):
    """Collects what a reader sees, and that every element that opens also closes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.opened: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "img"):
            self.opened.append(tag)

    def handle_endtag(self, tag):
        assert self.opened.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_page_holds_every_table_figure_and_setting(found, tmp_path):
    path = tmp_path / "page.html"
    page.write(found, path)
    html = path.read_text()
    parsed = Text(html)
    assert parsed.opened == []
    text = " ".join(parsed.words)
    assert "61.25 (n=1)" in text
    assert "71.00 ± 1.41 (n=2)" in text
    assert html.count("data:image/png;base64,") == 3
    assert "weight_decay 0.02" in text
    assert "Not run: table1/cifar10/cdfa-product" in text
    assert "http" not in re.sub('data:image[^"]*', "", html)  # nothing is fetched from elsewhere


def test_names_in_results_cannot_become_markup(found, tmp_path):
    path = next((tmp_path / "shipped" / "short").glob("*bp*"))
    path.write_text(path.read_text().replace("some cpu", "<script>alert(1)</script>"))
    page.write(collection.collect("short", None), tmp_path / "page.html")
    assert "<script>" not in (tmp_path / "page.html").read_text()


def test_a_page_that_cannot_be_written(found, tmp_path):
    with pytest.raises(RunError, match="cannot be written"):
        page.write(found, tmp_path / "missing" / "page.html")


@pytest.mark.parametrize("number", list(figures.TITLES))
def test_figures_name_the_curves_they_lack(found, tmp_path, number):
    missing = figures.draw(number, found, tmp_path / "figure.png")
    assert matplotlib.image.imread(tmp_path / "figure.png").shape[0] > 400
    lacking = {"1": 1, "4": 4, "5": 5}  # of 2, 6 and 5 curves
    assert len(missing) == lacking[number]


def test_a_figure_shows_mean_and_spread_of_the_test_accuracy(found, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        figures.plots, "line", lambda axes, arm, key, *rest: drawn.append((arm.label, key, arm.curve(key)))
    )
    figures.draw("4", found, tmp_path / "figure.png")
    curves = {(label, key): curve for label, key, curve in drawn}
    assert set(curves) == {(label, key) for label in ("BP", "CBDFA random") for key in ("train_top1", "test_top1")}
    assert curves["CBDFA random", "test_top1"][-1] == pytest.approx((10, 71.0, 2**0.5))


def diverge(folder, recipe, seed, epochs):
    """Make of a recipe's run one that diverged after so many epochs."""
    path = write_result(folder, recipe, seed)
    run = results.read(path).run
    results.write(path, recipe, "short", replace(run, epochs=run.epochs[:epochs], result=None), "training diverged")


@pytest.fixture
def legends(monkeypatch):
    """Labels of the legend, as they are drawn."""
    drawn, legend = [], figures.plots.legend
    monkeypatch.setattr(figures.plots, "legend", lambda *a: (drawn.extend(arm.label for arm in a[1]), legend(*a)))
    return drawn


def test_runs_that_diverged_are_counted_and_not_drawn(found, tmp_path, legends):
    diverge(tmp_path / "shipped", "figure5/bp", 0, 0)
    diverge(tmp_path / "shipped", "figure5/cdfa-random", 0, 3)
    write_result(tmp_path / "shipped", "figure5/cdfa-random", 1)
    found = collection.collect("short", None)
    figures.draw("5", found, tmp_path / "figure.png")
    assert legends == ["CDFA random (n=1, 1 diverged)"]
    arm = figures._arm(found.recipes["figure5/cdfa-random"], found.all(found.recipes["figure5/cdfa-random"]))
    assert arm is not None
    assert [epoch for epoch, _, _ in arm.curve("test_top1")] == list(range(1, 11))
    recipes = [found.recipes["figure5/bp"]]
    assert figures._without_curve(found, recipes, {}) == "BP: 1 diverged"
    page.write(found, tmp_path / "page.html")


def test_the_legend_names_the_arms_of_every_panel_with_their_runs_in_each(found, tmp_path, legends):
    write_result(tmp_path / "shipped", "figure4/cifar100/cbdfa-random")
    write_result(tmp_path / "shipped", "figure4/cifar100/cdfa-random")
    figures.draw("4", collection.collect("short", None), tmp_path / "figure.png")
    assert legends == [
        "BP (CIFAR-10: n=1)",
        "CBDFA random (CIFAR-10: n=2; CIFAR-100: n=1)",
        "CDFA random (CIFAR-100: n=1)",
    ]


@pytest.mark.parametrize(
    "name, file",
    [
        *(("1", "table-1.csv"), ("2", "table-2.csv"), ("controls", "controls.csv")),
        *(("sweep", "sweep.csv"), ("small-data", "small-data.csv"), ("small-sweep", "small-sweep.csv")),
        ("duplicates", "duplicates.csv"),
    ],
)
def test_the_tables_in_the_docs_are_those_of_the_result_files(name, file):
    table = tables.TABLES[name](collection.collect("short", None))
    assert (DOCS / file).read_bytes() == to_csv(table.header, table.rows)


def test_the_near_duplicates_of_a_list_are_left_out_of_the_same_runs():
    ours, listed = (
        [[line[0], line[1], line[2], line[-1]] for line in csv.reader((DOCS / name).read_text().splitlines())]
        for name in ("duplicates.csv", "duplicates-listed.csv")
    )
    assert len(ours) == 9
    assert ours == listed


@pytest.mark.parametrize("protocol", ["medium", "full"])
def test_table_1_of_all_images_in_the_docs_is_that_of_the_result_files(protocol):
    table = tables.TABLES["1"](collection.collect(protocol, None))
    assert (DOCS / f"table-1-{protocol}.csv").read_bytes() == to_csv(table.header, table.rows)


def test_every_figure_of_the_readme_is_one_of_the_tables():
    rows = re.findall(r"^\| ([^|]+) \| (\d[\d.± ]*) \| (\d) \|$", (DOCS.parents[2] / "README.md").read_text(), re.M)
    cells = (DOCS / "controls.csv").read_text() + (DOCS / "table-1.csv").read_text()
    assert len(rows) == 5
    for _, top1, n in rows:
        assert f",{top1} (n={n})," in cells


def test_the_readme_s_figures_of_all_images_are_those_of_the_table():
    readme, table = (DOCS.parents[2] / "README.md").read_text(), (DOCS / "table-1-medium.csv").read_text()
    found = re.search(r"ahead: ([\d.]+) % against ([\d.]+) % \(CBDFA Eq\. 9\) and ([\d.]+) % \(CDFA Eq\. 7\)", readme)
    assert found is not None
    for arm, top1 in zip(("BP", "CBDFA Eq. (9)", "CDFA Eq. (7)"), found.groups(), strict=True):
        assert re.search(rf"^CIFAR-10,{re.escape(arm)},[\d.]+,{top1} \(n=1\),", table, re.M)


def test_the_ratio_in_the_controls_is_the_one_that_was_measured():
    from torchdfa.paper.recipes import MATCH_RATIO

    found = collection.collect("short", None)
    summary = found.shipped(found.recipes["sweep/cbdfa-product/lr0.003-wd0.0005"])
    assert summary is not None
    assert summary.boundary("norm_ratio") == pytest.approx(MATCH_RATIO, rel=0.1)
