"""Images of requests: PNG and JPEG, checked by their header before memory is allocated, brought to the model's size."""

from __future__ import annotations

import base64
import binascii
import math
from collections.abc import Sequence

import torch
from torch import Tensor

from testtime.data import Crop, resized
from testtime.errors import DataError
from testtime.serve.image_files import ImageFileError, LargeImageError, decode
from testtime.serve.server.problems import Refusal

__all__ = ["KINDS", "decode_images", "from_base64"]

KINDS = {"image/png": "PNG", "image/jpeg": "JPEG"}


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
        try:
            array = torch.from_numpy(decode(file, channels, pixels))
        except LargeImageError as error:
            raise Refusal(413, "image-too-large", f"{place}{error.detail}", error.advice) from None
        except ImageFileError as error:
            raise Refusal(400, "bad-image", f"{place}{error.detail}", error.advice) from None
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
