"""Images of requests: PNG and JPEG, checked by their header before memory is allocated, brought to the model's size."""

from __future__ import annotations

import base64
import binascii
import io
import math
import struct
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from testtime.data import Crop, resized
from testtime.errors import DataError, need_pillow
from testtime.serve.server.problems import Refusal

__all__ = ["KINDS", "decode_images", "from_base64"]

KINDS = {"image/png": "PNG", "image/jpeg": "JPEG"}
SIGNATURES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG"}
DAMAGED = (
    *(
        OSError,
        SyntaxError,
        ValueError,
        EOFError,
        LookupError,
        TypeError,
        ArithmeticError,
        struct.error,
        zlib.error,
    ),
)  # what Pillow raises while it reads damaged files
SIDE = 65_535  # pixels of the longest side, that of JPEG: scaling an image of a single column takes long
AGAIN = "encode the image again as PNG or JPEG with 8 bits per channel"


def from_base64(texts: Sequence[str]) -> list[bytes]:
    """Return the files that texts hold in base64.

    Raises:
        Refusal: 400: a text is no base64.
    """
    files = []
    for i, text in enumerate(texts):
        try:
            files.append(base64.b64decode(text, validate=True))
        except (binascii.Error, ValueError) as error:
            raise Refusal(
                400,
                "bad-base64",
                f"images.{i}: expected base64, found otherwise ({error})",
                "encode the file",
            ) from None
    return files


def decode_images(
    files: Sequence[bytes],
    channels: int,
    size: Crop | tuple[int, int] | None,
    pixels: int,
    together: int | None = None,
) -> Tensor:
    """Decode images and bring them to the size of the model.

    Args:
        files: PNG or JPEG files; the orientation of EXIF is applied, transparency is dropped.
        channels: 1 (grey) or 3 (RGB).
        size: size of the result; None keeps that of the images, which is to be the same for all.
        pixels: largest number of pixels of an image.
        together: largest number of pixels of all images, by their headers; None: without a limit.

    Returns:
        images in [0, 1], float32 (N, channels, H, W).

    Raises:
        Refusal: 400 or 413: a file is no such image, damaged, or too large.
    """
    images: list[Tensor] = []
    left = math.inf if together is None else together
    for i, file in enumerate(files):
        place = f"images.{i}: " if len(files) > 1 else ""
        array = torch.from_numpy(_decoded(file, channels, pixels, place))
        left -= array.shape[-2] * array.shape[-1]
        if left < 0:
            raise Refusal(
                413,
                "images-too-large",
                f"{place}the images up to this one have more than {together} pixels together",
                "scale them down first, or send fewer at once",
            )
        image = array.float().div_(255)[None]
        try:
            images.append(resized(image, size).clamp(0, 1))
        except DataError as error:
            raise Refusal(400, "bad-image", f"{place}{error}", "cut the image") from None
    shapes = {tuple(image.shape[-2:]) for image in images}
    if len(shapes) > 1:
        found = ", ".join(f"{w} x {h}" for h, w in sorted(shapes)[:5])
        raise Refusal(
            400, "bad-image", f"the images have different sizes ({found})", "send images of one size"
        )
    return torch.cat(images)


def _decoded(file: bytes, channels: int, pixels: int, place: str) -> np.ndarray:
    Image = need_pillow()
    from PIL import ImageOps, UnidentifiedImageError

    kind = next((name for sign, name in SIGNATURES.items() if file.startswith(sign)), None)
    if kind is None:
        raise Refusal(400, "bad-image", f"{place}expected a PNG or JPEG file, found other bytes", AGAIN)
    try:
        with Image.open(io.BytesIO(file), formats=[kind]) as image:
            width, height = image.size
            if width * height > pixels or max(width, height) > SIDE:
                raise Refusal(
                    413,
                    "image-too-large",
                    f"{place}the image has {width} x {height} pixels, expected at most {pixels}, and {SIDE} on a side",
                    "scale it down first",
                )
            deep = kind == "PNG" and file[24] > 8
            if deep or image.mode[0] in "IF":
                raise Refusal(
                    400, "bad-image", f"{place}expected 8 bits per channel, found mode {image.mode}", AGAIN
                )
            upright = ImageOps.exif_transpose(image)
            upright.info.pop("transparency", None)
            array = np.array(upright.convert("L" if channels == 1 else "RGB"))
    except Refusal:
        raise
    except Image.DecompressionBombError as error:
        raise Refusal(413, "image-too-large", f"{place}{error}", "scale it down first") from None
    except UnidentifiedImageError:
        raise Refusal(
            400, "bad-image", f"{place}expected a {kind} image, found a file that only begins as one", AGAIN
        ) from None
    except DAMAGED as error:
        raise Refusal(
            400, "bad-image", f"{place}expected a {kind} image, found a damaged file ({error})", AGAIN
        ) from None
    return array[None] if channels == 1 else np.ascontiguousarray(array.transpose(2, 0, 1))
