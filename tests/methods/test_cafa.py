"""CAFA against a plain loop, its Gaussians and its loss against numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from small_world import CLASSES, batch, by_batch, net, norms_of, stream
from testtime.methods import CAFA
from testtime.methods.cafa import ClassGaussians, class_aware_loss
from testtime.parts import adam, sgd


def labelled() -> list[tuple[Tensor, Tensor]]:
    """Source batches with labels, a few of them other than what the model predicts."""
    batches = [batch(24, 900 + i) for i in range(4)]
    return [(x, torch.where(torch.arange(24) % 7 == 0, (y + 1) % CLASSES, y)) for x, y in batches]


def source() -> list[Tensor]:
    return [x for x, _ in labelled()]


def gaussians(
    features: np.ndarray, label: np.ndarray, ridge: float, tied: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Means (C, D) and inverse covariances (C, D, D)."""
    means = np.stack([features[label == c].mean(0) for c in range(CLASSES)])
    inverse = []
    for c in range(CLASSES):
        gaps = features - means[label] if tied else features[label == c] - means[c]
        cov = gaps.T @ gaps / len(gaps)
        inverse.append(np.linalg.inv(cov + ridge * np.trace(cov) / len(cov) * np.eye(len(cov))))
    return means, np.stack(inverse)


@pytest.mark.parametrize("norm", ["batch", "layer"])
@pytest.mark.parametrize(("tied", "true_labels"), [(True, False), (False, False), (False, True)])
def test_equals_a_plain_loop(norm: str, tied: bool, true_labels: bool) -> None:
    ours = CAFA(net(norm), adam(5e-3), ridge=0.05, tied=tied)
    ours.prepare(labelled() if true_labels else source())
    model = by_batch(net(norm)).requires_grad_(False)
    with torch.no_grad():
        features = torch.cat([model[:-1](x) for x in source()])
        label = torch.cat([y if true_labels else model(x).argmax(1) for x, y in labelled()])
    means, inverse = map(torch.from_numpy, gaussians(features.numpy(), label.numpy(), 0.05, tied))
    optimizer = torch.optim.Adam([p.requires_grad_(True) for p in norms_of(model)], 5e-3)
    for x in stream([12, 5, 8, 1, 8, 6, 3, 9, 4, 7]):
        f = model[:-1](x)
        z, losses = model[-1](f), []
        for i in range(len(x)):
            d = [(f[i] - m) @ s @ (f[i] - m) for m, s in zip(means, inverse, strict=True)]
            y = int(z[i].argmax())
            losses.append((d[y] / sum(d[c] for c in range(CLASSES) if c != y)).log())
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
        torch.testing.assert_close(ours(x).logits, z.detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("tied", [True, False])
def test_distances_in_numpy(tied: bool) -> None:
    rng = np.random.default_rng(0)
    features, label = rng.normal(size=(60, 5)), np.arange(60) % CLASSES
    learned = ClassGaussians()
    learned.update(torch.from_numpy(features), torch.from_numpy(label), CLASSES, 0.1, tied)
    means, inverse = gaussians(features, label, 0.1, tied)
    z = rng.normal(size=(7, 5))
    expected = [[(v - m) @ s @ (v - m) for m, s in zip(means, inverse, strict=True)] for v in z]
    np.testing.assert_allclose(learned(torch.from_numpy(z)).numpy(), expected, rtol=1e-9)


def test_loss_in_numpy() -> None:
    d, label = np.random.default_rng(0).uniform(1, 5, size=(6, 4)), np.array([0, 1, 2, 3, 0, 1])
    own = d[np.arange(6), label]
    got = class_aware_loss(torch.from_numpy(d), torch.from_numpy(label))
    np.testing.assert_allclose(got.numpy(), np.log(own / (d.sum(1) - own)), rtol=1e-12)


def test_a_class_without_features_is_left_out() -> None:
    """It is no one's neighbour, and who is labelled so teaches nothing."""
    learned, z = ClassGaussians(), torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([0] * 10 + [1] * 9 + [2])
    learned.update(z, label, 4, 0.1, False)
    assert learned.known.tolist() == [True, True, False, False]
    assert learned(z).isfinite().all()
    ours = CAFA(net(), sgd(0.1))
    ours.prepare(source())
    x = stream([12])[0]
    label = ours.predict(x).argmax(1)
    ours.gaussians.known[int(label[0])] = False
    y = ours(x)
    assert y.selected["minimised"].tolist() == (label != label[0]).tolist()
    ours.gaussians.known[:-1] = False  # one class alone has nothing to be far from
    assert not ours(x).updated


def test_too_few_features_are_refused_with_advice() -> None:
    learned = ClassGaussians()
    with pytest.raises(ValueError, match="no class has two of the 3 source images"):
        learned.update(torch.rand(3, 2), torch.tensor([0, 1, 2]), 3, 0.1, False)
    with pytest.raises(ValueError, match=r"5 features of 8 dimensions .* take a larger ridge, or tied=True"):
        learned.update(torch.ones(5, 8), torch.zeros(5, dtype=torch.int64), 3, 0.0, False)
    with pytest.raises(RuntimeError, match=r"call adapter\.prepare\(batches\)"):
        CAFA(net())(stream([8])[0])
