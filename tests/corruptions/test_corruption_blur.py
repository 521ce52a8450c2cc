"""The blurs against numpy, scipy and loops."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from test_corruptions import photographs

from testtime.corruptions import CONSTANTS, corrupt
from testtime.corruptions.blur import disk, scatter_source
from testtime.corruptions.filters import motion_blur
from testtime.corruptions.rng import Rng

KINDS = [(constants, severity) for constants in ("cifar", "imagenet") for severity in range(1, 6)]


def images(constants: str) -> torch.Tensor:
    return photographs(32, 2) if constants == "cifar" else photographs(224, 2)[:1]


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).double().numpy()


@pytest.mark.parametrize(("constants", "severity"), KINDS)
def test_gaussian_blur_is_scipys(constants: str, severity: int) -> None:
    x = images(constants)
    sigma = CONSTANTS[constants]["gaussian_blur"][severity - 1]
    y = corrupt(x, "gaussian_blur", severity, constants=constants, quantise=False)  # type: ignore[arg-type]
    for got, image in zip(channels_last(y), channels_last(x), strict=True):
        expected = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest", truncate=4.0)
        np.testing.assert_allclose(got, expected, atol=2e-6)


def soft_disk(radius: float, sigma: float) -> np.ndarray:
    line = np.arange(-10, 11)
    flat = (line[:, None] ** 2 + line**2 <= radius**2).astype(float)
    soft = 1 if radius <= 8 else 2
    # OpenCV smooths the 17 or 21 pixels of the disk with a mirrored border
    reach = 8 if radius <= 8 else 10
    flat = flat[10 - reach : 11 + reach, 10 - reach : 11 + reach] / flat.sum()
    return ndimage.gaussian_filter(flat, sigma, mode="mirror", radius=soft)


@pytest.mark.parametrize(("constants", "severity"), KINDS)
def test_defocus_blur_correlates_with_a_soft_disk(constants: str, severity: int) -> None:
    x = images(constants)[:1]
    c = CONSTANTS[constants]["defocus_blur"][severity - 1]
    y = corrupt(x, "defocus_blur", severity, constants=constants, quantise=False)  # type: ignore[arg-type]
    expected = ndimage.correlate(channels_last(x)[0], soft_disk(*c)[:, :, None], mode="mirror")
    np.testing.assert_allclose(channels_last(y)[0], expected, atol=3e-6)
    # a disk as wide as its window is mirrored at the border of the window when its edge is softened
    fills = {8: 1.013, 10: 1.0108}
    assert disk(*c).sum().item() == pytest.approx(fills.get(c[0], 1), abs=1e-3 if c[0] in fills else 1e-6)


@pytest.mark.parametrize(("constants", "severity"), KINDS)
def test_zoom_blur_is_the_mean_of_scipys_zooms(constants: str, severity: int) -> None:
    x = images(constants)[:1]
    end, step = CONSTANTS[constants]["zoom_blur"][severity - 1]
    y = corrupt(x, "zoom_blur", severity, constants=constants, quantise=False)  # type: ignore[arg-type]
    image = channels_last(x)[0]
    size = len(image)
    stack = [image]
    for factor in np.arange(1, end, step):
        keep = int(np.ceil(size / factor))
        top = (size - keep) // 2
        big = ndimage.zoom(image[top : top + keep, top : top + keep], (factor, factor, 1), order=1)
        trim = (len(big) - size) // 2
        stack.append(big[trim : trim + size, trim : trim + size])
    np.testing.assert_allclose(channels_last(y)[0], np.mean(stack, 0), atol=1e-5)


@pytest.mark.parametrize(("reach", "size"), [(1, 12), (2, 12), (4, 15)])
def test_scatter_source_is_the_published_loop(reach: int, size: int) -> None:
    shift = Rng(torch.arange(3), "loop").integers(-reach, reach, 2, size, size + 2)
    got = scatter_source(shift[:, 0], shift[:, 1], reach)
    for i in range(3):
        colour = np.arange(size * (size + 2)).reshape(size, size + 2, 1).repeat(3, 2)
        for h in range(size - reach, reach, -1):
            for w in range(size + 2 - reach, reach, -1):
                to = h + int(shift[i, 0, h, w]), w + int(shift[i, 1, h, w])
                # views of one array: the second assignment reads what the first has just written
                colour[h, w], colour[to] = colour[to], colour[h, w]
        assert got[i].tolist() == colour[..., 0].flatten().tolist()


@pytest.mark.parametrize("severity", [3, 5])
def test_glass_blur_blurs_displaces_and_blurs(severity: int) -> None:
    x = photographs(32, 2)
    sigma, reach, passes = CONSTANTS["cifar"]["glass_blur"][severity - 1]
    y = corrupt(x, "glass_blur", severity, quantise=False)
    rng = Rng(torch.arange(2), "glass_blur")
    shift = [rng.integers(-reach, reach, 2, 32, 32).numpy() for _ in range(passes)]
    for i, image in enumerate(channels_last(x)):
        blurred = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")
        pixels = np.floor(blurred * 255 + 1e-3) / 255
        for once in shift:
            for h in range(32 - reach, reach, -1):
                for w in range(32 - reach, reach, -1):
                    pixels[h, w] = pixels[h + once[i, 0, h, w], w + once[i, 1, h, w]]
        expected = ndimage.gaussian_filter(pixels, (sigma, sigma, 0), mode="nearest")
        np.testing.assert_allclose(channels_last(y)[i], expected, atol=2e-6)


@pytest.mark.parametrize("angle", [-45.0, -20.0, 0.0, 33.0, 90.0, -135.0])
def test_motion_blur_sums_along_the_line(angle: float) -> None:
    x = photographs(32, 2)
    radius, sigma = 6, 2.0
    y = channels_last(motion_blur(x, radius, sigma, torch.full((2,), angle)))
    weight = np.exp(-(np.arange(13) ** 2) / (2 * sigma**2))
    weight /= weight.sum()
    for got, image in zip(y, channels_last(x), strict=True):
        expected = np.zeros_like(image)
        for i, value in enumerate(weight):
            across = int(np.ceil(i * np.cos(np.deg2rad(angle)) - 0.5))
            down = int(np.ceil(i * np.sin(np.deg2rad(angle)) - 0.5))
            rows = np.clip(np.arange(32) + down, 0, 31)
            columns = np.clip(np.arange(32) + across, 0, 31)
            expected += value * image[rows][:, columns]
        lost = expected * 255 - got * 255  # truncated to 8 bits
        assert lost.min() > -2e-3
        assert lost.max() < 1


def test_motion_blur_draws_angles_from_minus_45_to_45() -> None:
    dot = torch.zeros(200, 3, 65, 65)
    dot[:, :, 32, 40] = 1
    y = corrupt(dot, "motion_blur", 5, constants="imagenet", quantise=False)[:, 0]
    place = torch.arange(65.0)
    down = (y.sum(2) * place).sum(1) / y.sum((1, 2)) - 32
    across = (y.sum(1) * place).sum(1) / y.sum((1, 2)) - 40
    assert across.max() < -3  # smeared one way, against the direction that is read
    angle = torch.rad2deg(torch.atan(down / across))
    assert angle.min() < -35
    assert angle.max() > 35
    assert angle.abs().max() < 50
    assert angle.mean().abs() < 6
