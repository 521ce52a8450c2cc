"""Decoding of image files with a bounded number of pixels, upright, with 8 bits per channel."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from testtime.data.files import AGAIN, need_file
from testtime.errors import DataError, need_pillow

__all__ = ["MAX_BYTES", "MAX_PIXELS", "decoded", "image_bytes", "opened"]

MAX_PIXELS = 89_000_000
"""Largest number of pixels of an image; a larger image is refused by its header, before memory is allocated.

Set it to read larger images; from twice its value on, ``PIL.Image.MAX_IMAGE_PIXELS`` refuses as well.
"""
MAX_BYTES = 1 << 30
"""Largest size of an image file in bytes."""
FORMATS = (
    "PNG",
    "JPEG",
    "MPO",
    "WEBP",
    "BMP",
    "DIB",
    "TIFF",
    "PPM",
    "GIF",
    "AVIF",
    "HEIF",
    "JPEG2000",
    "JXL",
    "TGA",
)
"""Formats that are decoded, whatever the suffix; others, some of which execute programs, are not."""
BITS_PER_SAMPLE = 258  # tag of TIFF


def image_bytes(path: Path) -> bytes:
    """Return the bytes of an image file.

    Args:
        path: file to read.

    Raises:
        DataError: the file is missing or larger than `MAX_BYTES`.
    """
    size = need_file(path, "an image").stat().st_size
    if size > MAX_BYTES:
        raise DataError(
            f"{path}: expected an image of at most {MAX_BYTES} bytes, found {size}; it is no image"
        )
    return path.read_bytes()


@contextmanager
def opened(encoded: bytes, path: Path) -> Iterator[Any]:
    """Open an image, whose pixels are decoded on demand within the ``with`` block.

    Args:
        encoded: content of an image file.
        path: path of the file, for the message.

    Raises:
        DataError: the image has more than `MAX_PIXELS` pixels, or is damaged.
        ImportError: Pillow is not installed.
    """
    Image = need_pillow()
    from PIL import UnidentifiedImageError

    Image.init()
    formats = [name for name in FORMATS if name in Image.OPEN]
    try:
        with Image.open(io.BytesIO(encoded), formats=formats) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(_too_large(path, f"{width} x {height}"))
            yield image
    except DataError:
        raise
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path}: expected an image, found a damaged file (none of {', '.join(formats)}); {AGAIN}"
        ) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(_too_large(path, f"more ({error})")) from error
    except (OSError, SyntaxError, ValueError, EOFError, IndexError) as error:
        raise DataError(f"{path}: expected an image, found a damaged file ({error}); {AGAIN}") from error


def decoded(encoded: bytes, channels: int, path: Path, upright: bool = True) -> NDArray[np.uint8]:
    """Return the pixels of an encoded image, uint8 (channels, H, W).

    The first frame of an animation is decoded. Palettes, 1-bit images and CMYK are converted; an alpha channel is dropped.

    Args:
        encoded: content of a JPEG, PNG or other common image file.
        channels: number of channels: 1 (grey) or 3 (RGB).
        path: path of the file, for the message.
        upright: whether the EXIF orientation is applied; otherwise the pixels are returned as stored.

    Raises:
        DataError: the image is damaged, has more than 8 bits per channel or more than `MAX_PIXELS` pixels.
        ImportError: Pillow is not installed.
    """
    with opened(encoded, path) as image:
        deep = f"mode {image.mode}" if image.mode[0] in "IF" else _bits(image.format, image, encoded)
        if deep:
            raise DataError(f"{path}: expected 8 bits a channel, found {deep}; convert it first")
        if upright:
            from PIL import ImageOps

            image = ImageOps.exif_transpose(image)
        image.info.pop("transparency", None)
        array = np.asarray(image.convert("L" if channels == 1 else "RGB"))
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _too_large(path: Path, found: str) -> str:
    return (
        f"{path}: expected an image of at most {MAX_PIXELS} pixels, found {found}; scale it down first, or set "
        "testtime.data.decoding.MAX_PIXELS"
    )


def _bits(kind: str, image: Any, encoded: bytes) -> str:
    """Return the bits per channel in the file's header if there are more than 8, which Pillow reduces to 8; otherwise ""."""
    depths: tuple[int, ...] = (8,)
    if kind == "PNG":
        depths = (encoded[24],)
    elif kind == "TIFF":
        depths = image.tag_v2.get(BITS_PER_SAMPLE, depths)
    elif kind == "PPM" and encoded[1:2] in b"2356":
        fields = re.sub(rb"#[^\r\n]*", b"", encoded[:1024]).split()
        depths = (int(fields[3]).bit_length(),)
    elif kind in ("AVIF", "HEIF") and (at := encoded.find(b"pixi", 0, 4096)) >= 0:
        depths = tuple(encoded[at + 9 : at + 9 + encoded[at + 8]])
    elif kind == "JPEG2000" and (at := encoded.find(b"\xff\x4f\xff\x51")) >= 0:
        count = int.from_bytes(encoded[at + 40 : at + 42], "big")
        depths = tuple((bits & 0x7F) + 1 for bits in encoded[at + 42 : at + 42 + 3 * count : 3])
    return f"{max(depths)}" if max(depths, default=8) > 8 else ""
