from __future__ import annotations

import pytest

from torchdfa.errors import UsageError
from torchdfa.track import live, truth
from track.folders import make
from track.small import frames, tracker, write_sequences


@pytest.mark.parametrize("name", ["mine", "Football1"])
def test_every_image_counts_whatever_the_folder_is_called(tmp_path, name):
    folder = make(tmp_path, name, 71, 76, 6)
    found = truth.of_folder(str(folder), needed=True)
    assert found.first.tolist() == [1, 2, 3, 4]
    assert found.boxes[:, 0].tolist() == [1, 2, 3, 4, 5, 6]


def test_one_box_is_where_the_target_begins(tmp_path):
    """GOT-10k's test videos come with the first box alone: all frames are tracked, and nothing is scored."""
    folder = write_sequences(tmp_path, ["mine"], 4) / "mine"
    box, *_ = (folder / "groundtruth_rect.txt").read_text().splitlines()
    (folder / "groundtruth_rect.txt").unlink()
    (folder / "groundtruth.txt").write_text(f"{box}\n")
    summary = live.track(str(folder), [tracker(rule="bp")], tmp_path / "out")
    assert summary["frames"] == 4
    assert "mean_overlap" not in summary["trackers"]["MDNet-bp"]


def test_another_number_of_boxes_is_said(tmp_path):
    folder = make(tmp_path, "mine", 1, 6, 4)
    with pytest.warns(UserWarning, match="6 images and 4 boxes of ground truth; only the first box is used"):
        found = truth.of_folder(str(folder), needed=True)
    assert (found.first.tolist(), found.boxes) == ([1, 2, 3, 4], None)


def test_a_sequence_that_begins_late_needs_a_box(tmp_path):
    """David's boxes begin at its frame 300; --box is that of the first image, which is tracked from."""
    folder = str(make(tmp_path, "David", 298, 302, 3))
    with pytest.raises(UsageError, match=r"begins at frame 300 of David, not at the first of the 5 images here; pass"):
        truth.of_folder(folder, needed=True)
    with pytest.warns(UserWarning, match="ground truth is not used: .*begins at frame 300"):
        assert truth.of_folder(folder, needed=False) is None


def test_a_damaged_file_is_named(tmp_path):
    folder = make(tmp_path, "mine", 1, 3, 3)
    (folder / "groundtruth_rect.txt").write_text("1,2,3,4\n2,2,3,4\n3,x,3,4\n")
    with pytest.raises(UsageError, match=r"groundtruth_rect\.txt, line 3"):
        live.track(str(folder), [tracker()], tmp_path / "out")
    with pytest.warns(UserWarning, match="not used: .*line 3"):
        assert truth.of_folder(str(folder), needed=False) is None


def test_a_folder_without_says_nothing(tmp_path):
    folder = make(tmp_path, "mine", 1, 3, 3)
    (folder / "groundtruth_rect.txt").unlink()
    assert truth.of_folder(str(folder), needed=True) is None
    assert truth.of_folder(str(tmp_path / "clip.mp4"), needed=True) is None


def test_the_stream_begins_at_the_first_image(tmp_path):
    """Where --box says it: also in a folder that bears the name of a sequence of the benchmark."""
    folder = write_sequences(tmp_path, ["David"], 4) / "David"
    _, boxes = frames(1)
    summary = live.track(str(folder), [tracker(rule="bp")], tmp_path / "out", box=boxes[0])
    assert summary["frames"] == 4
