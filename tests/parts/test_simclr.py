"""The augmentation of contrastive learning: windows read off a ramp, chances, grey, and who draws."""

import numpy as np
import torch

from testtime.parts import simclr


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_windows_are_those_that_were_drawn() -> None:
    """An image whose channels are its coordinates says where it was read; the same draws, the geometry in numpy."""
    n, h, w = 300, 24, 40
    x = torch.empty(n, 2, h, w, dtype=torch.float64)
    x[:, 0], x[:, 1] = (torch.arange(w) + 0.5) / w, ((torch.arange(h) + 0.5) / h)[:, None]
    y = simclr(x, rng()).numpy()
    again = rng()
    torch.randperm(4, generator=again)
    u = torch.rand(n, 11, generator=again).double().numpy()
    area, proportion = 0.2 + 0.8 * u[:, 0], np.exp(np.log(3 / 4) + (np.log(4 / 3) - np.log(3 / 4)) * u[:, 1])
    wide, high = np.minimum(1, np.sqrt(area * proportion)), np.minimum(1, np.sqrt(area / proportion))
    left, top = (1 - wide) * u[:, 2], (1 - high) * u[:, 3]
    plain = (u[:, 5] >= 0.8) & (u[:, 10] >= 0.2)
    assert plain.sum() > 30
    for i in np.flatnonzero(plain):
        columns = left[i] + wide[i] * (np.arange(w) + 0.5) / w
        rows = top[i] + high[i] * (np.arange(h) + 0.5) / h
        columns = columns[::-1] if u[i, 4] < 0.5 else columns
        np.testing.assert_allclose(y[i, 0, 3], np.clip(columns, 0.5 / w, 1 - 0.5 / w), atol=1e-6)
        np.testing.assert_allclose(y[i, 1, :, 3], np.clip(rows, 0.5 / h, 1 - 0.5 / h), atol=1e-6)


def test_a_constant_image_stays_constant_and_a_fifth_turns_grey() -> None:
    x = torch.tensor([0.7, 0.4, 0.2]).view(1, 3, 1, 1).expand(500, 3, 6, 8)
    y = simclr(x, rng(1))
    assert y.shape == x.shape
    torch.testing.assert_close(y, y[:, :, :1, :1].expand_as(y), rtol=0, atol=1e-6)
    colour = y[:, :, 0, 0]
    grey = (colour - colour[:, :1]).abs().amax(1) < 1e-6
    same = (colour - x[:, :, 0, 0]).abs().amax(1) < 1e-6
    assert 0.15 < grey.double().mean() < 0.25
    assert 0.1 < same.double().mean() < 0.25  # 0.2 of those that are not grey
    luminance = 0.2989 * 0.7 + 0.587 * 0.4 + 0.114 * 0.2
    assert (colour[grey][:, 0] - luminance).abs().min() < 1e-6


def test_every_image_draws_for_itself_and_the_same_again() -> None:
    x = torch.rand(1, 3, 16, 16, generator=rng(3)).expand(4, 3, 16, 16)
    y = simclr(x, rng(4))
    assert all(not torch.equal(y[0], y[i]) for i in range(1, 4))
    assert torch.equal(y, simclr(x, rng(4)))
    assert simclr(x.bfloat16(), rng(4)).dtype == torch.bfloat16
