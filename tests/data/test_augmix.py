import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch import Tensor

from testtime.data import augmix as am

N, SIZE = 6, 32
AFFINE, BILINEAR = Image.Transform.AFFINE, Image.Resampling.BILINEAR


@pytest.fixture(scope="module")
def images() -> Tensor:
    """Smooth images with all grey levels, a narrow one, one of one value, and noise."""
    rng = np.random.default_rng(0)
    ramp = np.add.outer(np.arange(SIZE), np.arange(SIZE)) / (2 * SIZE)
    smooth = [np.stack([255 * np.abs(np.sin(k * ramp + c)) for c in range(3)]) for k in (3, 7)]
    flat = np.full((3, SIZE, SIZE), 77)
    narrow = 100 + rng.integers(0, 20, (3, SIZE, SIZE))
    noise = [rng.integers(0, 256, (3, SIZE, SIZE)) for _ in range(2)]
    return torch.from_numpy(np.stack([*smooth, flat, narrow, *noise]).astype(np.uint8))


def by_pillow(images: Tensor, function: Callable[[Image.Image], Image.Image]) -> Tensor:
    made = [np.array(function(Image.fromarray(x.numpy().transpose(1, 2, 0)))) for x in images]
    return torch.from_numpy(np.stack(made).transpose(0, 3, 1, 2))


def test_autocontrast_and_equalize_are_pillows(images: Tensor) -> None:
    unused = torch.zeros(N)
    assert torch.equal(am.autocontrast(images, unused), by_pillow(images, ImageOps.autocontrast))
    assert torch.equal(am.equalize(images, unused), by_pillow(images, ImageOps.equalize))


@pytest.mark.parametrize("strength", [0.01, 0.26, 0.3, 0.55])
def test_posterize_and_solarize_are_pillows(images: Tensor, strength: float) -> None:
    each = torch.full((N,), strength, dtype=torch.float64)
    bits, threshold = 4 - int(4 * strength), 256 - int(256 * strength)
    assert torch.equal(am.posterize(images, each), by_pillow(images, lambda i: ImageOps.posterize(i, bits)))
    assert torch.equal(
        am.solarize(images, each), by_pillow(images, lambda i: ImageOps.solarize(i, threshold))
    )


@pytest.mark.parametrize("s", [-1.0, -0.31, 0.08, 0.3, 0.77])
def test_geometry_is_pillows(images: Tensor, s: float) -> None:
    each = torch.full((N,), s, dtype=torch.float64)
    shift = int(SIZE / 3 * s)
    for operation, matrix in (
        (am.shear_x, (1, 0.3 * s, 0, 0, 1, 0)),
        (am.shear_y, (1, 0, 0, 0.3 * s, 1, 0)),
        (am.translate_x, (1, 0, shift, 0, 1, 0)),
        (am.translate_y, (1, 0, 0, 0, 1, shift)),
    ):
        expected = by_pillow(images, lambda i, m=matrix: i.transform((SIZE, SIZE), AFFINE, m, BILINEAR))
        assert torch.equal(operation(images, each), expected), operation
    rotated = by_pillow(images, lambda i: i.rotate(int(30 * s), BILINEAR))
    difference = (am.rotate(images, each).int() - rotated.int()).abs()
    assert difference.max() <= 1  # Pillow rounds the cosine to 15 digits
    assert (difference > 0).float().mean() < 1e-3


def test_every_image_has_its_own_strength(images: Tensor) -> None:
    strengths = torch.tensor([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    moved = am.translate_x(images, strengths)
    for i, strength in enumerate(strengths):
        assert torch.equal(moved[i], am.translate_x(images[i : i + 1], strength[None])[0])


def test_a_mix_is_between_the_image_and_its_chains(images: Tensor) -> None:
    flat = images[2:3].repeat(500, 1, 1, 1)
    mixed = am.augmix(flat, torch.Generator().manual_seed(0), depth=1)
    assert mixed.dtype == torch.float32
    assert 0 <= mixed.min() <= mixed.max() <= 1
    centre = mixed[:, :, 16, 16] * 255  # 77 is solarized never, posterized to 64, moved to itself
    assert centre.min() >= 64 - 1e-3
    assert centre.max() <= 77 + 1e-3
    assert (centre < 77 - 1e-3).float().mean() > 0.1


def test_a_mix_is_a_function_of_its_generator(images: Tensor) -> None:
    one, again, other = (am.augmix(images, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_loss_is_that_of_the_paper() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = [torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(3)]
    labels = torch.tensor([0, 1, 2, 3, 0])
    p = [np.exp(x.numpy()) / np.exp(x.numpy()).sum(1, keepdims=True) for x in logits]
    mean = np.mean(p, axis=0)
    divergence = np.mean([(q * (np.log(q) - np.log(mean))).sum(1).mean() for q in p])
    expected = -np.log(p[0][np.arange(5), labels.numpy()]).mean() + 12 * divergence
    assert am.jsd_loss(*logits, labels).item() == pytest.approx(expected, rel=1e-5)
    same = am.jsd_loss(logits[0], logits[0], logits[0], labels).item()
    assert same == pytest.approx(-np.log(p[0][np.arange(5), labels.numpy()]).mean(), rel=1e-5)
    assert math.isfinite(am.jsd_loss(*(1e4 * x for x in logits), labels).item())
