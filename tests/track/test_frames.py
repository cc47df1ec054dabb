from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from torchdfa.errors import UsageError
from torchdfa.track.frames import pixels


@pytest.mark.parametrize("mode, value, expected", [("L", 77, (77, 77, 77)), ("RGB", (1, 2, 3), (1, 2, 3)),
                                                   ("RGBA", (1, 2, 3, 0), (255, 255, 255)), ("P", 0, (0, 0, 0)),
                                                   ("CMYK", (0, 255, 255, 0), (255, 0, 0))])  # fmt: skip
def test_every_kind_of_image_becomes_rgb(tmp_path, mode, value, expected):
    image = Image.new(mode, (5, 4), value)
    found = pixels(image)
    assert (found.dtype, tuple(found.shape)) == (torch.uint8, (3, 4, 5))
    assert found[:, 0, 0].tolist() == list(expected)


def test_sixteen_bits_are_scaled(tmp_path):
    Image.fromarray(np.full((4, 5), 0x4D01, dtype=np.uint16)).save(tmp_path / "deep.png")
    assert pixels(tmp_path / "deep.png")[:, 0, 0].tolist() == [0x4D] * 3
    assert pixels(np.full((4, 5), 0x4D01, dtype=np.uint16))[:, 0, 0].tolist() == [0x4D] * 3


def test_arrays_and_tensors_are_taken_as_they_are():
    array = np.arange(60, dtype=np.uint8).reshape(4, 5, 3)
    assert torch.equal(pixels(array), torch.from_numpy(array).permute(2, 0, 1))
    assert torch.equal(pixels(pixels(array)), pixels(array))


@pytest.mark.parametrize("frame", [np.zeros((4, 5, 3)), np.zeros((4, 5, 4), np.uint8), torch.zeros(3, 4, 5), 7])
def test_what_is_no_frame_is_refused(frame):
    with pytest.raises(UsageError, match="a frame"):
        pixels(frame)


def test_a_truncated_file_is_named(tmp_path):
    Image.effect_noise((90, 90), 50).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:900])
    with pytest.raises(UsageError, match=r"cut\.jpg"):
        pixels(tmp_path / "cut.jpg")
    with pytest.raises(UsageError, match="missing"):
        pixels(tmp_path / "none.jpg")
