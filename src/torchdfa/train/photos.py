"""One photo: from a file of any common format to a square of uint8 pixels, or a sentence that says why not."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from torchdfa.errors import UsageError

T = TypeVar("T")
# Of the formats that Pillow knows these alone are tried: EPS, for one, would start another program.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "JPEG2000", "AVIF", "TGA", "ICO")
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif", ".tga", ".ico"}
)
HEIC_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"mif1", b"msf1"})
HEIC_ADVICE = (
    "HEIC cannot be read; convert to JPEG (most photo programs export it, so does heif-convert; an iPhone takes JPEG "
    "with Settings > Camera > Formats > Most Compatible)"
)
MAX_BYTES = 256 * 2**20
PREPARATION = (
    "turned as EXIF says; RGB, transparent parts on white, 16-bit grey by its upper 8 bits, first frame of an "
    "animation; largest centred square, resized with antialias (bilinear)"
)


class PhotoError(UsageError):
    """One photo that cannot be used; ``reason`` is the part of the sentence without the name."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} cannot be used: {reason}.")
        self.reason = reason


class _Unusable(Exception):
    """Carries a reason to where the photo's name is known."""


def decode(photo: str | Path | Image.Image, size: int, channels: int = 3) -> Tensor:
    """uint8 (channels, size, size), prepared as the training photos were; channels is 3 (RGB) or 1 (grey).

    Takes a path or an image opened with Pillow, which is left as it is. Raises PhotoError (a UsageError).
    """
    with pillow_warnings():
        if isinstance(photo, Image.Image):
            return _guarded(lambda: _pixels(photo, size, channels), "The image")
        return decode_bytes(read(Path(photo)), size, channels, name=str(photo))


def whole(photo: str | Path | Image.Image) -> Image.Image:
    """A photo in RGB at its own size, prepared as by ``decode`` but for its shape. Raises PhotoError."""
    with pillow_warnings():
        if isinstance(photo, Image.Image):
            return _guarded(lambda: _rgb(photo), "The image")
        content = read(Path(photo))
        return _guarded(lambda: _rgb(Image.open(io.BytesIO(content), formats=FORMATS)), str(photo))


def read(path: Path) -> bytes:
    """The bytes of a photo file; PhotoError where that fails or they are absurdly many."""
    try:
        if not path.is_file():
            raise PhotoError(str(path), "it is missing, or a broken link, or no regular file")
        if path.stat().st_size > MAX_BYTES:
            raise PhotoError(str(path), f"it is larger than {MAX_BYTES >> 20} MB")
        return path.read_bytes()
    except OSError as error:
        raise PhotoError(str(path), f"it cannot be read ({error.strerror})") from error


def decode_bytes(content: bytes, size: int, channels: int = 3, *, name: str) -> Tensor:
    """As ``decode``, for the content of a file; call it inside ``pillow_warnings()``."""
    # AVIF is a HEIF file too, and its writers may put a general brand first.
    if content[4:8] == b"ftyp" and content[8:12] in HEIC_BRANDS and b"avif" not in content[:64]:
        raise PhotoError(name, HEIC_ADVICE)
    return _guarded(lambda: _opened(content, size, channels), name)


@contextmanager
def pillow_warnings() -> Iterator[None]:
    """Pillow's warnings about odd files are silent in here, except that images too large for its limit are refused.

    Not for several threads at a time: enter it once around them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _guarded(work: Callable[[], T], name: str) -> T:
    try:
        return work()
    except _Unusable as error:
        raise PhotoError(name, str(error)) from None
    except UnidentifiedImageError as error:
        raise PhotoError(name, "its content is no image of a format that can be read") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PhotoError(name, f"it has more than {Image.MAX_IMAGE_PIXELS:,} pixels") from error
    except Exception as error:  # Pillow's readers let whatever a broken file provokes through
        raise PhotoError(name, f"it is broken ({type(error).__name__}: {str(error)[:100]})") from error


def _opened(content: bytes, size: int, channels: int) -> Tensor:
    with Image.open(io.BytesIO(content), formats=FORMATS) as image:
        # JPEG can be decoded at 1/2, 1/4 or 1/8; twice the wanted size leaves the resizing its antialias.
        image.draft(None, (2 * size, 2 * size))
        return _pixels(image, size, channels)


def _pixels(image: Image.Image, size: int, channels: int) -> Tensor:
    square = ImageOps.fit(_rgb(image), (size, size), Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(square.convert("L") if channels == 1 else square))
    return pixels.reshape(size, size, channels).permute(2, 0, 1).contiguous()


def _rgb(image: Image.Image) -> Image.Image:
    upright = _eight_bits(ImageOps.exif_transpose(image))
    opaque = _on_white(upright) if upright.has_transparency_data else upright
    return opaque.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit grey by its upper byte; Pillow's own conversion would turn all above 255 white."""
    if image.mode == "F":
        raise _Unusable("it holds floating-point numbers, whose white level is unknown")
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    deep = image.mode != "I" or values.max(initial=0) > 255  # "I" may hold either
    return Image.fromarray((np.clip(values, 0, 65535) >> (8 if deep else 0)).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image.convert("RGBA"))
    return white
