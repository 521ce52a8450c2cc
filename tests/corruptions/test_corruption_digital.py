"""The digital corruptions against colorsys, scipy and Pillow."""

import builtins
import colorsys
import io
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from test_corruptions import photographs

from testtime.corruptions import CONSTANTS, corrupt, digital, filters, store_as_jpeg
from testtime.corruptions.rng import Rng

KINDS = [(constants, severity) for constants in ("cifar", "imagenet") for severity in range(1, 6)]


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).double().numpy()


def pictures(x: torch.Tensor) -> list[Image.Image]:
    return [Image.fromarray(image) for image in (channels_last(x) * 255).round().astype(np.uint8)]


def colours() -> torch.Tensor:
    """(1, 3, 12, 12): all corners and edges of the RGB cube, grey, black and white among them."""
    levels = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    cube = torch.cartesian_prod(levels, levels, levels)[:144]
    cube[:6] = levels[:, None].expand(6, 3)
    return cube.T.reshape(1, 3, 12, 12)


@pytest.mark.parametrize(("constants", "severity"), KINDS)
def test_brightness_adds_to_the_value_of_hsv(constants: str, severity: int) -> None:
    c = CONSTANTS[constants]["brightness"][severity - 1]
    x = colours()
    got = corrupt(x, "brightness", severity, constants=constants, quantise=False)  # type: ignore[arg-type]
    expected = []
    for colour in x[0].flatten(1).T.tolist():
        h, s, v = colorsys.rgb_to_hsv(*colour)
        expected.append(colorsys.hsv_to_rgb(h, s, min(v + c, 1)))
    np.testing.assert_allclose(got[0].flatten(1).T.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("constants", "severity"), KINDS)
def test_saturate_scales_the_saturation_of_hsv(constants: str, severity: int) -> None:
    a, b = CONSTANTS[constants]["saturate"][severity - 1]
    x = colours()
    got = corrupt(x, "saturate", severity, constants=constants, quantise=False)  # type: ignore[arg-type]
    expected = []
    for colour in x[0].flatten(1).T.tolist():
        h, s, v = colorsys.rgb_to_hsv(*colour)
        expected.append(colorsys.hsv_to_rgb(h, min(s * a + b, 1), v))
    np.testing.assert_allclose(got[0].flatten(1).T.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("constants", "severity"), KINDS)
def test_contrast_shrinks_to_the_mean_of_the_channel(constants: str, severity: int) -> None:
    c = CONSTANTS[constants]["contrast"][severity - 1]
    x = photographs(32, 3)
    got = channels_last(corrupt(x, "contrast", severity, constants=constants, quantise=False))  # type: ignore[arg-type]
    image = channels_last(x)
    mean = image.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(got, (image - mean) * c + mean, atol=1e-6)


@pytest.mark.parametrize("shape", [(32, 32), (224, 224), (96, 160)])
@pytest.mark.parametrize("severity", range(1, 6))
def test_pixelate_is_pillows_box(shape: tuple[int, int], severity: int) -> None:
    constants = "cifar" if shape[0] == 32 else "imagenet"
    c = CONSTANTS[constants]["pixelate"][severity - 1]
    x = (photographs(32, 2) if shape[0] == 32 else photographs(224, 2))[:, :, : shape[0], : shape[1]]
    got = corrupt(x, "pixelate", severity)
    h, w = shape
    for picture, result in zip(pictures(x), pictures(got), strict=True):
        small = picture.resize((int(w * c), int(h * c)), Image.Resampling.BOX)
        expected = np.asarray(small.resize((w, h), Image.Resampling.BOX)).astype(int)
        off = np.abs(np.asarray(result) - expected)
        assert off.max() <= 1
        assert (off > 0).mean() < 0.002  # halves that fall one way or the other


@pytest.mark.parametrize("by", ["opencv", "numpy"])
@pytest.mark.parametrize(
    ("shape", "c"), [((32, 32), 0.95), ((31, 70), 0.6), ((64, 48), 0.25), ((9, 5), 0.15)]
)
def test_pixelate_of_bytes_is_pillows_box(
    shape: tuple[int, int], c: float, by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if by == "numpy":
        monkeypatch.setattr(filters, "opencv", lambda: None)
    x = torch.randint(0, 256, (3, 3, *shape), generator=torch.Generator().manual_seed(0)).byte()
    got = digital.pixelate(x, c, Rng(torch.arange(3), "pixelate"))
    h, w = shape
    for picture, result in zip(x, got, strict=True):
        image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
        small = image.resize((max(1, int(w * c)), max(1, int(h * c))), Image.Resampling.BOX)
        expected = np.asarray(small.resize((w, h), Image.Resampling.BOX))
        assert np.array_equal(result.permute(1, 2, 0).numpy(), expected)
    floats = digital.pixelate(x.float() / 255, c, Rng(torch.arange(3), "pixelate"))
    assert torch.equal((floats * 255).round().byte(), got)


@pytest.mark.parametrize(("constants", "severity"), KINDS)
def test_jpeg_compression_is_pillows(constants: str, severity: int) -> None:
    quality = CONSTANTS[constants]["jpeg_compression"][severity - 1]
    x = photographs(32, 2)
    got = corrupt(x, "jpeg_compression", severity, constants=constants)  # type: ignore[arg-type]
    for picture, result in zip(pictures(x), pictures(got), strict=True):
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        assert np.array_equal(np.asarray(result), np.asarray(Image.open(file)))


def test_store_as_jpeg_has_the_quality_of_imagenet_c() -> None:
    x = photographs(224, 1)
    got = store_as_jpeg(x.double())
    assert got.dtype == torch.float64
    file = io.BytesIO()
    pictures(x)[0].save(file, "JPEG", quality=85, optimize=True)
    assert np.array_equal(np.asarray(pictures(got)[0]), np.asarray(Image.open(file)))
    assert (got - x).abs().mean() < 0.02
    assert (store_as_jpeg(x, 20) - x).abs().mean() > (got - x).abs().mean()


@pytest.mark.parametrize("quality", [7, 40, 80, 95])
def test_opencv_and_pillow_give_the_same_jpeg(quality: int) -> None:
    pytest.importorskip("cv2")
    images = [(x * 255).round().byte().numpy() for x in photographs(224, 2)[:, :, :101, :75]]
    for image in images:
        one, other = np.empty_like(image, order="C"), np.empty_like(image, order="C")
        digital.through_opencv(np.ascontiguousarray(image), quality, one)
        digital.through_pillow(image, quality, other)
        assert np.array_equal(one, other)


def test_without_opencv_pillow_is_the_codec(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert filters.opencv.__wrapped__() is None
    monkeypatch.setattr(filters, "opencv", filters.opencv.__wrapped__)
    assert digital.jpeg_codec() is digital.through_pillow


def test_without_pillow_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(filters, "opencv", lambda: None)
    monkeypatch.setitem(sys.modules, "cv2", None)
    real = builtins.__import__

    def no_pillow(
        name: str,
        globals: Mapping[str, object] | None = None,
        locals: Mapping[str, object] | None = None,
        fromlist: Sequence[str] = (),
        level: int = 0,
    ) -> object:
        if name.split(".")[0] == "PIL":
            raise ImportError(name)
        return real(name, globals, locals, fromlist, level)

    x = photographs(32, 1)
    monkeypatch.setattr(builtins, "__import__", no_pillow)
    with pytest.raises(ImportError, match=r"pip install -e '\.\[images\]'"):
        corrupt(x, "jpeg_compression")
    with pytest.raises(ImportError, match=r"pip install -e '\.\[images\]'"):
        corrupt(x, "frost", frost="nowhere")


@pytest.mark.parametrize(("constants", "severity"), KINDS)
def test_elastic_transform_is_scipys_with_the_same_draws(constants: str, severity: int) -> None:
    size = 32 if constants == "cifar" else 224
    x = photographs(size, 2)
    strength, sigma, shift = CONSTANTS[constants]["elastic_transform"][severity - 1]
    rng = Rng(torch.arange(2), "elastic_transform")
    points, noise = (
        2 * rng.uniform(3, 2).double().numpy() - 1,
        2 * rng.uniform(2, size, size).double().numpy() - 1,
    )
    got = channels_last(corrupt(x, "elastic_transform", severity, constants=constants, quantise=False))  # type: ignore[arg-type]
    middle, side = size // 2, size // 3
    before = np.array(
        [[middle + side, middle + side], [middle + side, middle - side], [middle - side, middle - side]]
    )
    down, across = np.mgrid[:size, :size].astype(float)
    for i, image in enumerate(channels_last(x)):
        after = before + shift * points[i]
        # the map that takes the moved points (x, y, 1) back to where they were
        back = np.linalg.solve(np.column_stack([after, np.ones(3)]), before)
        source = np.stack([across, down, np.ones_like(down)], -1) @ back
        dx, dy = (strength * ndimage.gaussian_filter(n, sigma, mode="reflect", truncate=3) for n in noise[i])
        for channel in range(3):
            plane = ndimage.map_coordinates(
                image[..., channel], (source[..., 1], source[..., 0]), order=1, mode="mirror"
            )
            expected = ndimage.map_coordinates(plane, (down + dy, across + dx), order=1, mode="reflect")
            np.testing.assert_allclose(got[i, ..., channel], expected, atol=2e-3)
