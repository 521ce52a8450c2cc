"""Views of several sizes, undone on the logits, against numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime.models import Views
from testtime.parts.pixels import (
    SCALES,
    aligned_views,
    as_rows,
    checked_scales,
    mirrors,
    over_scales,
    scaled_views,
)


def resized(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Bilinear resizing of maps (N, C, H, W): pixel centres at i + 1/2, borders repeated."""
    for axis, new in zip((2, 3), size, strict=True):
        old = x.shape[axis]
        place = np.maximum((np.arange(new) + 0.5) * old / new - 0.5, 0)
        low = np.minimum(place.astype(int), old - 1)
        high = np.minimum(low + 1, old - 1)
        shape = [1] * 4
        shape[axis] = new
        share = (place - low).reshape(shape)
        x = np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share
    return x


def convolved(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Correlation (N, C, H, W) with a kernel (D, C, 3, 3), zeros outside."""
    h, w = x.shape[2:]
    wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return sum(
        np.einsum("nchw,dc->ndhw", wide[:, :, i : i + h, j : j + w], weight[:, :, i, j])
        for i in range(3)
        for j in range(3)
    )


def averaged(x: np.ndarray, weight: np.ndarray, scales: tuple[float, ...]) -> np.ndarray:
    """The mean over scales and mirror images, both undone."""
    h, w = x.shape[2:]
    parts = []
    for s in scales:
        view = resized(x, (round(s * h), round(s * w)))
        parts.append(resized(convolved(view, weight), (h, w)))
        parts.append(resized(convolved(view[..., ::-1], weight)[..., ::-1], (h, w)))
    return np.mean(parts, axis=0)


def lopsided(seed: int = 0) -> nn.Conv2d:
    torch.manual_seed(seed)
    return nn.Conv2d(3, 4, 3, padding=1, bias=False).double().requires_grad_(False)


def test_rows_are_pixels_in_row_major_order() -> None:
    z = torch.arange(24.0).view(2, 3, 2, 2)
    places = [(n, i, j) for n in range(2) for i in range(2) for j in range(2)]
    assert as_rows(z).tolist() == [z[n, :, i, j].tolist() for n, i, j in places]
    assert as_rows(z[:, :, 0, 0]).shape == (2, 3)


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0, 1.5), SCALES])
def test_mean_over_scales_is_that_of_numpy(scales: tuple[float, ...]) -> None:
    net, x = lopsided(), torch.rand(2, 3, 8, 12, dtype=torch.float64)
    expected = averaged(x.numpy(), net.weight.numpy(), scales)
    np.testing.assert_allclose(over_scales(net, x, (8, 12), scales).numpy(), expected, atol=1e-12)
    unlike = np.abs(expected - convolved(x.numpy(), net.weight.numpy())).max()
    assert unlike > 1e-2  # the views differ from the image


def test_a_network_that_knows_the_place_of_a_pixel_keeps_it() -> None:
    """A view that was mirrored or resized and not put back would move the ramp."""
    ramp = torch.linspace(0, 1, 16, dtype=torch.float64).expand(1, 1, 8, 16)
    views = aligned_views(lambda x: x, ramp, (0.5, 1.0, 2.0))
    assert views.shape == (6, *ramp.shape)
    for z in views:
        assert (z - ramp).abs()[..., 2:-2].max() < 1e-9


def test_logits_of_a_quarter_of_the_image_keep_that_size() -> None:
    net = nn.Sequential(lopsided(), nn.AvgPool2d(4))
    x = torch.rand(1, 3, 16, 24, dtype=torch.float64)
    assert aligned_views(net, x).shape == (14, 1, 4, 4, 6)
    assert aligned_views(net, x, (0.5, 1.1)).shape == (4, 1, 4, 4, 6)
    plain = over_scales(net, x, (4, 6), (1.0,), mirror=False)
    assert torch.equal(plain, net(x))


def test_mirroring_is_left_out_where_the_model_forbids_it() -> None:
    net = lopsided()
    assert mirrors(net)
    net.views = Views(mirror=False)
    assert not mirrors(net)
    x = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    assert len(list(scaled_views(net, x, SCALES, mirror=False))) == 7


def test_a_model_of_one_size_is_refused_with_the_way_out() -> None:
    def fixed(x: Tensor) -> Tensor:
        if x.shape[-2:] != (8, 8):
            raise ValueError("expected 8 x 8")
        return x

    x = torch.rand(1, 3, 8, 8)
    assert over_scales(fixed, x, (8, 8), (1.0,)).shape == x.shape
    with pytest.raises(ValueError, match=r"does not take images of 4 x 4 .* scales=\(1.0,\).*expected 8 x 8"):
        over_scales(fixed, x, (8, 8), (0.5,))
    with pytest.raises(ValueError, match="^expected 8 x 8$"):  # not for its views alone
        over_scales(fixed, x[..., :6], (8, 6), (0.5,))


@pytest.mark.parametrize("scales", [(), (0.0,), (1.0, -1.0), 1.0])
def test_scales_are_positive(scales: Any) -> None:
    with pytest.raises(ValueError, match="scales are sizes of views"):
        checked_scales(scales)
