"""Decoding of image files: depth, orientation, modes, size."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from testtime.data import decoding
from testtime.data.decoding import MAX_PIXELS, decoded, image_bytes
from testtime.errors import DataError

cv2 = pytest.importorskip("cv2")
FILE = Path("a.png")
TURNS = {1: 0, 3: 2, 6: 3, 8: 1}  # EXIF orientation: quarter turns counter-clockwise of the stored pixels
pytestmark = pytest.mark.filterwarnings("error")


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height: int = 20, width: int = 30, channels: int = 3) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8).squeeze()


def png_header(width: int, height: int) -> bytes:
    """The beginning of a PNG that declares a size and has no pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    rows = b"IDAT" + zlib.compress(b"\0")
    chunks = (
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (head, rows, b"IEND")
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, channels: int, kind: str) -> None:
    pixels = noise(channels=channels)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(Image.fromarray(pixels), kind, exif=exif, **options)
    upright = np.rot90(pixels, TURNS[orientation])
    found = decoded(data, channels, FILE)
    if kind == "WEBP" and channels == 1:  # it stores colour
        assert found.shape[1:] == upright.shape
    else:
        assert np.array_equal(np.moveaxis(found, 0, -1).squeeze(), upright)


def test_stored_pixels_on_demand() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.fromarray(noise()), exif=exif)
    assert np.array_equal(decoded(data, 3, FILE, upright=False), noise().transpose(2, 0, 1))


def test_a_damaged_exif_block_is_no_damaged_picture() -> None:
    data = encoded(Image.fromarray(noise()), "JPEG", exif=b"Exif\0\0garbage")
    assert decoded(data, 3, FILE).shape == (3, 20, 30)


@pytest.mark.parametrize("suffix", [".png", ".tiff", ".ppm", ".pgm", ".jp2"])
def test_more_than_8_bits_are_refused(suffix: str) -> None:
    deep = np.random.default_rng(0).integers(0, 65536, (64, 64, 3), dtype=np.uint16)
    data = cv2.imencode(suffix, deep[..., 0] if suffix == ".pgm" else deep)[1].tobytes()
    with pytest.raises(DataError, match=r"a\.png: expected 8 bits a channel, found (16|mode I); convert"):
        decoded(data, 3, FILE)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (b"P6\n# a comment 9 9\n2 1\n1023\n" + bytes(12), "10"),
        (b"P3 1 1 256 256 0 0", "9"),
        (encoded(Image.fromarray(np.ones((4, 4), np.uint16))), "mode I;16"),
        (encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), "mode F"),
    ],
)
def test_other_deep_images_are_refused(data: bytes, found: str) -> None:
    with pytest.raises(DataError, match=f"expected 8 bits a channel, found {found}; convert"):
        decoded(data, 3, FILE)


def test_deep_avif_is_refused() -> None:
    ten = np.full((16, 16, 3), 700, np.uint16)
    try:
        data = cv2.imencode(".avif", ten, [cv2.IMWRITE_AVIF_DEPTH, 10])[1].tobytes()
    except (cv2.error, AttributeError):
        pytest.skip("this OpenCV writes no AVIF")
    with pytest.raises(DataError, match=r"found 10; convert|found a damaged file"):
        decoded(data, 3, FILE)


@pytest.mark.parametrize("levels", [b"P6 1 1 15 \x0f\0\x05", b"P6 1 1 255 \xff\0\x55"])
def test_fewer_bits_are_scaled(levels: bytes) -> None:
    assert decoded(levels, 3, FILE).ravel().tolist() == [255, 0, 85]


def test_every_mode_becomes_rgb_and_grey() -> None:
    grey = Image.new("L", (3, 2), 40)
    palette = Image.new("P", (3, 2), 1)
    palette.putpalette([9, 9, 9, 40, 40, 40])
    frames = [Image.new("L", (3, 2), value) for value in (40, 90)]
    for data in (
        encoded(grey),
        encoded(grey, transparency=40),
        encoded(Image.new("RGB", (3, 2), (40,) * 3), transparency=(40,) * 3),
        encoded(Image.new("LA", (3, 2), (40, 7))),
        encoded(Image.new("RGBA", (3, 2), (40, 40, 40, 0))),
        encoded(palette, transparency=bytes([0, 3])),
        encoded(palette, "GIF", transparency=1),
        encoded(Image.new("CMYK", (3, 2), (0, 0, 0, 215)), "TIFF"),
        encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]),
        encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]),
    ):
        for channels in (1, 3):
            found = decoded(data, channels, FILE)
            assert found.shape == (channels, 2, 3)
            assert (found == 40).all()
    assert decoded(encoded(Image.new("1", (3, 2), 1)), 3, FILE).max() == 255
    ink = encoded(Image.new("CMYK", (16, 16), (0, 0, 0, 215)), "JPEG")
    assert np.abs(decoded(ink, 3, FILE).astype(int) - 40).max() <= 2


def test_a_damaged_picture_is_named() -> None:
    whole = encoded(Image.fromarray(noise(64, 64)), "JPEG")
    for data in (whole[:700], whole[:20], b"", b"text", encoded(Image.fromarray(noise()))[:300]):
        with pytest.raises(DataError, match=r"a\.png: expected an image, found a damaged file"):
            decoded(data, 3, FILE)


def test_a_format_that_runs_programs_is_not_decoded() -> None:
    drawing = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n"
    with pytest.raises(DataError, match=r"found a damaged file \(none of PNG, JPEG"):
        decoded(drawing, 3, FILE)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 12_000, 40_000, 2**31 - 1])
def test_large_images_are_refused_by_their_header(side: int) -> None:
    assert side**2 > MAX_PIXELS
    with pytest.raises(DataError, match=f"expected an image of at most {MAX_PIXELS} pixels"):
        decoded(png_header(side, side), 3, FILE)


def test_a_warning_that_was_made_an_error_is_a_data_error() -> None:
    with pytest.raises(DataError, match="expected an image of at most"):
        decoded(png_header(10_000, 10_000), 3, FILE)


def test_large_files_are_refused_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_BYTES", 10)
    (tmp_path / "a.png").write_bytes(bytes(11))
    with pytest.raises(DataError, match="expected an image of at most 10 bytes, found 11"):
        image_bytes(tmp_path / "a.png")
