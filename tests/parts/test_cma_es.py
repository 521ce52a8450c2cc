"""CMA-ES against the equations of its tutorial, written in numpy from the eigenvectors of C itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from testtime.parts.cma_es import CMAES


class Tutorial:
    """Figure 6 of the tutorial with the defaults of its table 1 and positive weights, one draw after the other."""

    def __init__(self, start: np.ndarray, sigma: float, k: int) -> None:
        self.n, self.k, self.sigma, self.m = len(start), k, sigma, start.copy()
        self.c, self.pc, self.ps, self.g = np.eye(self.n), np.zeros(self.n), np.zeros(self.n), 0

    def update(self, draws: np.ndarray, fitness: np.ndarray) -> None:
        n, mu = self.n, self.k // 2
        w = np.array([math.log((self.k + 1) / 2) - math.log(i) for i in range(1, mu + 1)])
        w /= w.sum()
        mueff = w.sum() ** 2 / (w**2).sum()
        cs, cc = (mueff + 2) / (n + mueff + 5), (4 + mueff / n) / (n + 4 + 2 * mueff / n)
        ds = 1 + 2 * max(0, ((mueff - 1) / (n + 1)) ** 0.5 - 1) + cs
        c1 = 2 / ((n + 1.3) ** 2 + mueff)
        cmu = min(1 - c1, 2 * (mueff - 2 + 1 / mueff) / ((n + 2) ** 2 + mueff))
        chi = n**0.5 * (1 - 1 / (4 * n) + 1 / (21 * n**2))
        values, vectors = np.linalg.eigh(self.c)
        whiten = vectors @ np.diag(values**-0.5) @ vectors.T
        best = sorted(range(self.k), key=lambda i: fitness[i])[:mu]
        ys = [(draws[i] - self.m) / self.sigma for i in best]
        y = sum(wi * yi for wi, yi in zip(w, ys, strict=True))
        self.m = self.m + self.sigma * y
        self.ps = (1 - cs) * self.ps + (cs * (2 - cs) * mueff) ** 0.5 * whiten @ y
        self.g += 1
        long = np.linalg.norm(self.ps) / (1 - (1 - cs) ** (2 * self.g)) ** 0.5
        h = 1.0 if long < (1.4 + 2 / (n + 1)) * chi else 0.0
        self.pc = (1 - cc) * self.pc + h * (cc * (2 - cc) * mueff) ** 0.5 * y
        delta = (1 - h) * cc * (2 - cc)
        self.c = (1 + c1 * delta - c1 - cmu) * self.c + c1 * np.outer(self.pc, self.pc)
        self.c += cmu * sum(wi * np.outer(yi, yi) for wi, yi in zip(w, ys, strict=True))
        self.sigma *= math.exp(cs / ds * (np.linalg.norm(self.ps) / chi - 1))
        self.stalled = h == 0


@pytest.mark.parametrize(("n", "k", "sigma"), [(5, 8, 0.5), (12, 14, 2.0), (3, 5, 1e-3)])
def test_equals_the_tutorial(n: int, k: int, sigma: float) -> None:
    ours = CMAES(torch.linspace(1, 2, n, dtype=torch.float64), sigma, k, seed=4)
    theirs, stalled = Tutorial(np.linspace(1, 2, n), sigma, k), 0
    scale = np.arange(1, n + 1)
    for _ in range(25):
        draws = ours()
        fitness = (scale * draws.numpy() ** 2).sum(1)
        ours.update(draws, torch.from_numpy(fitness))
        theirs.update(draws.numpy(), fitness)
        stalled += theirs.stalled
        np.testing.assert_allclose(ours.mean.numpy(), theirs.m, rtol=1e-6)
        np.testing.assert_allclose(ours.covariance.numpy(), theirs.c, rtol=1e-6, atol=1e-12)
        np.testing.assert_allclose(float(ours.sigma), theirs.sigma, rtol=1e-6)
    assert int(ours.generation) == 25
    assert stalled or sigma != 1e-3  # with a small first step the path grows long and h is 0


def test_draws_have_the_mean_and_covariance_that_it_holds() -> None:
    search = CMAES(torch.tensor([1.0, -2.0]), 0.5, 20_000, seed=0)
    covariance = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
    values, search.axes = torch.linalg.eigh(covariance)
    search.lengths = values.sqrt()
    draws = search()
    torch.testing.assert_close(draws.mean(dim=0), search.mean, rtol=0, atol=0.02)
    torch.testing.assert_close(draws.T.cov(), 0.25 * covariance, rtol=0, atol=0.02)
    assert torch.equal(search(), draws)


def test_what_is_not_finite_is_worst() -> None:
    a, b = (CMAES(torch.zeros(2), 1.0, 6, seed=1) for _ in range(2))
    draws = a()
    a.update(draws, torch.tensor([3.0, torch.nan, 1.0, torch.inf, 2.0, -torch.inf]))
    b.update(draws, torch.tensor([3.0, 9.0, 1.0, 9.0, 2.0, 9.0]))
    assert torch.equal(a.mean, b.mean)
    assert a.mean.isfinite().all()


def test_too_few_draws_are_refused() -> None:
    with pytest.raises(ValueError, match="population is 4 at least"):
        CMAES(torch.zeros(2), 1.0, 3, seed=0)
