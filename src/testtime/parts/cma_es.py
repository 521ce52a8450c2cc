r"""CMA-ES: minimise a function of which only values are known, by draws whose distribution follows the better half of them.

With K draws in n dimensions, their better half :math:`\mu = \lfloor K / 2 \rfloor`, sorted by fitness, and

.. math::
    x_k = m + \sigma y_k, \quad y_k \sim \mathcal N(0, C), \qquad
    w_i \propto \ln \tfrac{K + 1}{2} - \ln i, \quad \textstyle\sum_i w_i = 1, \quad \mu_w = 1 / \textstyle\sum_i w_i^2

a generation is

.. math::
    \bar y &= \textstyle\sum_i w_i y_{i:K}, \qquad m \leftarrow m + \sigma \bar y \\
    p_\sigma &\leftarrow (1 - c_\sigma)\, p_\sigma + \sqrt{c_\sigma (2 - c_\sigma) \mu_w}\; C^{-1/2} \bar y, \qquad
    \sigma \leftarrow \sigma \exp \tfrac{c_\sigma}{d_\sigma} \Big( \tfrac{\lVert p_\sigma \rVert}{\chi_n} - 1 \Big) \\
    p_c &\leftarrow (1 - c_c)\, p_c + h \sqrt{c_c (2 - c_c) \mu_w}\; \bar y \\
    C &\leftarrow (1 - c_1 - c_\mu + (1 - h) c_1 c_c (2 - c_c))\, C + c_1 p_c p_c^\top
        + c_\mu \textstyle\sum_i w_i\, y_{i:K} y_{i:K}^\top

where h is 0 while :math:`p_\sigma` is long. The axes of C are computed as rarely as the reference advises.

Reference: Hansen, The CMA Evolution Strategy: A Tutorial, 2016 (arXiv 1604.00772), figure 6 and table 1, without negative
weights.
"""

from __future__ import annotations

import math
from typing import final

import torch
from torch import Tensor

from testtime.intake.sharing import Stateful
from testtime.parts.randomness import generator

__all__ = ["CMAES"]


@final
class CMAES(Stateful):
    """The distribution of the draws, in float64.

    Args:
        start: (n,), the first mean.
        sigma: the first step size.
        population: K, number of draws of a generation, 4 at least.
        seed: random seed of the draws.

    Attributes:
        mean, path, path_sigma: m, p_c and p_sigma, (n,).
        covariance: C, (n, n); ``axes``, (n, n), and ``lengths``, (n,): its eigenvectors and the roots of its eigenvalues.
        sigma, generation: scalars.

    Calling draws (K, n), ``update`` takes their fitness.

    >>> search = CMAES(torch.ones(3), 0.5, 8, seed=0)
    >>> for _ in range(60):
    ...     draws = search()
    ...     search.update(draws, draws.square().sum(dim=1))
    >>> bool(search.mean.norm() < 1e-3)
    True
    """

    mean: Tensor
    path: Tensor
    path_sigma: Tensor
    covariance: Tensor
    axes: Tensor
    lengths: Tensor
    sigma: Tensor
    generation: Tensor

    def __init__(self, start: Tensor, sigma: float, population: int, seed: int) -> None:
        super().__init__()
        if population < 4 or sigma <= 0:
            raise ValueError(
                f"population is 4 at least and sigma above 0, got {population} and {sigma}; the better half of the draws "
                "shows where to go"
            )
        self.population, self.seed, self.n = population, seed, len(start)
        start = start.detach().double()
        for name in ("mean", "path", "path_sigma"):
            self.register_buffer(name, start.clone() if name == "mean" else torch.zeros_like(start))
        for name in ("covariance", "axes"):
            self.register_buffer(name, torch.eye(self.n, dtype=start.dtype, device=start.device))
        self.register_buffer("lengths", torch.ones_like(start))
        self.register_buffer("sigma", start.new_tensor(sigma))
        self.register_buffer("generation", torch.zeros((), dtype=torch.int64, device=start.device))

    def grows(self, name: str) -> bool:
        return False

    def forward(self) -> Tensor:
        rng = generator(self.seed, int(self.generation), "generation")
        z = torch.randn(self.population, self.n, generator=rng, dtype=torch.float64).to(self.mean)
        return self.mean + self.sigma * ((z * self.lengths) @ self.axes.T)

    @torch.no_grad()
    def update(self, draws: Tensor, fitness: Tensor) -> None:
        """Move the distribution towards the better half of its draws.

        Args:
            draws: (K, n), as the last call gave them.
            fitness: (K,), lower is better; what is not finite is worst.
        """
        n, half, rate = self.n, self.population // 2, _Rates(self.n, self.population)
        weight = rate.weights.to(self.mean)
        order = fitness.nan_to_num(torch.inf, torch.inf, torch.inf).argsort(stable=True)[:half]
        y = (draws[order].to(self.mean) - self.mean) / self.sigma
        step = weight @ y
        whitened = self.axes @ ((self.axes.T @ step) / self.lengths)
        self.mean = self.mean + self.sigma * step
        self.path_sigma = (1 - rate.c_sigma) * self.path_sigma + rate.of_path(rate.c_sigma) * whitened
        length, now = float(self.path_sigma.norm()), int(self.generation) + 1
        grown = length / math.sqrt(1 - (1 - rate.c_sigma) ** (2 * now))
        h = float(grown < (1.4 + 2 / (n + 1)) * rate.expected)
        self.path = (1 - rate.c_path) * self.path + h * rate.of_path(rate.c_path) * step
        kept = 1 - rate.c_one - rate.c_mu + (1 - h) * rate.c_one * rate.c_path * (2 - rate.c_path)
        self.covariance = (
            kept * self.covariance
            + rate.c_one * torch.outer(self.path, self.path)
            + rate.c_mu * (y.T * weight) @ y
        )
        self.sigma = self.sigma * math.exp(rate.c_sigma / rate.damping * (length / rate.expected - 1))
        self.generation = self.generation + 1
        if now % rate.gap == 0:
            values, axes = torch.linalg.eigh((self.covariance + self.covariance.T) / 2)
            self.axes = axes.contiguous()  # in the order in which a saved state gives them back
            self.lengths = values.clamp(min=torch.finfo(values.dtype).tiny).sqrt()


class _Rates:
    """The constants of the algorithm for n dimensions and K draws."""

    def __init__(self, n: int, population: int) -> None:
        half = population // 2
        weights = math.log((population + 1) / 2) - torch.arange(1, half + 1, dtype=torch.float64).log()
        self.weights = weights / weights.sum()
        mass = self.mass = 1 / float(self.weights.square().sum())
        self.c_sigma = (mass + 2) / (n + mass + 5)
        self.damping = 1 + 2 * max(0.0, math.sqrt((mass - 1) / (n + 1)) - 1) + self.c_sigma
        self.c_path = (4 + mass / n) / (n + 4 + 2 * mass / n)
        self.c_one = 2 / ((n + 1.3) ** 2 + mass)
        self.c_mu = min(1 - self.c_one, 2 * (mass - 2 + 1 / mass) / ((n + 2) ** 2 + mass))
        self.expected = math.sqrt(n) * (1 - 1 / (4 * n) + 1 / (21 * n * n))
        self.gap = max(1, int(1 / ((self.c_one + self.c_mu) * n * 10)))

    def of_path(self, c: float) -> float:
        return math.sqrt(c * (2 - c) * self.mass)
