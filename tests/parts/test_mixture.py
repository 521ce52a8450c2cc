import itertools

import numpy as np
import pytest
import torch

from testtime.parts.mixture import two_gaussians, two_means

mixture = pytest.importorskip("sklearn.mixture")


def best_split(s: np.ndarray) -> np.ndarray:
    """The upper group of the best of all splits into two groups, by trying them."""
    best, upper = np.inf, None
    for bits in itertools.product([False, True], repeat=len(s)):
        mask = np.array(bits)
        if mask.all() or not mask.any() or s[mask].mean() < s[~mask].mean():
            continue
        within = ((s[mask] - s[mask].mean()) ** 2).sum() + ((s[~mask] - s[~mask].mean()) ** 2).sum()
        if within < best:
            best, upper = within, mask
    return upper


@pytest.mark.parametrize("seed", range(5))
def test_two_means_is_the_best_split(seed: int) -> None:
    s = np.random.default_rng(seed).normal(size=9) ** 3
    np.testing.assert_array_equal(two_means(torch.from_numpy(s)).numpy(), best_split(s))


def scores(kind: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "apart":
        s = np.r_[rng.normal(0.2, 0.05, 60), rng.normal(0.8, 0.1, 40)]
    elif kind == "overlapping":
        s = np.r_[rng.normal(0.3, 0.15, 120), rng.normal(0.6, 0.2, 80)]
    else:  # one side is tiny
        s = np.r_[rng.normal(0.1, 0.02, 97), 0.9, 0.95, 1.0]
    return rng.permutation((s - s.min()) / (s.max() - s.min()))


@pytest.mark.parametrize("kind", ["apart", "overlapping", "tiny"])
@pytest.mark.parametrize("seed", range(3))
def test_equals_scikit_learn_from_the_same_start(kind: str, seed: int) -> None:
    s = scores(kind, seed)
    upper = two_means(torch.from_numpy(s)).numpy()
    groups = [s[~upper], s[upper]]
    oracle = mixture.GaussianMixture(
        2,
        weights_init=[len(g) / len(s) for g in groups],
        means_init=[[g.mean()] for g in groups],
        precisions_init=[[[1 / (g.var() + 1e-6)]] for g in groups],
        random_state=0,
    ).fit(s[:, None])
    expected = oracle.predict_proba(s[:, None])
    if oracle.means_[0, 0] > oracle.means_[1, 0]:
        expected = expected[:, ::-1]
    np.testing.assert_allclose(two_gaussians(torch.from_numpy(s)).numpy(), expected, atol=1e-9)


@pytest.mark.parametrize("kind", ["apart", "tiny"])
def test_equals_scikit_learn_from_its_own_start(kind: str) -> None:
    s = scores(kind, 0)
    oracle = mixture.GaussianMixture(2, random_state=0).fit(s[:, None])
    expected = oracle.predict_proba(s[:, None])[:, oracle.means_[:, 0].argsort()]
    np.testing.assert_allclose(two_gaussians(torch.from_numpy(s)).numpy(), expected, atol=1e-9)


def test_posterior_in_numpy() -> None:
    """At convergence the posterior is that of the Gaussians it implies."""
    s = scores("overlapping", 1)
    r = two_gaussians(torch.from_numpy(s), tolerance=0.0, iterations=5000).numpy()
    mean = (r * s[:, None]).sum(0) / r.sum(0)
    var = (r * (s[:, None] - mean) ** 2).sum(0) / r.sum(0) + 1e-6
    joint = r.mean(0) / np.sqrt(2 * np.pi * var) * np.exp(-((s[:, None] - mean) ** 2) / (2 * var))
    np.testing.assert_allclose(r, joint / joint.sum(1, keepdims=True), atol=1e-6)
    assert mean[0] < mean[1]


def test_permuting_the_scores_permutes_the_answer_to_the_bit() -> None:
    s = torch.from_numpy(scores("overlapping", 2))
    order = torch.randperm(len(s), generator=torch.Generator().manual_seed(0))
    assert two_gaussians(s[order]).equal(two_gaussians(s)[order])


def test_two_values_and_half_precision() -> None:
    np.testing.assert_allclose(two_gaussians(torch.tensor([1.0, 0.0])), [[0, 1], [1, 0]], atol=1e-12)
    assert two_gaussians(torch.tensor([0.0, 0.1, 0.9], dtype=torch.bfloat16)).dtype == torch.float64


@pytest.mark.parametrize("bad", [[0.5], [0.5, 0.5, 0.5], [0.1, float("nan")], []])
def test_scores_that_do_not_split_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="two distinct finite scores"):
        two_gaussians(torch.tensor(bad))
    with pytest.raises(ValueError, match="expected scores"):
        two_gaussians(torch.zeros(2, 2))
