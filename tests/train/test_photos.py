"""One photo of each kind that people have: what its pixels become, or the sentence that refuses it."""

from __future__ import annotations

import io
import os
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, features
from torch import Tensor

from torchdfa.errors import UsageError
from torchdfa.train.photos import HEIC_ADVICE, MAX_BYTES, PhotoError, decode, decode_bytes, pillow_warnings

RED, BLUE = (220, 30, 20), (10, 40, 200)


def picture(size: tuple[int, int] = (64, 48)) -> Image.Image:
    """Red with a blue right third."""
    image = Image.new("RGB", size, RED)
    image.paste(BLUE, (2 * size[0] // 3, 0, size[0], size[1]))
    return image


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decoded(content: bytes, size: int = 12, channels: int = 3) -> Tensor:
    with pillow_warnings():
        return decode_bytes(content, size, channels, name="photo")


def colour(pixels: Tensor, row: int, column: int) -> list[int]:
    return [int(value) for value in pixels[:, row, column]]


def close(found: list[int], expected: tuple[int, ...], levels: int = 12) -> bool:
    return all(abs(f - e) <= levels for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO"])
def test_common_formats(kind: str) -> None:
    if kind in ("AVIF", "WEBP") and not features.check(kind.lower()):
        pytest.skip(f"this Pillow was built without {kind}")
    if kind == "JPEG2000" and not features.check("jpg_2000"):
        pytest.skip("this Pillow was built without JPEG 2000")
    pixels = decoded(encoded(picture((48, 48)), kind))
    assert (pixels.shape, pixels.dtype, pixels.is_contiguous()) == ((3, 12, 12), torch.uint8, True)
    assert close(colour(pixels, 6, 2), RED)
    assert close(colour(pixels, 6, 10), BLUE)


def test_the_shorter_side_is_resized_and_the_centre_cut_out() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (100, 300, 3), np.uint8)
    wide = Image.fromarray(noise)
    resized = np.array(wide.resize((30, 10), Image.Resampling.BILINEAR))
    expected = torch.from_numpy(resized[:, 10:20]).permute(2, 0, 1)
    assert torch.equal(decoded(encoded(wide, "PNG"), 10), expected)
    tall = wide.transpose(Image.Transpose.TRANSPOSE)
    assert torch.equal(decoded(encoded(tall, "PNG"), 10), expected.transpose(1, 2))


def test_shrinking_averages_and_small_photos_grow() -> None:
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::2] = 255
    pixels = decoded(encoded(Image.fromarray(stripes), "PNG"), 8)
    assert 118 < int(pixels.min()) <= int(pixels.max()) < 137  # without antialias: 0 or 255
    assert close(colour(decoded(encoded(Image.new("RGB", (1, 1), RED), "PNG"), 5), 2, 2), RED, 0)
    assert decoded(encoded(Image.new("RGB", (3000, 1), RED), "PNG"), 5).shape == (3, 5, 5)


def test_a_large_jpeg_decoded_in_part_equals_the_whole_decoded() -> None:
    smooth = Image.fromarray(np.random.default_rng(0).integers(0, 256, (5, 5, 3), np.uint8)).resize((1600, 1200))
    content = encoded(smooth, "JPEG", quality=95)
    whole = decoded(encoded(Image.open(io.BytesIO(content)).convert("RGB"), "PNG"), 32)
    assert (decoded(content, 32).int() - whole.int()).abs().max() <= 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(orientation: int) -> None:
    upright = Image.new("RGB", (40, 40), "white")
    upright.paste(RED, (0, 0, 20, 20))
    upright.paste(BLUE, (20, 0, 40, 20))
    undo = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    stored = upright if undo is None else upright.transpose(undo)
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = decoded(encoded(stored, "JPEG", exif=exif, quality=95))
    assert close(colour(pixels, 2, 2), RED)
    assert close(colour(pixels, 2, 9), BLUE)
    assert close(colour(pixels, 9, 2), (255, 255, 255))


def test_grey_and_black_and_white() -> None:
    assert colour(decoded(encoded(Image.new("L", (9, 9), 77), "JPEG", quality=100)), 1, 1) == [77, 77, 77]
    assert colour(decoded(encoded(Image.new("1", (9, 9), 1), "PNG")), 1, 1) == [255, 255, 255]


def test_cmyk_jpeg() -> None:
    pixels = decoded(encoded(picture((48, 48)).convert("CMYK"), "JPEG", quality=95))
    assert close(colour(pixels, 6, 2), RED)
    assert close(colour(pixels, 6, 10), BLUE)


@pytest.mark.parametrize("mode", ["P", "LA", "PA", "RGBA"])
def test_transparent_parts_lie_on_white(mode: str) -> None:
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))  # transparent black, as cut-out products have around them
    image.paste((90, 90, 90, 255), (0, 0, 20, 40))
    stored = image.quantize() if mode == "P" else image.convert(mode)
    pixels = decoded(encoded(stored, "TIFF" if mode == "PA" else "PNG"))
    assert close(colour(pixels, 6, 2), (90, 90, 90), 3)
    assert colour(pixels, 6, 10) == [255, 255, 255]


def test_palette_without_transparency() -> None:
    assert close(colour(decoded(encoded(picture().quantize(8), "PNG")), 6, 2), RED)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_grey_keeps_its_greys(kind: str) -> None:
    values = np.full((20, 20), 100 * 256, np.uint16)
    values[:, 10:] = 200 * 256
    pixels = decoded(encoded(Image.fromarray(values), kind))
    assert colour(pixels, 6, 2) == [100] * 3
    assert colour(pixels, 6, 10) == [200] * 3


def test_32_bit_integers_of_either_range() -> None:
    for scale in (1, 256):
        image = Image.fromarray(np.full((20, 20), 100 * scale + (300 * (scale > 1)), np.int32))
        assert colour(decoded(encoded(image, "TIFF")), 1, 1) == [100 + (scale > 1)] * 3


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_counts(kind: str) -> None:
    frames = [Image.new("RGB", (20, 20), c) for c in (RED, BLUE)]
    pixels = decoded(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert close(colour(pixels, 6, 6), RED)


def test_one_channel_for_grey_models(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(Image.new("RGB", (9, 9), (10, 200, 30)), "PNG"))
    pixels = decode(tmp_path / "a.png", 5, 1)
    assert (pixels.shape, int(pixels[0, 2, 2])) == ((1, 5, 5), 124)


def test_paths_strings_and_opened_images_are_alike_and_left_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(picture(), "JPEG"))
    before = path.read_bytes()
    with Image.open(path) as image:
        found = [decode(path, 24), decode(str(path), 24), decode(image, 24)]
        assert (image.size, image.mode) == ((64, 48), "RGB")
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])
    assert path.read_bytes() == before


def refusal(content: bytes) -> str:
    with pytest.raises(PhotoError) as caught:
        decoded(content)
    assert str(caught.value) == f"photo cannot be used: {caught.value.reason}."
    assert isinstance(caught.value, UsageError)
    return caught.value.reason


def test_broken_photos_say_so() -> None:
    jpeg, png = encoded(picture(), "JPEG"), encoded(picture(), "PNG")
    assert refusal(b"") == "its content is no image of a format that can be read"
    assert refusal(b"<html>not found</html>") == "its content is no image of a format that can be read"
    assert refusal(jpeg[:-40]).startswith("it is broken (OSError: image file is truncated")
    assert refusal(png[: len(png) // 2]).startswith("it is broken (")
    assert refusal(encoded(Image.fromarray(np.zeros((4, 4), np.float32)), "TIFF")).startswith("it holds floating-point")


def test_heic_is_refused_by_name_whatever_the_file_is_called() -> None:
    assert refusal(b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic" + b"\x00" * 50) == HEIC_ADVICE
    assert "convert to JPEG" in HEIC_ADVICE


def test_postscript_which_would_start_another_program_is_not_tried() -> None:
    assert "no image" in refusal(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


def test_image_bombs_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    content = encoded(Image.new("1", (1000, 1000)), "PNG")
    for limit in (900_000, 400_000):  # Pillow warns above the limit and raises above twice the limit
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert refusal(content) == f"it has more than {limit:,} pixels"
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    assert decoded(content).shape == (3, 12, 12)


def test_what_is_no_readable_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")  # opening it would wait for ever
    (tmp_path / "link.jpg").symlink_to("nowhere")
    (tmp_path / "loop.jpg").symlink_to("loop.jpg")
    (tmp_path / "folder.jpg").mkdir()
    for name in ("pipe.jpg", "link.jpg", "loop.jpg", "folder.jpg", "absent.jpg"):
        with pytest.raises(PhotoError, match="it is missing, or a broken link, or no regular file"):
            decode(tmp_path / name, 8)
    with (tmp_path / "huge.jpg").open("wb") as file:
        file.truncate(MAX_BYTES + 1)
    with pytest.raises(PhotoError, match="larger than 256 MB"):
        decode(tmp_path / "huge.jpg", 8)


def test_odd_files_do_not_warn() -> None:
    palette = encoded(picture().quantize(8), "PNG", transparency=bytes([255] * 8))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decoded(palette).shape == (3, 12, 12)


SEEDS = [encoded(picture((16, 16)), kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "TIFF", "PPM", "WEBP", "TGA")]


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(SEEDS), st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=6), st.data())
def test_damaged_photos_are_read_or_refused_in_one_way(
    content: bytes, changes: list[tuple[int, int]], data: st.DataObject
) -> None:
    damaged = bytearray(content)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    cut = data.draw(st.integers(0, len(damaged)) | st.just(len(damaged)))
    reason = ""
    try:
        assert decoded(bytes(damaged[:cut])).shape == (3, 12, 12)
    except PhotoError as error:
        reason = error.reason
    assert "object at 0x" not in reason  # reasons are recorded: the same file must give the same one
