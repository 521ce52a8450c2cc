r"""A mixture of two Gaussians on the line, fitted to a batch of scores by expectation-maximisation.

.. math:: p(s) = \sum_{k=1}^{2} \pi_k \, \mathcal N(s; \mu_k, \sigma_k^2), \qquad
    r_{ik} = \frac{\pi_k \, \mathcal N(s_i; \mu_k, \sigma_k^2)}{p(s_i)}
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["two_gaussians", "two_means"]


def two_means(scores: Tensor) -> Tensor:
    """The best split of numbers into two groups: the one with the smallest sum of squares within the groups.

    On the line the best groups are neighbours, so all N - 1 splits of the sorted scores are compared.

    Args:
        scores: (N,), at least two.

    Returns:
        (N,) bool, True in the upper group. Neither group is empty.

    >>> two_means(torch.tensor([0.1, 0.9, 0.0, 0.8]))
    tensor([False,  True, False,  True])
    """
    order = scores.argsort(stable=True)
    s = scores.double()[order]
    s = s - s.mean()
    lower = torch.arange(1, len(s), dtype=s.dtype, device=s.device)
    total = s.cumsum(0)[:-1]  # of the lower group; the upper one's is its negative, for the mean is zero
    between = total.square() / lower + total.square() / (len(s) - lower)
    upper = torch.empty_like(order, dtype=torch.bool)
    upper[order] = torch.arange(len(s), device=s.device) > between.argmax()
    return upper


def two_gaussians(
    scores: Tensor, tolerance: float = 1e-3, regularisation: float = 1e-6, iterations: int = 100
) -> Tensor:
    """How likely each score belongs to the lower and to the upper of two Gaussians.

    Regularisation and stopping are the defaults of scikit-learn's ``GaussianMixture``; the start is the exact
    best split (:func:`two_means`) instead of a random k-means, so that the same scores always give the same
    answer.

    Args:
        scores: (N,), at least two distinct finite values.
        tolerance: stop when the mean log-likelihood changes by less.
        regularisation: added to every variance.
        iterations: stop after as many.

    Returns:
        posterior (N, 2), float64; the first column is the Gaussian of the lower mean. Computed on the CPU,
        where so small a problem is at home, and returned to the device of the scores.

    Raises:
        ValueError: the scores are not (N,), not finite, or all equal.

    Reference: Dempster, Laird and Rubin, Maximum likelihood from incomplete data via the EM algorithm, 1977.

    >>> two_gaussians(torch.tensor([0.0, 0.1, 0.05, 0.9, 1.0])).round().int().tolist()
    [[1, 0], [1, 0], [1, 0], [0, 1], [0, 1]]
    """
    if scores.dim() != 1:
        raise ValueError(f"expected scores (N,), got shape {tuple(scores.shape)}")
    s, order = scores.detach().cpu().double().sort()  # sorted: sums do not depend on the order of the batch
    if len(s) < 2 or not bool(torch.isfinite(s).all()) or bool(s[0] == s[-1]):
        raise ValueError(
            f"two Gaussians need two distinct finite scores, got {len(s)} scores, {scores.unique()[:3]}"
        )
    s = s[:, None]

    def maximise(posterior: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weight = posterior.sum(dim=0) + 10 * torch.finfo(s.dtype).eps
        mean = (posterior * s).sum(dim=0) / weight
        var = (posterior * (s - mean).square()).sum(dim=0) / weight + regularisation
        return weight / weight.sum(), mean, var

    def expect(weight: Tensor, mean: Tensor, var: Tensor) -> tuple[Tensor, float]:
        log_joint = weight.log() - 0.5 * (math.log(2 * math.pi) + var.log() + (s - mean).square() / var)
        log_likelihood = log_joint.logsumexp(dim=1, keepdim=True)
        return (log_joint - log_likelihood).exp(), log_likelihood.mean().item()

    upper = two_means(s[:, 0])
    parameters = maximise(torch.stack([~upper, upper], dim=1).double())
    previous = -math.inf
    for _ in range(iterations):
        posterior, likelihood = expect(*parameters)
        parameters = maximise(posterior)
        if abs(likelihood - previous) < tolerance:
            break
        previous = likelihood
    posterior, _ = expect(*parameters)
    mean = parameters[1]
    if mean[0] > mean[1]:
        posterior = posterior.flip(1)
    return torch.empty_like(posterior).index_copy_(0, order, posterior).to(scores.device)
