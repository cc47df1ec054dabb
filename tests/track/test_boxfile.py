from __future__ import annotations

import numpy as np
import pytest

from torchdfa.errors import UsageError
from torchdfa.track.boxfile import read_boxes, read_times, write_boxes, write_times


@pytest.mark.parametrize("text", ["1,2,3,4\n5,6,7,8\n", "1\t2\t3\t4\r\n5\t6\t7\t8\r\n", "1 2  3 4\n5 6 7 8",
                                  "1, 2, 3, 4\n\n5;6;7;8\n"])  # fmt: skip
def test_every_delimiter_is_read(tmp_path, text):
    (tmp_path / "a.txt").write_bytes(text.encode())
    assert read_boxes(tmp_path / "a.txt").tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.mark.parametrize(
    "text, words",
    [
        ("1,2,3\n", ["line 1", "3 numbers"]),
        ("1,2,3,4\n1,2,3,4,5\n", ["line 2", "5 numbers"]),
        ("1,2,3,4\nx,2,3,4\n", ["line 2", "'x,2,3,4'"]),
        ("1,2,3,4\n1,nan,3,4\n", ["line 2", "NaN"]),
        ("1,2,3,4\n1,inf,3,4\n", ["line 2", "infinity"]),
        ("\n\n1,2,3,4\n1,nan,3,4\n", ["line 4", "NaN"]),
        ("\n1,2,3,4\n1,2,3,4,5,6,7,8\n", ["line 3", "8 numbers", "line 2 has 4"]),
        ("", ["empty"]),
    ],
)
def test_a_bad_line_is_named(tmp_path, text, words):
    path = tmp_path / "a.txt"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        read_boxes(path)
    for word in (str(path), *words):
        assert word in str(caught.value)


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(UsageError, match="cannot be read"):
        read_boxes(tmp_path / "none.txt")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UsageError, match="no text file"):
        read_boxes(tmp_path / "b.txt")


def test_polygons_are_said_once(tmp_path):
    (tmp_path / "a.txt").write_text("0,0,10,0,10,5,0,5\n")
    with pytest.warns(UserWarning, match="polygons"):
        assert read_boxes(tmp_path / "a.txt").tolist() == [[0, 0, 10, 5]]


def test_what_is_written_is_read_again(tmp_path):
    boxes = np.array([[1.2345, 2, 3, 4], [-1, 0.5, 6, 7]])
    write_boxes(tmp_path / "a.txt", boxes)
    assert (tmp_path / "a.txt").read_text() == "1.234,2.000,3.000,4.000\n-1.000,0.500,6.000,7.000\n"
    write_times(tmp_path / "t.txt", np.array([0.25, 2]))
    assert read_times(tmp_path / "t.txt").tolist() == [0.25, 2]
