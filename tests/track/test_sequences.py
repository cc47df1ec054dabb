from __future__ import annotations

import json

import pytest

from torchdfa.errors import UsageError
from torchdfa.track import table
from torchdfa.track.sequences import OTB, frame_files
from track.folders import make


def test_the_sets_have_the_sizes_that_the_authors_say():
    assert [len(table.names(version)) for version in table.VERSIONS] == [51, 50, 100]
    assert len({target.folder for target in table.targets().values()}) == 98
    counts = {a: sum(a in t.attributes for t in table.targets().values()) for a in table.ATTRIBUTES}
    assert len(counts) == 11
    assert counts["OV"] == 14
    assert all(t.attributes for t in table.targets().values())


@pytest.mark.parametrize("variant", ["Jogging-1", "jogging_1", "Jogging.1", "Jogging1"])
def test_every_spelling_is_one_name(variant):
    assert table.canonical(variant) == "Jogging-1"
    assert table.targets()["Jogging-1"].ground_truth == "groundtruth_rect.1.txt"


def test_human4_is_its_second_target():
    assert table.canonical("Human4") == table.canonical("human4_2") == "Human4-2"
    assert table.canonical("BasketBall") == "Basketball"


def test_an_unknown_name_gets_the_nearest():
    with pytest.raises(UsageError, match="DragonBaby"):
        table.canonical("DragonBabby")


# name, first and last image, lines of ground truth; then frames that count, the first image and its box
RANGES = [
    ("David", 1, 770, 471, 471, "0300.jpg", 1),
    ("David", 300, 770, 471, 471, "0300.jpg", 1),
    ("Football1", 1, 81, 74, 74, "0001.jpg", 1),
    ("David", 1, 471, 471, 471, "0001.jpg", 1),
    ("Football1", 1, 81, 81, 74, "0001.jpg", 1),
    ("Freeman3", 1, 474, 460, 460, "0001.jpg", 1),
    ("Freeman4", 1, 297, 283, 283, "0001.jpg", 1),
    ("Diving", 1, 231, 215, 215, "0001.jpg", 1),
    ("BlurCar1", 247, 988, 742, 742, "0247.jpg", 1),
    ("BlurCar1", 1, 742, 742, 742, "0001.jpg", 1),
    ("BlurCar3", 3, 359, 357, 357, "0003.jpg", 1),
    ("BlurCar4", 18, 397, 380, 380, "0018.jpg", 1),
    ("Tiger1", 1, 354, 354, 349, "0006.jpg", 6),
    ("Tiger1", 6, 354, 349, 349, "0006.jpg", 1),
    ("Tiger1", 1, 349, 349, 349, "0001.jpg", 1),
    ("Board", 1, 698, 697, 697, "00001.jpg", 1),
    ("Twinnings", 1, 472, 471, 471, "0001.jpg", 1),
]


@pytest.mark.parametrize("name, first, last, boxes, frames, image, box", RANGES)
def test_the_frames_that_count(tmp_path, name, first, last, boxes, frames, image, box):
    make(tmp_path, name, first, last, boxes, digits=5 if name == "Board" else 4)
    (sequence,) = OTB(tmp_path, sequences=[name])
    assert (len(sequence), len(sequence.images)) == (frames, frames)
    assert sequence.images[0].name == image
    assert sequence.boxes[0].tolist() == [box, 2, 3, 4]


def test_tiger1_keeps_its_first_frames_where_asked(tmp_path):
    make(tmp_path, "Tiger1", 1, 354, 354)
    assert len(OTB(tmp_path, sequences=["Tiger1"], omit=False)["tiger1"]) == 354


def test_two_targets_share_a_folder(tmp_path):
    make(tmp_path, "Jogging", 1, 3, {"groundtruth_rect.1.txt": 3, "groundtruth_rect.2.txt": 3})
    make(tmp_path, "Human4", 1, 3, {"groundtruth_rect.1.txt": 0, "groundtruth_rect.2.txt": 3})
    data = OTB(tmp_path, missing="skip")
    assert list(data.sequences) == ["Human4-2", "Jogging-1", "Jogging-2"]
    assert len(data.absent) == 97
    chosen = OTB(tmp_path, sequences=["Jogging-1"])
    assert (len(chosen), chosen.size) == (1, 100), "of so many: those of the set"


def test_what_is_missing_is_said(tmp_path):
    make(tmp_path, "Girl", 1, 3, 3)
    with pytest.raises(UsageError, match="lacks 99 of the 100 sequences"):
        OTB(tmp_path)
    with pytest.raises(UsageError, match="not a folder"):
        OTB(tmp_path / "none")
    with pytest.raises(UsageError, match="OTB-2015"):
        OTB(tmp_path, "OTB-2015")
    with pytest.raises(UsageError, match="not in OTB-2013"):
        OTB(tmp_path, "OTB-2013", sequences=["Biker"])


def test_counts_that_differ_are_an_error_with_both(tmp_path):
    folder = make(tmp_path, "Girl", 1, 5, 3)
    with pytest.raises(UsageError, match="5 images that count but 3 boxes"):
        OTB(tmp_path, sequences=["Girl"])
    assert len(OTB(tmp_path, sequences=["Girl"], truncate=True)["Girl"]) == 3
    (folder / "groundtruth_rect.txt").unlink()
    with pytest.raises(UsageError, match="no ground truth"):
        OTB(tmp_path, sequences=["Girl"])


def test_frames_are_in_the_order_of_their_numbers(tmp_path):
    folder = make(tmp_path, "mine", 1, 12, 12, digits=1)
    assert [path.stem for path in frame_files(folder)] == [str(k) for k in range(1, 13)]
    for path in sorted((folder / "img").iterdir()):
        path.rename(path.with_name(f"frame{path.name}"))
    (folder / "img" / "frame3.jpg").rename(folder / "img" / "frame003.jpg")
    names = [path.stem.removeprefix("frame") for path in frame_files(folder)]
    assert names == ["1", "2", "003", *(str(k) for k in range(4, 13))]


def test_ground_truth_alone_from_json(tmp_path):
    (tmp_path / "truth.json").write_text(json.dumps({"jogging_2": {"gt_rect": [[1, 2, 3, 4]]}}))
    (sequence,) = OTB(tmp_path / "truth.json", missing="skip")
    assert (sequence.name, sequence.boxes.tolist()) == ("Jogging-2", [[1, 2, 3, 4]])
    (tmp_path / "truth.json").write_text(json.dumps({"Girl": {"boxes": []}}))
    with pytest.raises(UsageError, match="gt_rect"):
        OTB(tmp_path / "truth.json")


def test_all_frames_of_the_real_set(shared_data):
    data = OTB(shared_data / "otb" / "OTB2015.json")
    assert (len(data), sum(map(len, data))) == (100, 59_035)
    real = OTB(shared_data / "otb", missing="skip")
    assert (len(real), sum(map(len, real))) == (10, 2240)
    assert all(len(s.images) == len(s) for s in real)
