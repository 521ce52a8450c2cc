"""Decoding of PNG and JPEG files: checked by their header before memory is allocated, and turned as EXIF says."""

from __future__ import annotations

import struct
import zlib
from io import BytesIO

import numpy as np

from testtime.errors import TesttimeError, need_pillow

__all__ = ["ImageFileError", "LargeImageError", "decode"]

SIGNATURES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
DEPTH = 24  # place of the bits per channel in a PNG file
SIDE = 65_535  # pixels of the longest side, that of JPEG: scaling an image of a single column takes long
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    LookupError,
    TypeError,
    ArithmeticError,
    struct.error,
    zlib.error,
)  # what Pillow raises while it reads damaged files
AGAIN = "encode the image again as PNG or JPEG with 8 bits per channel"
SMALLER = "scale it down first"


class ImageFileError(TesttimeError, ValueError):
    """A file is no PNG or JPEG image of 8 bits per channel, or damaged.

    Args:
        detail: description of the fault, and of the file that was expected.
        advice: next step of the caller.
    """

    def __init__(self, detail: str, advice: str = AGAIN) -> None:
        super().__init__(detail, advice)
        self.detail, self.advice = detail, advice

    def __str__(self) -> str:
        return f"{self.detail}; {self.advice}"


class LargeImageError(ImageFileError):
    """An image has more pixels than are decoded."""


def decode(file: bytes, channels: int, largest: int) -> np.ndarray:
    """Decode an image.

    Args:
        file: content of a PNG or JPEG file; the orientation of EXIF is applied, transparency is dropped.
        channels: 1 (grey) or 3 (RGB).
        largest: largest number of pixels.

    Returns:
        the image (channels, H, W), uint8.

    Raises:
        ImageFileError: the file is damaged, of another format, or has more than 8 bits per channel.
        LargeImageError: the image is too large.
        ImportError: Pillow is not installed.
    """
    image = need_pillow()
    from PIL import ImageOps, UnidentifiedImageError

    kind = next((name for sign, name in SIGNATURES.items() if file.startswith(sign)), None)
    if kind is None:
        raise ImageFileError("expected a PNG or JPEG file, found other bytes")
    try:
        with image.open(BytesIO(file), formats=[kind]) as opened:
            width, height = opened.size
            if width * height > largest or max(width, height) > SIDE:
                raise LargeImageError(
                    f"the image has {width} x {height} pixels, expected at most {largest}, and {SIDE} on a side",
                    SMALLER,
                )
            if (kind == "PNG" and file[DEPTH] > 8) or opened.mode[0] in "IF":
                raise ImageFileError(f"expected 8 bits per channel, found mode {opened.mode}")
            upright = ImageOps.exif_transpose(opened)
            upright.info.pop("transparency", None)
            pixels = np.array(upright.convert("L" if channels == 1 else "RGB"))
    except ImageFileError:
        raise
    except image.DecompressionBombError as error:
        raise LargeImageError(
            f"the image has too many pixels, expected at most {largest} ({error})", SMALLER
        ) from None
    except UnidentifiedImageError:
        raise ImageFileError(f"expected a {kind} image, found a file that only begins as one") from None
    except DAMAGED as error:
        raise ImageFileError(f"expected a {kind} image, found a damaged file ({error})") from None
    return pixels[None] if channels == 1 else np.ascontiguousarray(pixels.transpose(2, 0, 1))
