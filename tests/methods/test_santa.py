"""SANTA against a plain loop of the published behaviour, and its losses against numpy."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from small_world import CLASSES, batch, by_batch, jitter, net, norms_of, stream
from testtime.methods import SANTA
from testtime.parts import generator, identity, sgd


def labelled() -> list[tuple[Tensor, Tensor]]:
    """Source batches with labels, a few of them other than what the model predicts."""
    batches = [batch(20, 900 + i) for i in range(3)]
    return [(x, torch.where(torch.arange(20) % 7 == 0, (y + 1) % CLASSES, y)) for x, y in batches]


def source() -> list[Tensor]:
    return [x for x, _ in labelled()]


class Published:
    """The published step with whole models and one anchor at a time."""

    def __init__(self, ours: SANTA, norm: str, true_labels: bool) -> None:
        self.model, self.anchor = by_batch(net(norm)).requires_grad_(False), by_batch(net(norm))
        self.projector = copy.deepcopy(ours.model.get_submodule("projector")).requires_grad_(True)
        affine = [p.requires_grad_(True) for p in norms_of(self.model)]
        self.optimizer = torch.optim.SGD([*affine, *self.projector.parameters()], 0.05, momentum=0.9)
        with torch.no_grad():
            features = torch.cat([self.model[:-1](x) for x in source()])
            labels = torch.cat([self.model(x).argmax(1) for x in source()])
        if true_labels:
            assert not torch.equal(labels, torch.cat([y for _, y in labelled()]))
            labels = torch.cat([y for _, y in labelled()])
        self.prototypes = torch.stack([features[labels == c].mean(0) for c in range(CLASSES)])

    def align(self, f: Tensor, aug: Tensor) -> Tensor:
        units = []
        for i in range(len(f)):
            alike = [float(F.cosine_similarity(p, f[i].detach(), dim=0)) for p in self.prototypes]
            for v in (self.prototypes[int(np.argmax(alike))], f[i], aug[i]):
                p = self.projector(v)
                units.append(p / p.norm())
        terms = []
        for a in range(len(units)):
            others = [b for b in range(len(units)) if b != a]
            total = torch.stack([(units[a] @ units[b] / 0.1).exp() for b in others]).sum()
            terms += [
                -torch.log((units[a] @ units[b] / 0.1).exp() / total) for b in others if a // 3 == b // 3
            ]
        return torch.stack(terms).mean()

    def step(self, x: Tensor, clock: int) -> Tensor:
        f, aug = self.model[:-1](x), self.model[:-1](jitter(x, generator(3, clock, "view")))
        z, z_aug = self.model[-1](f), self.model[-1](aug)
        log_a = self.anchor(x).detach().log_softmax(1)
        anchored = -(0.5 * z.softmax(1) * log_a + 0.5 * z_aug.softmax(1) * log_a).sum(1).mean()
        self.optimizer.zero_grad()
        (0.8 * anchored + 0.3 * self.align(f, aug)).backward()
        self.optimizer.step()
        return z.detach()


@pytest.mark.parametrize(("norm", "true_labels"), [("batch", True), ("batch", False), ("layer", True)])
def test_equals_the_published_loop(norm: str, true_labels: bool) -> None:
    ours = SANTA(net(norm), sgd(0.05), 0.8, 0.3, projection=16, augment=jitter, seed=3)
    reference = Published(ours, norm, true_labels)
    ours.prepare(labelled() if true_labels else source())
    for clock, x in enumerate(stream([12, 5, 8, 2, 8, 6, 3, 9, 4, 7])):
        expected = reference.step(x, clock)
        torch.testing.assert_close(ours(x).logits, expected, rtol=0, atol=1e-9)
    moved = max(
        float((p - q).detach().abs().max())
        for p, q in zip(norms_of(reference.model), norms_of(net(norm)), strict=True)
    )
    assert moved > 1e-2


def test_anchoring_in_numpy(slope: Callable[..., np.ndarray]) -> None:
    """Its gradient, by differences: the adapting model before the logarithm, the source after it."""
    x = stream([10])[0]
    ours = SANTA(net(), sgd(1.0, momentum=0.0), lambda_sa=2.0, lambda_ta=0.0, augment=identity)
    ours.prepare(source())
    a = ours.origin(x).detach().numpy()
    log_a = a - np.log(np.exp(a).sum(1, keepdims=True))

    def loss(z: np.ndarray) -> float:
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        return float(-2 * (p * log_a).sum(1).mean())

    bias = ours._adapted[3]
    gradient, before = slope(lambda: ours.predict(x), bias, loss), bias.detach().clone()
    ours(x)
    np.testing.assert_allclose((before - bias.detach()).numpy(), gradient, rtol=1e-5, atol=1e-9)


def test_only_the_norms_and_the_projection_move() -> None:
    ours = SANTA(net(), projection=16)
    assert len(ours._adapted) == 4 + 4
    assert len(SANTA(net(), projection=None)._adapted) == 4
    ours.prepare(source())
    assert ours.of_source.prototypes.shape == (CLASSES, 32)
    assert ours.of_source.images.numel() == 0


def test_unprepared_is_an_error_that_helps() -> None:
    with pytest.raises(RuntimeError, match=r"call adapter\.prepare\(batches\)"):
        SANTA(net())(stream([8])[0])


def test_a_model_without_norms_is_refused() -> None:
    with pytest.raises(ValueError, match="this model has none"):
        SANTA(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)))
