from __future__ import annotations

import json

import numpy as np
import pytest

from torchdfa.errors import UsageError
from torchdfa.track.results import LAYOUTS, Results, read, write

BOXES = np.array([[1.5, 2, 3, 4], [2, 3, 4, 5.25]])
TIMES = np.array([0.5, 0.25])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_each_layout_is_read_as_it_was_written(tmp_path, layout):
    folder = write(tmp_path, Results("ours", {"Jogging-1": BOXES, "Girl": BOXES}, {"Girl": TIMES}), layout)
    found = read(folder)
    assert found.tracker == "ours"
    assert sorted(found.boxes) == ["Girl", "Jogging-1"]
    assert found.boxes["Jogging-1"].tolist() == BOXES.tolist()
    assert found.times.get("Girl") is not None or layout == "pysot"
    if layout in ("got10k", "pytracking"):
        assert found.times["Girl"].tolist() == TIMES.tolist()


def test_the_layouts_have_the_names_that_their_toolkits_look_for(tmp_path):
    found = Results("ours", {"Jogging-1": BOXES}, {"Jogging-1": TIMES})
    for layout in LAYOUTS:
        write(tmp_path / layout, found, layout)
    files = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()}
    assert files == {
        "got10k/ours/Jogging-1.txt",
        "got10k/ours/times/Jogging-1_time.txt",
        "pysot/ours/Jogging-1.txt",
        "pytracking/ours/Jogging_1.txt",
        "pytracking/ours/Jogging_1_time.txt",
        "otb/ours/Jogging-1.json",
    }
    assert (tmp_path / "pytracking/ours/Jogging_1.txt").read_text().startswith("1.500\t2.000")


def test_pymdnet_and_matlab_files_are_read(tmp_path):
    scipy_io = pytest.importorskip("scipy.io")
    (tmp_path / "py" / "Girl").mkdir(parents=True)
    (tmp_path / "py" / "Girl" / "result.json").write_text(json.dumps({"res": BOXES.tolist(), "type": "rect", "fps": 2}))
    found = read(tmp_path / "py")
    assert found.times["Girl"].tolist() == [0.5, 0.5]
    (tmp_path / "mat").mkdir()
    results = np.empty((1, 1), dtype=object)
    results[0, 0] = {"res": BOXES, "type": "rect", "fps": 4.0}
    scipy_io.savemat(tmp_path / "mat" / "girl_mat.mat", {"results": results})
    assert read(tmp_path / "mat").boxes["Girl"].tolist() == BOXES.tolist()


def test_two_results_of_one_sequence_are_refused(tmp_path):
    for name in ("Girl.txt", "girl.json"):
        (tmp_path / name).write_text("1,2,3,4\n")
    with pytest.raises(UsageError, match="both results of Girl"):
        read(tmp_path)


@pytest.mark.parametrize(
    "name, content, words",
    [
        ("Girl.json", "{", "not valid JSON"),
        ("Girl.json", "[{}]", "no list 'res'"),
        ("Girl.json", '[{"res": [[1,2,3,4]], "resType": "ivtAff"}]', "ivtAff"),
        ("Girl.mat", "<html>", "no MATLAB file"),
        ("Girl.txt", "1|2|3|4\n", "line 1"),
        ("car-7.txt", "1,2,3,4\n", "no result of an OTB sequence"),
    ],
)
def test_a_bad_file_is_named(tmp_path, name, content, words):
    (tmp_path / name).write_text(content)
    with pytest.raises(UsageError) as caught:
        read(tmp_path)
    assert words in str(caught.value)
    assert name in str(caught.value)


def test_a_missing_folder_or_wrong_layout(tmp_path):
    with pytest.raises(UsageError, match="not a folder of results"):
        read(tmp_path / "none")
    with pytest.raises(UsageError, match="must be one of got10k"):
        write(tmp_path, Results("a", {}), "vot")
