from __future__ import annotations

import pytest
from PIL import Image

from torchdfa.errors import UsageError
from torchdfa.track.clips import find_clips, read_clip


def folder(root, name, frames, truth, lines, inside="", suffix="jpg"):
    place = root / name / inside
    place.mkdir(parents=True, exist_ok=True)
    for k in range(1, frames + 1):
        Image.new("RGB", (60, 40)).save(place / f"{k:08d}.{suffix}")
    (root / name / truth).write_text("\n".join(lines) + "\n")
    return root / name


def test_every_layout_is_read(tmp_path):
    otb = folder(tmp_path, "mine", 3, "groundtruth_rect.txt", ["1,2,10,12"] * 3, "img")
    polygons = ["1,2,11,2,11,14,1,14", ",".join(["nan"] * 8), "0,0,5,0,5,5,0,5"]
    vot = folder(tmp_path, "vot", 3, "groundtruth.txt", polygons, "color")
    tlp = folder(tmp_path, "tlp", 3, "groundtruth_rect.txt", ["1,1,2,10,12,0", "2,1,2,10,12,1", "3,5,2,10,12,0"], "img")
    got = folder(tmp_path, "GOT-10k_Train_1", 3, "groundtruth.txt", ["1,2,10,12"] * 3)
    (got / "absence.label").write_text("0\n1\n0\n")
    assert len(read_clip(otb)) == 3
    assert read_clip(vot).boxes.tolist() == [[1, 2, 10, 12], [0, 0, 5, 5]]
    assert [p.name for p in read_clip(vot).images] == ["00000001.jpg", "00000003.jpg"]
    assert read_clip(tlp).boxes[:, 0].tolist() == [1, 5]
    assert [p.name for p in read_clip(got).images] == ["00000001.jpg", "00000003.jpg"]
    assert [clip.name for clip in find_clips([tmp_path])] == ["GOT-10k_Train_1", "mine", "tlp", "vot"]
    assert [clip.name for clip in find_clips([otb])] == ["mine"]


def test_clips_that_cannot_be_used_are_named(tmp_path):
    folder(tmp_path, "good", 2, "groundtruth_rect.txt", ["1,2,10,12"] * 2, "img")
    folder(tmp_path, "short", 3, "groundtruth_rect.txt", ["1,2,10,12"] * 2, "img")
    with pytest.warns(UserWarning, match="short has 3 images but 2 boxes"):
        assert [clip.name for clip in find_clips([tmp_path])] == ["good"]
    with pytest.raises(UsageError, match="two clips are named 'good'"):
        find_clips([tmp_path / "good", tmp_path / "good"])
    with pytest.raises(UsageError, match="not a folder"):
        find_clips([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no clip in"):
        find_clips([tmp_path / "empty"])
    bad = folder(tmp_path, "bad", 1, "groundtruth_rect.txt", ["1,2,3"], "img")
    with pytest.raises(UsageError, match="line 1: 3 numbers"):
        read_clip(bad)
    got = folder(tmp_path, "got", 3, "groundtruth.txt", ["1,2,10,12"] * 3)
    (got / "absence.label").write_text("0\n1\n")
    with pytest.raises(UsageError, match=r"absence\.label has 2 lines for 3 frames"):
        read_clip(got)
    gone = folder(tmp_path, "gone", 1, "groundtruth_rect.txt", ["1,2,0,0"], "img")
    with pytest.raises(UsageError, match="no frame that shows"):
        read_clip(gone)
