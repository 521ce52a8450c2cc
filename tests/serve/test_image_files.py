"""Every entry reads a file alike: turned as EXIF says, and refused where a channel has more than 8 bits."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from testtime.serve import read_image
from testtime.serve.image_files import ImageFileError, LargeImageError, decode
from testtime.serve.ray import batch_of

Image = pytest.importorskip("PIL.Image", reason="Pillow comes with testtime[images]")
ORIENTATION = 0x0112  # the tag of EXIF
PIXELS = np.random.default_rng(0).integers(0, 256, (8, 5, 3), dtype=np.uint8)
READERS: dict[str, Callable[[bytes], Tensor]] = {
    "image": read_image,
    "batch": lambda file: batch_of(file)[0],
    "resized": lambda file: batch_of(file, (3, 5, 8))[0],
}


def written(image: Image.Image, kind: str, orientation: int | None = None) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    image.save(buffer, kind, exif=exif)
    return buffer.getvalue()


def deep() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((5, 8), 32_244, dtype=np.uint16)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_an_image_is_turned_as_exif_says(reader: str, kind: str) -> None:
    plain = read_image(written(Image.fromarray(PIXELS), kind))
    assert plain.shape == (3, 8, 5)
    turned = READERS[reader](written(Image.fromarray(PIXELS), kind, 6))
    assert torch.equal(turned, plain.rot90(-1, (1, 2)))  # 6: a quarter turn clockwise


@pytest.mark.parametrize("reader", READERS)
def test_more_than_eight_bits_are_refused(reader: str) -> None:
    with pytest.raises(ValueError, match="expected 8 bits per channel, found mode I;16; encode the image"):
        READERS[reader](deep())


def test_the_server_reads_a_file_alike() -> None:
    pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
    from testtime.serve.server.images import decode_images
    from testtime.serve.server.problems import Refusal

    file = written(Image.fromarray(PIXELS), "JPEG", 6)
    for channels in (1, 3):
        served = decode_images([file], channels, (7, 7), 100)
        assert torch.equal(served, batch_of(file, (channels, 7, 7)))
        assert torch.equal(decode_images([file], channels, None, 100)[0], read_image(file, channels=channels))
    with pytest.raises(Refusal, match="expected 8 bits per channel") as refused:
        decode_images([deep()], 3, None, 100)
    assert (refused.value.status, refused.value.code) == (400, "bad-image")
    with pytest.raises(Refusal, match="expected at most 39,") as refused:
        decode_images([file], 3, None, 39)
    assert (refused.value.status, refused.value.code) == (413, "image-too-large")


def test_errors_are_those_of_the_library_and_travel_between_processes() -> None:
    with pytest.raises(
        LargeImageError, match="5 x 8 pixels, expected at most 39, and 65535 on a side; scale it"
    ) as found:
        decode(written(Image.fromarray(PIXELS), "PNG"), 3, 39)
    again = pickle.loads(pickle.dumps(found.value))
    assert isinstance(again, ImageFileError)
    assert (str(again), again.advice) == (str(found.value), "scale it down first")
