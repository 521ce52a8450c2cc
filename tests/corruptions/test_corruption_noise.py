"""The noises by the moments of their distributions."""

import numpy as np
import pytest
import torch
from scipy import stats

from testtime.corruptions import CONSTANTS, corrupt
from testtime.corruptions.noise import FIRST, poisson_tables, shot_noise
from testtime.corruptions.rng import Rng

SEVERITIES = (1, 3, 5)


def grey(level: float, count: int = 16) -> torch.Tensor:
    return torch.full((count, 3, 64, 64), level)  # 196,608 values


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", ["gaussian_noise", "speckle_noise"])
def test_normal_noises_have_their_deviation(name: str, severity: int) -> None:
    c = CONSTANTS["cifar"][name][severity - 1]
    deviation = c if name == "gaussian_noise" else 0.4 * c
    noise = corrupt(grey(0.4), name, severity, quantise=False) - 0.4
    assert noise.mean().item() == pytest.approx(0, abs=4 * deviation / 196_608**0.5)
    assert noise.std().item() == pytest.approx(deviation, rel=0.01)
    assert stats.kstest(noise.flatten().numpy()[:20_000] / deviation, "norm").pvalue > 1e-3


def test_speckle_spares_black() -> None:
    assert corrupt(grey(0.0, 1), "speckle_noise").max() == 0


@pytest.mark.parametrize("c", [3, 60, 500])
def test_the_poisson_tables_invert_the_distribution_function(c: int) -> None:
    bounds, table = (table.numpy() for table in poisson_tables(c, torch.device("cpu")))
    cells = np.arange(2**FIRST) << 24 - FIRST
    for level in (0, 1, 100, 255):
        row = bounds[level] - (level << 25)
        expected = stats.poisson.cdf(np.arange(bounds.shape[1] - 1), level / 255 * c)
        np.testing.assert_allclose(row[:-1] / 2**24, expected, atol=2**-23)
        assert row[-1] == 2**24
        least = (row <= cells[:, None]).sum(1)
        largest = (row < cells[:, None] + 2 ** (24 - FIRST)).sum(1)
        assert np.array_equal(table[level << FIRST : level + 1 << FIRST], 2 * least + (largest > least))


@pytest.mark.parametrize("c", [3, 60, 500])
def test_the_count_of_photons_is_the_quantile_of_the_draw(c: int) -> None:
    x = torch.arange(256).view(1, 1, 16, 16).expand(2, 3, 16, 16) / 255
    count = shot_noise(x, c, Rng(torch.arange(2), "shot")) * c
    u = Rng(torch.arange(2), "shot").uniform(3, 16, 16).double().numpy()
    # the smallest k whose distribution function is above u, which scipy's ppf takes at or above it
    quantile = stats.poisson.ppf(np.nextafter(u, 1), x.double().numpy() * c)
    off = np.abs(count.double().numpy() - quantile.clip(0))
    assert off.max() < 1e-3


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("constants", ["cifar", "imagenet"])
def test_shot_noise_is_poisson(constants: str, severity: int) -> None:
    c = CONSTANTS[constants]["shot_noise"][severity - 1]
    level = 51 / 255
    y = corrupt(grey(level), "shot_noise", severity, constants=constants, quantise=False)  # type: ignore[arg-type]
    photons = y.double() * c
    assert (photons - photons.round()).abs().max() < 1e-3
    rate = c * level
    assert photons.mean().item() == pytest.approx(rate, rel=0.01)
    inside = photons[photons < c - 0.5]  # those clipped at 1 are in the last bin
    counts = np.bincount(inside.round().long().numpy(), minlength=int(c))[: int(c)]
    expected = stats.poisson.pmf(np.arange(int(c)), rate) * photons.numel()
    usual = expected > 50
    chi2 = ((counts[usual] - expected[usual]) ** 2 / expected[usual]).sum()
    assert stats.chi2.sf(chi2, usual.sum() - 1) > 1e-3


def test_shot_noise_gives_every_pixel_its_own_rate() -> None:
    ramp = (torch.arange(256) / 255).view(1, 1, 16, 16).expand(400, 3, -1, -1)
    y = corrupt(ramp, "shot_noise", 1, quantise=False)  # c = 500
    mean = y.mean((0, 1)).flatten().double()
    deviation = (torch.arange(256) / 255 / 500 / 1200).sqrt()
    unclipped = slice(0, 230)
    z = (mean - torch.arange(256) / 255)[unclipped][1:] / deviation[unclipped][1:]
    assert z.abs().max() < 4.5
    assert mean[0] == 0


@pytest.mark.parametrize("severity", SEVERITIES)
def test_impulse_noise_replaces_its_fraction_half_by_half(severity: int) -> None:
    c = CONSTANTS["imagenet"]["impulse_noise"][severity - 1]
    y = corrupt(grey(0.4), "impulse_noise", severity, constants="imagenet", quantise=False)
    salt, pepper = (y == 1).float(), (y == 0).float()
    four_sigma = 4 * (c / 2 / y.numel()) ** 0.5
    assert salt.mean().item() == pytest.approx(c / 2, abs=four_sigma)
    assert pepper.mean().item() == pytest.approx(c / 2, abs=four_sigma)
    assert torch.all((y == 1) | (y == 0) | (y == 0.4))
    both = (salt[:, 0] * salt[:, 1]).mean().item()  # the channels are independent
    assert both == pytest.approx(c**2 / 4, abs=4 * c / 2 / 65_536**0.5)
