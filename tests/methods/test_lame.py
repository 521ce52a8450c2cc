"""LAME against plain loops in numpy, and against the objective that it minimises."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_world import CLASSES, batch, net, stream
from testtime import energy
from testtime.methods import LAME
from testtime.methods.lame import affinities, laplacian_adjusted


def weights(f: np.ndarray, kind: str, k: int, itself: bool = False) -> np.ndarray:
    """The affinities one pair at a time; ``itself`` counts an image among its k for the radial width."""
    f = np.array([row / np.linalg.norm(row) for row in f])
    n, w = len(f), np.zeros((len(f), len(f)))
    d = [[float(np.linalg.norm(f[i] - f[j])) for j in range(n)] for i in range(n)]
    others = [sorted((j for j in range(n) if j != i), key=lambda j, i=i: d[i][j]) for i in range(n)]
    width = np.mean([d[i][([i] * itself + others[i])[k - 1]] for i in range(n)])
    for i in range(n):
        for j in range(n):
            if kind == "nearest":
                w[i, j] = j in others[i][:k]
            elif kind == "radial":
                w[i, j] = np.exp(-(d[i][j] ** 2) / (2 * width**2))
            else:
                w[i, j] = f[i] @ f[j]
    return w


def published(z: np.ndarray, w: np.ndarray, weight: float) -> np.ndarray:
    """The procedure as a plain loop over assignments."""
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    y, old = p, None
    for _ in range(100):
        y = p * np.exp(weight * w @ y)
        y = y / y.sum(1, keepdims=True)
        now = objective(y, p, w, weight)
        if old is not None and abs(now - old) <= 1e-8 * abs(old):
            break
        old = now
    return y


def objective(y: np.ndarray, p: np.ndarray, w: np.ndarray, weight: float) -> float:
    return float((y * np.log(y / p)).sum() - weight * np.trace(w @ y @ y.T))


def features_of(model: nn.Module, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        f = model[:-1](x)
        return f.numpy(), model[-1](f).numpy()


@pytest.mark.parametrize("kind", ["nearest", "radial", "linear"])
@pytest.mark.parametrize("weight", [0.3, 1.0])
def test_equals_the_plain_loop(kind: str, weight: float) -> None:
    ours = LAME(net(), kind, neighbours=3, weight=weight)
    for x in stream([24, 7, 16, 5, 12, 9, 16, 6, 20, 8]):
        f, z = features_of(net(), x)
        expected = published(z, weights(f, kind, 3), weight)
        y = ours(x)
        np.testing.assert_allclose(y.logits.softmax(1).numpy(), expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(y.score, energy(torch.from_numpy(z)), rtol=0, atol=1e-9)
        assert torch.equal(ours.predict(x).logits, y.logits)


def test_the_published_radial_width_counts_the_image_itself() -> None:
    ours = LAME(net(), "radial", neighbours=3 - 1)
    for x in stream([24, 7, 16] * 4):
        f, z = features_of(net(), x)
        expected = published(z, weights(f, "radial", 3, itself=True), 1.0)
        np.testing.assert_allclose(ours(x).logits.softmax(1).numpy(), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("kind", ["radial", "linear"])
def test_the_objective_falls_at_every_iteration(kind: str) -> None:
    """Where the affinity is symmetric and positive, each step of the procedure lowers the objective."""
    f, z = features_of(net(), stream([24])[0])
    w, log_p = affinities(torch.from_numpy(f), kind), torch.from_numpy(z).log_softmax(1)
    values = [objective(log_p.exp().numpy(), log_p.exp().numpy(), w.numpy(), 1.0)]
    for n in range(1, 8):
        y = laplacian_adjusted(log_p, w, iterations=n, tolerance=0.0).exp().numpy()
        values.append(objective(y, log_p.exp().numpy(), w.numpy(), 1.0))
    assert all(a >= b for a, b in pairwise(values)), values
    assert values[0] > values[-1]


def test_a_correlated_stream_gains_and_a_single_image_keeps_its_prediction() -> None:
    model, kept, gained = net(), 0, 0
    for c in range(CLASSES):
        x, label = batch(400, c, drift=1.3)
        x = x[label == c][:32]
        kept += int((model(x).argmax(1) == c).sum())
        gained += int((LAME(model)(x).argmax(1) == c).sum())
    assert gained > kept + 8
    x = stream([1])[0]
    torch.testing.assert_close(LAME(model)(x).softmax(1), model(x).softmax(1))
    assert LAME(model, "radial")(x).valid.all()


def test_says_what_it_expects() -> None:
    with pytest.raises(ValueError, match="affinity is one of 'nearest', 'radial', 'linear', got 'rbf'"):
        LAME(net(), "rbf")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="neighbours is at least 1, got 0"):
        LAME(net(), neighbours=0)
    with pytest.raises(ValueError, match=r"no torch\.nn\.Linear layer"):
        LAME(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()))
