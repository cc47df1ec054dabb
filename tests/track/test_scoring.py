from __future__ import annotations

import functools
import json

import numpy as np
import pytest

from torchdfa.errors import UsageError
from torchdfa.track import results, table
from torchdfa.track.results import Results
from torchdfa.track.scoring import evaluate, markdown
from torchdfa.track.sequences import OTB, Sequence

# Their published scores were computed against other ground truth than today's (Tiger1: frames 1 to 5; Board and
# Twinnings: a last line), or on an older, shorter sequence (ClifBar).
CHANGED = {"Tiger1", "Board", "Twinnings", "ClifBar"}


def truth(name, frames=4, size=20.0):
    return Sequence(name, (), np.tile([50.0, 40.0, size, 10.0], (frames, 1)), table.targets()[name].attributes)


def test_every_sequence_counts_the_same():
    data = {"Girl": truth("Girl", 4), "Bolt": truth("Bolt", 400)}
    boxes = {name: s.boxes.copy() for name, s in data.items()}
    boxes["Girl"][1:] += 1000
    found = evaluate(Results("ours", boxes, {"Girl": np.array([0.1, 0.1, 0.2, 0.2])}), data)
    assert found.success[0] == (0.25 + 1) / 2
    assert found.precision20 == (0.25 + 1) / 2
    assert found.fps == pytest.approx(7.5)
    assert found.frames_per_second == pytest.approx(4 / 0.6)
    assert found.with_attribute("DEF").success[0] == 1, "of the two, Bolt alone has deformation"
    assert found.with_attribute("LR") is None
    written = json.loads(json.dumps(found.to_dict()))
    assert written["overall"]["protocol"] == "otb"
    assert written["seq_wise"]["Girl"]["success_score"] == found.sequences["Girl"].auc
    assert "| otb |" in markdown([found])
    assert "2 of 2" in markdown([found])


def test_missing_and_misfit_results():
    data = {"Girl": truth("Girl"), "Bolt": truth("Bolt")}
    with pytest.raises(UsageError, match="no result of 1 of 2 sequences"):
        evaluate(Results("a", {"Girl": data["Girl"].boxes}), data)
    some = evaluate(Results("a", {"Girl": data["Girl"].boxes}), data, missing="skip")
    assert "1 of 2" in markdown([some])
    with pytest.raises(UsageError, match="another set"):
        evaluate(Results("a", {"Dog": data["Girl"].boxes}), data, missing="skip")
    short = {name: s.boxes[:3] for name, s in data.items()}
    with pytest.raises(UsageError, match="3 boxes for 4 frames"):
        evaluate(Results("a", short), data)
    cut = evaluate(Results("a", short), data, truncate=True)
    assert cut.sequences["Girl"].frames == 3
    assert cut.cut == {"Girl": (3, 4), "Bolt": (3, 4)}
    assert cut.to_dict()["overall"]["frames_of_cut_sequences"] == {"Girl": [3, 4], "Bolt": [3, 4]}
    whole = evaluate(Results("a", {name: s.boxes for name, s in data.items()}), data, truncate=True)
    assert not whole.cut
    assert "frames_of_cut_sequences" not in whole.to_dict()["overall"]


def test_pytracking_pads_short_results_also_where_lengths_may_differ():
    data = {"Girl": truth("Girl")}
    short = Results("a", {"Girl": data["Girl"].boxes[:3]})
    padded = evaluate(short, data, rules="pytracking", truncate=True)
    assert padded.auc == evaluate(short, data, rules="pytracking").auc < 20 / 21
    assert not padded.cut
    long = Results("a", {"Girl": np.concatenate([data["Girl"].boxes] * 2)})
    assert evaluate(long, data, rules="pytracking", truncate=True).cut == {"Girl": (4, 8)}


def test_tiger1_of_other_toolkits_is_cut():
    boxes = np.arange(354)[:, None] + np.array([[1.0, 2, 30, 40]])
    data = {"Tiger1": Sequence("Tiger1", (), boxes[5:], (), omitted=5)}
    assert evaluate(Results("a", {"Tiger1": boxes}), data).auc == 20 / 21


@functools.cache
def official_set(folder, version="OTB-100"):
    return OTB(folder / "otb" / "OTB2015.json", version)


@functools.cache
def published(folder, tracker):
    return results.read(folder / "otb_results" / tracker)


def official(shared_data, tracker, scores):
    return json.loads((shared_data / "otb_results" / tracker / scores / "ALL.json").read_text())


OFFICIAL = [
    ("STRUCK", "OTB-2013", "scores_cvpr13", 50),
    ("STRUCK", "OTB-100", "scores_tb100", 96),
    ("MEEM", "OTB-100", "scores_tb100", 70),
    ("MUSTer", "OTB-100", "scores_tb100", 70),
]


@pytest.mark.parametrize("tracker, version, scores, least", OFFICIAL)
def test_the_official_overlap_of_every_sequence(shared_data, tracker, version, scores, least):
    expected = official(shared_data, tracker, scores)
    data = official_set(shared_data, version)
    found = evaluate(published(shared_data, tracker), data, missing="skip", truncate=True)
    compared = 0
    for name, value in zip(map(table.canonical, expected["seqs"]), expected["overlapScores"], strict=True):
        if name in found.sequences and name not in CHANGED:
            assert found.sequences[name].mean_overlap == pytest.approx(value, abs=1e-9), name
            compared += 1
    assert compared >= least


@pytest.mark.parametrize("tracker", ["MEEM", "MUSTer"])
def test_the_official_curves(shared_data, tracker):
    """The one set whose ground truth has not changed since, all 50 sequences together."""
    expected = official(shared_data, tracker, "scores_tb50")
    data = official_set(shared_data, "OTB-50")
    found = evaluate(published(shared_data, tracker), data)
    assert np.allclose(found.success, expected["successRateList"], atol=1e-9, rtol=0)
    assert np.allclose(found.precision, expected["precisionList"], atol=1e-9, rtol=0)
    assert found.auc * 100 == pytest.approx(expected["overlap"], abs=1e-9)


def test_the_official_curves_of_an_attribute(shared_data):
    expected = json.loads((shared_data / "otb_results/STRUCK/scores_cvpr13/LR.json").read_text())
    data = official_set(shared_data, "OTB-2013")
    found = evaluate(published(shared_data, "STRUCK"), data).with_attribute("LR")
    assert sorted(found.sequences) == sorted(map(table.canonical, expected["seqs"]))
    assert np.allclose(found.success, expected["successRateList"], atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    "version, auc, precision", [("OTB-100", 0.678, 0.909), ("OTB-2013", 0.708, 0.948)]
)  # fmt: skip
def test_the_published_figures_of_mdnet(shared_data, version, auc, precision):
    data = official_set(shared_data, version)
    found = evaluate(published(shared_data, "MDNet"), data)
    assert (round(found.auc, 3), round(found.precision20, 3)) == (auc, precision)


@pytest.mark.parametrize("rules", ["otb", "pysot"])
def test_the_truth_as_a_result_over_the_real_set(shared_data, rules):
    data = official_set(shared_data)
    kept = {s.name: s for s in data if (s.boxes > 0).all()}
    found = evaluate(Results("truth", {name: s.boxes for name, s in kept.items()}), kept, rules=rules)
    assert len(kept) == 96
    assert found.auc == pytest.approx(20 / 21, abs=1e-12)
