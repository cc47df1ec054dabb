"""What the tracking page shows is what the committed boxes give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torchdfa.track import figures, reporting
from torchdfa.track.sequences import OTB

DOCS = Path(__file__).parents[2] / "docs" / "results"
WHOLE, SHORT = (DOCS / name / "OTB-100" for name in ("tracking", "tracking-150"))
FORCED = DOCS / "tracking-forced" / "OTB-100-forced"
# What each report is drawn from, and how many first frames count in it.
REPORTS = {"tracking": ([WHOLE], None), "tracking-150": ([WHOLE, SHORT], 150), "tracking-forced": ([FORCED], None)}


@pytest.mark.parametrize("name", REPORTS)
def test_report_and_figure_6_are_those_of_the_boxes(name, shared_data, tmp_path):
    folders, frames = REPORTS[name]
    data = OTB(shared_data / "otb", missing="skip")
    scores = reporting.score_all(folders, data, missing="skip", frames=frames)
    reporting.write(tmp_path, scores)
    figures.figure6(scores, tmp_path)
    for file in ("report.md", "performance.json", "comparisons.json", "figure6.csv"):
        assert (tmp_path / file).read_text() == (DOCS / name / file).read_text(), f"draw {name}/{file} again"


def test_the_page_shows_the_seeds_and_differences_of_the_forced_report():
    lines = (DOCS / "tracking-forced" / "report.md").read_text().splitlines()
    shown = lines[35:55]  # as the page includes them
    assert shown[0].startswith("| tracker | seeds |")
    assert shown[-1].startswith("- bdfa-b8 - bp-b8:")


@pytest.mark.parametrize("results", [WHOLE, SHORT, FORCED], ids=lambda folder: folder.parent.name)
def test_both_rules_ran_on_the_same_sequences_with_the_same_weights(results):
    folders = {folder.name: folder for folder in results.iterdir() if folder.is_dir()}
    assert len({tuple(sorted(path.name for path in folder.glob("*.txt"))) for folder in folders.values()}) == 1
    described = {name: json.loads((folder / "config.json").read_text()) for name, folder in folders.items()}
    condition = {name: [d["weights"], d["frames"]] for name, d in described.items()}
    arms = {name.partition("-")[2] for name in folders}
    assert {f"{rule}-{arm}" for rule in ("bp", "bdfa") for arm in arms} == set(folders)
    assert all(condition[f"bp-{arm}"] == condition[f"bdfa-{arm}"] for arm in arms)
    usual = condition["bp-b32-s0" if results == SHORT else "bp-b128-s0"]
    anew = {"b64-s2", "b16-s2"} if results == SHORT else set()  # as the page says
    assert {arm for arm in arms if condition[f"bp-{arm}"] != usual} == anew
    assert len({d["frames"] for d in described.values()}) == 1
    clips = json.loads((DOCS / "tracking" / "weights" / "result.json").read_text())["clips"]
    assert {d["weights"]["origin"] for d in described.values()} == {f"pretrained on {clips} clips, seed 0"}
