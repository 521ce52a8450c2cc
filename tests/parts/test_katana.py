"""The strong augmentation against numpy and the colour conversions of the standard library."""

import colorsys
import math

import numpy as np
import pytest
import torch

from testtime.parts import augment, generator, katana

RNG = np.random.default_rng(0)


def images(n: int, side: int = 6, channels: int = 3) -> torch.Tensor:
    return torch.from_numpy(RNG.random((n, channels, side, side)))


def factors(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1, 1)


def test_colours_equal_their_definitions() -> None:
    x, f = images(2), [0.6, 1.4]
    a = x.numpy()
    grey = 0.2989 * a[:, 0] + 0.587 * a[:, 1] + 0.114 * a[:, 2]
    for i in range(2):
        bright = np.clip(f[i] * a[i], 0, 1)
        contrast = np.clip(f[i] * a[i] + (1 - f[i]) * grey[i].mean(), 0, 1)
        saturated = np.clip(f[i] * a[i] + (1 - f[i]) * grey[i], 0, 1)
        np.testing.assert_allclose(augment._brightness(x, factors(*f))[i], bright, atol=1e-12)
        np.testing.assert_allclose(augment._contrast(x, factors(*f))[i], contrast, atol=1e-12)
        np.testing.assert_allclose(augment._saturation(x, factors(*f))[i], saturated, atol=1e-12)
        np.testing.assert_allclose(augment._gamma(x, factors(*f))[i], a[i] ** f[i], atol=1e-12)


def test_hue_turns_the_colour_circle() -> None:
    x, shifts = images(3, side=4), [-0.06, 0.0, 0.4]
    x[0, :, 0, 0] = 0.3  # grey has no hue
    x[1, :, 0, 0] = torch.tensor([0.7, 0.7, 0.1])  # two greatest
    y = augment._hue(x, factors(*shifts))
    for i, shift in enumerate(shifts):
        for r in range(4):
            for c in range(4):
                h, s, v = colorsys.rgb_to_hsv(*x[i, :, r, c].tolist())
                expected = colorsys.hsv_to_rgb((h + shift) % 1, s, v)
                np.testing.assert_allclose(y[i, :, r, c], expected, atol=1e-9)


@pytest.mark.parametrize(
    ("degrees", "dx", "dy", "scale", "flip"), [(15, 1, -1, 0.9, False), (-7, 0, 1, 1.1, True)]
)
def test_affine_reads_the_edge_padded_image(
    degrees: float, dx: int, dy: int, scale: float, flip: bool
) -> None:
    side, pad = 8, 8
    x = images(1, side)
    padded = np.pad(x[0].numpy(), ((0, 0), (pad, pad), (pad, pad)), mode="edge")
    a, centre = math.radians(degrees), (side - 1) / 2

    def one(values: float) -> torch.Tensor:
        return torch.tensor([values], dtype=torch.float64)

    shift = torch.tensor([[dx, dy]], dtype=torch.float64)
    y = augment._affine(x, one(degrees), shift, one(scale), torch.tensor([flip]), margin=2)
    assert y.shape == (1, 3, side + 4, side + 4)
    for row in range(-2, side + 2):
        for column in range(-2, side + 2):
            # Backwards: unflip, unshift, unturn, unscale.
            u, v = (column - centre) * (-1 if flip else 1) - dx, row - centre - dy
            sx = (math.cos(a) * u + math.sin(a) * v) / scale + centre + pad
            sy = (-math.sin(a) * u + math.cos(a) * v) / scale + centre + pad
            x0, y0 = math.floor(sx), math.floor(sy)
            wx, wy = sx - x0, sy - y0
            top = (1 - wx) * padded[:, y0, x0] + wx * padded[:, y0, x0 + 1]
            bottom = (1 - wx) * padded[:, y0 + 1, x0] + wx * padded[:, y0 + 1, x0 + 1]
            np.testing.assert_allclose(y[0, :, row + 2, column + 2], (1 - wy) * top + wy * bottom, atol=1e-9)


def test_blur_weighs_by_the_gaussian() -> None:
    x, sigmas = images(2, side=9), [0.001, 0.5]
    y = augment._blur(x, torch.tensor(sigmas, dtype=torch.float64))
    for i, sigma in enumerate(sigmas):
        with np.errstate(under="ignore"):
            k = np.exp(-0.5 * (np.arange(-2, 3) / sigma) ** 2)
        k2 = np.outer(k, k) / np.outer(k, k).sum()
        for r in range(5):
            for c in range(5):
                expected = (x[i].numpy()[:, r : r + 5, c : c + 5] * k2).sum((1, 2))
                np.testing.assert_allclose(y[i, :, r, c], expected, atol=1e-12)


def test_katana_is_a_function_of_its_generator() -> None:
    x = images(5, side=8).float()
    a, b = katana(x, generator(0, 1, "view")), katana(x, generator(0, 1, "view"))
    assert torch.equal(a, b)
    assert not torch.equal(a, katana(x, generator(0, 2, "view")))
    assert a.min() >= 0
    assert a.max() <= 1
    same = x[:1].expand(5, -1, -1, -1)
    views = katana(same, generator(0, 1, "view"))
    assert (views[0] - views[1]).abs().max() > 0.05  # each image draws for itself


@pytest.mark.parametrize("clean", [False, True])
def test_one_draw_for_all_images_as_published(clean: bool) -> None:
    """Equal images stay equal but for the noise, and other images do not change the draw."""
    x = images(4, side=8)
    views = katana(x[:1].expand(4, -1, -1, -1), generator(0, 1, "view"), clean, alike=True)
    np.testing.assert_allclose(views.numpy(), views[:1].expand_as(views), atol=0 if clean else 0.06)
    if clean:
        expected = torch.cat([katana(one, generator(0, 1, "view"), clean, alike=True) for one in x.split(1)])
        torch.testing.assert_close(katana(x, generator(0, 1, "view"), clean, alike=True), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_katana_keeps_the_form(dtype: torch.dtype, channels: int) -> None:
    x = images(2, channels=channels)
    y, reference = katana(x.to(dtype), generator(0, 0, "v")), katana(x, generator(0, 0, "v"))
    assert (y.dtype, y.shape) == (dtype, x.shape)
    assert (y.double() - reference).abs().max() < 0.05
