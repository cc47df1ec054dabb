"""What the tracking page shows is what the committed boxes give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from torchdfa.track import figures, reporting
from torchdfa.track.sequences import OTB

DOCS = Path(__file__).parents[2] / "docs" / "results" / "tracking"


@pytest.fixture(scope="module")
def scores(shared_data):
    data = OTB(shared_data / "otb", missing="skip")
    return reporting.score_all([DOCS / "OTB-100"], data, missing="skip")


def test_the_report_is_that_of_the_boxes(scores, tmp_path):
    reporting.write(tmp_path, scores)
    for name in ("report.md", "performance.json", "comparisons.json"):
        assert (tmp_path / name).read_text() == (DOCS / name).read_text(), f"draw {name} again"


def test_figure_6_is_that_of_the_boxes(scores, tmp_path):
    figures.figure6(scores, tmp_path)
    assert (tmp_path / "figure6.csv").read_text() == (DOCS / "figure6.csv").read_text()


def test_both_rules_tracked_the_same_sequences_with_the_same_weights():
    folders = [folder for folder in (DOCS / "OTB-100").iterdir() if folder.is_dir()]
    assert {folder.name.split("-")[0] for folder in folders} == {"bp", "bdfa"}
    assert len({tuple(sorted(path.name for path in folder.glob("*.txt"))) for folder in folders}) == 1
    described = [json.loads((folder / "config.json").read_text()) for folder in folders]
    assert len({json.dumps([d["weights"], d["frames"]]) for d in described}) == 1
    clips = json.loads((DOCS / "weights" / "result.json").read_text())["clips"]
    assert described[0]["weights"]["origin"] == f"pretrained on {clips} clips, seed 0"
