"""Snow, frost, fog and spatter, recomputed in numpy from the same random numbers."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from test_corruptions import photographs

from testtime.corruptions import CONSTANTS, corrupt, filters
from testtime.corruptions.rng import Rng
from testtime.corruptions.textures import frost_textures, ice, plasma
from testtime.corruptions.weather import depth_by_opencv, depth_of_water


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.permute(0, 2, 3, 1).double().numpy()


def square_diamond(size: int, decay: float, draws: list[np.ndarray]) -> np.ndarray:
    """Diamond-square on a torus, one cell at a time."""
    height = np.zeros((size, size))
    step, wibble, draw = size, 100.0, iter(draws)
    while step >= 2:
        half = step // 2
        cells = range(size // step)
        for centre in (True, False):
            if centre:
                u = next(draw)
                for i in cells:
                    for j in cells:
                        corners = [
                            height[(i + a) % len(cells) * step, (j + b) % len(cells) * step]
                            for a in (0, 1)
                            for b in (0, 1)
                        ]
                        height[i * step + half, j * step + half] = sum(corners) / 4 + wibble**2 * (
                            2 * u[i, j] - 1
                        )
                continue
            top, side = next(draw), next(draw)
            for i in cells:
                for j in cells:
                    r, c = i * step, j * step
                    mid = height[r + half, c + half]
                    above, before = height[r - half, c + half], height[r + half, c - half]
                    here, right, below = (
                        height[r, c],
                        height[r, (c + step) % size],
                        height[(r + step) % size, c],
                    )
                    height[r, c + half] = (mid + above + here + right) / 4 + wibble**2 * (2 * top[i, j] - 1)
                    height[r + half, c] = (mid + before + here + below) / 4 + wibble**2 * (2 * side[i, j] - 1)
        step, wibble = half, wibble / decay
    height -= height.min()
    return height / height.max()


def test_plasma_is_the_diamond_square_algorithm() -> None:
    got = plasma(16, 1.7, Rng(torch.tensor([4, 5]), "plasma"))
    rng = Rng(torch.tensor([4, 5]), "plasma")
    draws = [rng.uniform(n, n).double().numpy() for n in (1, 2, 4, 8) for _ in range(3)]
    for i in range(2):
        expected = square_diamond(16, 1.7, [u[i] for u in draws])
        np.testing.assert_allclose(got[i].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("severity", [1, 5])
def test_fog_mixes_the_fractal_in(severity: int) -> None:
    x = photographs(32, 3)
    density, decay = CONSTANTS["cifar"]["fog"][severity - 1]
    haze = plasma(32, decay, Rng(torch.arange(3), "fog")).numpy()[..., None]
    image = channels_last(x)
    most = image.max((1, 2, 3), keepdims=True)
    got = channels_last(corrupt(x, "fog", severity, quantise=False))
    np.testing.assert_allclose(got, (image + density * haze) * most / (most + density), atol=1e-5)


def test_frost_is_a_weighted_crop_of_a_texture() -> None:
    x = photographs(224, 4)
    y = corrupt(x, "frost", 3, quantise=False, constants="imagenet")
    u = Rng(torch.arange(4), "frost").uniform(3)
    for i in range(4):
        texture = frost_textures()[int(u[i, 0] * 5)]
        top = int(u[i, 1] * (texture.shape[1] - 224))
        left = int(u[i, 2] * (texture.shape[2] - 224))
        crop = texture[:, top : top + 224, left : left + 224]
        torch.testing.assert_close(y[i], (0.7 * x[i] + 0.7 * crop).clamp(0, 1))


def test_cifar_frost_reads_every_fifth_pixel_of_a_texture() -> None:
    y = corrupt(torch.zeros(4, 3, 32, 32), "frost", 5, quantise=False) / 0.45
    u = Rng(torch.arange(4), "frost").uniform(3)
    for i in range(4):
        small = frost_textures()[int(u[i, 0] * 5)][:, 2::5, 2::5]
        top, left = int(u[i, 1] * (small.shape[1] - 32)), int(u[i, 2] * (small.shape[2] - 32))
        torch.testing.assert_close(y[i], small[:, top : top + 32, left : left + 32], atol=1e-5, rtol=0)


def test_frost_enlarges_textures_for_large_images() -> None:
    y = corrupt(torch.zeros(1, 3, 400, 500), "frost", 1)
    assert y.shape == (1, 3, 400, 500)
    assert y.std() > 0.01


def test_ice_has_the_colour_and_contrast_of_its_window() -> None:
    windows = [ice(i) for i in range(5)]
    means = torch.stack([window.mean((1, 2)) for window in windows])
    expected = torch.tensor(
        [[0.32, 0.57, 0.64], [0.79, 0.81, 0.84], [0.75, 0.79, 0.84], [0.54, 0.60, 0.65], [0.44, 0.48, 0.53]]
    )
    assert (means - expected).abs().max() < 0.01
    deviations = [window.std((1, 2)).mean().item() for window in windows]
    assert deviations == pytest.approx([0.08, 0.09, 0.10, 0.12, 0.16], abs=0.005)
    # as sharp as the photographs of frost, whose mean step from pixel to pixel is 0.03 to 0.07
    steps = [window.diff(dim=2).abs().mean().item() for window in windows]
    assert min(steps) > 0.02
    assert max(steps) < 0.08
    assert torch.equal(ice(2), windows[2])


def linear_zoom(layer: np.ndarray, factor: float) -> np.ndarray:
    size = len(layer)
    keep = int(np.ceil(size / factor))
    top = (size - keep) // 2
    big = ndimage.zoom(layer[top : top + keep, top : top + keep], factor, order=1)
    trim = (len(big) - size) // 2
    return big[trim : trim + size, trim : trim + size]


@pytest.mark.parametrize(("constants", "severity"), [("cifar", 3), ("imagenet", 2)])
def test_snow_adds_smeared_flakes_twice(constants: str, severity: int) -> None:
    size = 32 if constants == "cifar" else 224
    x = photographs(size, 1)
    mean, deviation, zoom, threshold, radius, sigma, weight = CONSTANTS[constants]["snow"][severity - 1]
    rng = Rng(torch.arange(1), "snow")
    layer = linear_zoom(mean + deviation * rng.normal(1, size, size)[0, 0].double().numpy(), zoom)
    layer = np.where(layer < threshold, 0, layer)
    layer = np.floor(layer.clip(0, 1) * 255 + 1e-3) / 255
    angle = np.deg2rad(float(rng.uniform(1)) * 90 - 135)
    steps = np.arange(2 * radius + 1)
    share = np.exp(-(steps**2) / (2 * sigma**2))
    smeared = np.zeros_like(layer)
    for i, value in zip(steps, share / share.sum(), strict=True):
        across, down = np.ceil(i * np.cos(angle) - 0.5), np.ceil(i * np.sin(angle) - 0.5)
        rows, columns = np.arange(size) + int(down), np.arange(size) + int(across)
        smeared += value * layer[rows.clip(0, size - 1)][:, columns.clip(0, size - 1)]
    smeared = np.floor(smeared * 255 + 1e-3)[..., None] / 255
    image = channels_last(x)[0]
    grey = (image @ [0.299, 0.587, 0.114])[..., None]
    white = weight * image + (1 - weight) * np.maximum(image, 1.5 * grey + 0.5)
    expected = (white + smeared + np.rot90(smeared, 2)).clip(0, 1)
    got = channels_last(corrupt(x, "snow", severity, constants=constants, quantise=False))[0]  # type: ignore[arg-type]
    off = np.abs(got - expected)
    assert np.quantile(off, 0.999) < 1e-5
    assert off.max() < 2.1 / 255  # a flake on the edge of a level


@pytest.mark.parametrize("severity", [4, 5])
def test_mud_covers_and_is_brown(severity: int) -> None:
    x = photographs(224, 1)
    mean, deviation, sigma, threshold, blur, mud = CONSTANTS["imagenet"]["spatter"][severity - 1]
    assert mud == 1
    noise = Rng(torch.arange(1), "spatter").normal(1, 224, 224)[0, 0].double().numpy()
    liquid = ndimage.gaussian_filter(mean + deviation * noise, sigma, mode="nearest")
    cover = ndimage.gaussian_filter((liquid > threshold).astype(float), blur, mode="nearest")[..., None]
    cover[cover < 0.8] = 0
    expected = channels_last(x)[0] * (1 - cover) + cover * np.array([63, 42, 20]) / 255
    got = channels_last(corrupt(x, "spatter", severity, quantise=False))[0]
    assert np.quantile(np.abs(got - expected), 0.999) < 1e-5


@pytest.mark.parametrize("severity", [1, 2, 3])
def test_water_shines_turquoise_where_there_is_liquid(severity: int) -> None:
    x = torch.zeros(2, 3, 224, 224)
    mean, deviation, sigma, threshold, strength, mud = CONSTANTS["imagenet"]["spatter"][severity - 1]
    assert mud == 0
    y = corrupt(x, "spatter", severity, quantise=False)
    torch.testing.assert_close(y[:, 1], y[:, 2])
    torch.testing.assert_close(y[:, 0], y[:, 1] * 175 / 238)
    assert y.amax((1, 2, 3)).tolist() == pytest.approx([strength * 238 / 255] * 2, rel=1e-5)
    noise = Rng(torch.arange(2), "spatter").normal(1, 224, 224)[:, 0].double().numpy()
    for i in range(2):
        dry = ndimage.gaussian_filter(mean + deviation * noise[i], sigma, mode="nearest") < threshold - 1e-5
        assert y[i, :, torch.from_numpy(dry)].max() == 0


@pytest.mark.parametrize(("size", "sigma"), [((32, 32), 0.7), ((97, 120), 3.0)])
def test_opencv_gives_the_same_relief_of_water(size: tuple[int, int], sigma: float) -> None:
    pytest.importorskip("cv2")
    noise = 0.65 + 0.3 * Rng(torch.arange(12), "spatter").normal(1, *size)
    levels = filters.gaussian_blur(noise, sigma).clamp(0, 1).mul(255).floor()
    levels *= levels >= 175
    levels[0] = 0
    depth = depth_of_water(levels)
    assert torch.equal(depth_by_opencv(levels), depth)
    assert len(depth[1:].unique()) > 50


def test_spatter_without_a_drop_changes_nothing() -> None:
    from testtime.corruptions.weather import spatter

    x = photographs(32, 2)
    for mud in (0, 1):
        y = spatter(x, (0.1, 0.01, 1.0, 0.7, 0.5, mud), Rng(torch.arange(2), "spatter"))
        assert torch.equal(y, x)
