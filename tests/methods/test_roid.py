"""ROID against a plain loop of the published behaviour, and its equations against numpy."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_world import mirrored
from testtime.laws import CLASSES, Case, parametrize_with_laws
from testtime.methods import ROID
from testtime.methods.roid import (
    ROIDOptions,
    corrected,
    diversity_certainty,
    ensemble,
    flat,
    soft_likelihood_ratio,
    universal_loss,
)
from testtime.parts import generator, katana, sgd
from testtime.prediction import energy

ALL_COUNT = [
    Case("ROID-all", partial(ROID, classes=CLASSES, options=ROIDOptions(weighting=False, prior="none")))
]


@parametrize_with_laws(ALL_COUNT, rotate=True)
def test_obeys(check: Callable[[], None]) -> None:
    """Where all count and no prior corrects, no law is excused."""
    check()


@pytest.mark.slow
@parametrize_with_laws(ALL_COUNT)
def test_obeys_in_every_world(check: Callable[[], None]) -> None:
    check()


class Published:
    """The published algorithm as a plain loop; ``pull`` moves the weights after the optimizer."""

    def __init__(self, net: nn.Module, classes: int = 5, lr: float = 1e-3, of: str = "logits") -> None:
        self.net = copy.deepcopy(net).eval().requires_grad_(False)
        self.affine = []
        for m in self.net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.track_running_stats, m.running_mean, m.running_var = False, None, None
            if isinstance(m, nn.BatchNorm2d | nn.LayerNorm):
                self.affine += [m.weight.requires_grad_(True), m.bias.requires_grad_(True)]
        self.source = [p.detach().clone() for p in self.affine]
        self.optimizer = torch.optim.Adam(self.affine, lr)
        self.classes, self.of = classes, of
        self.average = torch.full((classes,), 1 / classes, dtype=torch.float64)

    def pull(self) -> None:
        for p, s in zip(self.affine, self.source, strict=True):
            p.copy_(0.99 * p + 0.01 * s)

    def step(self, x: Tensor) -> tuple[Tensor, set[int]]:
        z = self.net(x)
        n, p = len(x), z.softmax(1)
        h = [float(-(q * q.log()).sum()) for q in p.detach()]
        unlike = [1 - float(self.average @ q / (self.average.norm() * q.norm())) for q in p.detach()]
        unlike = [(u - min(unlike)) / (max(unlike) - min(unlike)) for u in unlike]
        sure = [(max(h) - v) / (max(h) - min(h)) for v in h]
        kept = [i for i in range(n) if unlike[i] >= sum(unlike) / n]
        log_view = self.net(mirrored(x[kept], torch.Generator())).log_softmax(1)
        log_p, losses = z.log_softmax(1), []
        for row, i in enumerate(kept):
            q = p[i].clamp(max=0.99)
            ratio = -(q * (q / (1 - q) + 1e-5).log()).sum()
            sce = -0.5 * (p[i] * log_view[row]).sum() - 0.5 * (log_view[row].exp() * log_p[i]).sum()
            losses.append(math.exp(3 * unlike[i] * sure[i]) * (ratio + sce))
        self.optimizer.zero_grad()
        (torch.stack(losses).sum() / n).backward()
        self.optimizer.step()
        with torch.no_grad():
            self.pull()
        self.average = 0.9 * self.average + 0.1 * p.detach().mean(0)
        prior = p.detach().mean(0)
        smooth = max(1 / n, 1 / self.classes) / prior.max()
        prior = (prior + smooth) / (1 + smooth * self.classes)
        z = z.detach()
        return (z * prior if self.of == "logits" else z + prior.log()), set(kept)


@pytest.mark.parametrize("of", ["logits", "probabilities"])
def test_equals_the_published_loop(net: nn.Module, stream: list[Tensor], of: str) -> None:
    reference, roid = Published(net, of=of), ROID(net, 5, options=ROIDOptions(prior=of), augment=mirrored)
    for x in stream:
        expected, kept = reference.step(x)
        y = roid(x)
        torch.testing.assert_close(y.logits, expected, rtol=0, atol=1e-9)
        assert set(y.selected["minimised"].nonzero().flatten().tolist()) == kept
        assert 0 < len(kept) < len(x)
    torch.testing.assert_close(roid.average, reference.average, rtol=0, atol=1e-12)


def test_equals_the_published_loop_with_layer_norm(layer_net: nn.Module, stream: list[Tensor]) -> None:
    reference, roid = (
        Published(layer_net),
        ROID(layer_net, 5, options=ROIDOptions(prior="logits"), augment=mirrored),
    )
    for x in stream:
        torch.testing.assert_close(roid(x).logits, reference.step(x)[0], rtol=0, atol=1e-9)


def test_the_loss_in_numpy() -> None:
    rng = np.random.default_rng(0)
    z, z2, m = 2 * rng.normal(size=(9, 4)), 2 * rng.normal(size=(9, 4)), np.array([0.4, 0.3, 0.2, 0.1])
    p, p2 = (np.exp(v) / np.exp(v).sum(1, keepdims=True) for v in (z, z2))
    unlike = 1 - p @ m / np.linalg.norm(p, axis=1) / np.linalg.norm(m)
    unlike = (unlike - unlike.min()) / (unlike.max() - unlike.min())
    sure = (p * np.log(p)).sum(1)
    sure = (sure - sure.min()) / (sure.max() - sure.min())
    weight = np.where(unlike >= unlike.mean(), np.exp(unlike * sure / 0.5), 0)
    got = diversity_certainty(torch.from_numpy(z), torch.from_numpy(m), 0.5)
    np.testing.assert_allclose(got.numpy(), weight, rtol=1e-10)

    z[0, 1] = 12.0  # a probability above the clip
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    q = np.minimum(p, 0.99)
    ratio = -(q * np.log(q / (1 - q) + 1e-5)).sum(1)
    np.testing.assert_allclose(soft_likelihood_ratio(torch.from_numpy(z)).numpy(), ratio, rtol=1e-10)

    sce = -(p * np.log(p2)).sum(1) / 2 - (p2 * np.log(p)).sum(1) / 2
    loss = universal_loss(torch.from_numpy(z), got, lambda kept: torch.from_numpy(z2)[kept])
    np.testing.assert_allclose(loss.item(), (weight * (ratio + sce)).sum() / 9, rtol=1e-10)
    alone = universal_loss(torch.from_numpy(z), got, None)
    np.testing.assert_allclose(alone.item(), (weight * ratio).sum() / 9, rtol=1e-10)


def test_equal_images_weigh_alike() -> None:
    weight = diversity_certainty(torch.ones(5, 3), torch.full((3,), 1 / 3))
    assert weight.tolist() == [1.0] * 5
    assert diversity_certainty(torch.tensor([[2.0, 0.0]]), torch.tensor([0.5, 0.5])).tolist() == [1.0]


def test_the_prior_and_the_score() -> None:
    z = torch.tensor([[2.0, 0.0, -1.0], [1.0, 0.5, 0.0]], dtype=torch.float64)
    p = z.softmax(1).mean(0).numpy()
    smooth = 0.5 / p.max()
    prior = (p + smooth) / (1 + 3 * smooth)
    for kind, expected in (("logits", z.numpy() * prior), ("probabilities", z.numpy() + np.log(prior))):
        y = corrected(z, kind)
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12)
        assert y.score.equal(energy(z))
    assert corrected(z, "none").logits.equal(z)


def test_the_ensemble_pulls_to_the_source(net: nn.Module, stream: list[Tensor]) -> None:
    """At momentum 0 the weights are the source's after every step, and at 1 they are the optimizer's."""
    roid = ROID(net, 5, sgd(0.1), momentum=0.0)
    for x in stream[:3]:
        roid(x)
        assert flat(roid._adapted).equal(roid.anchor)
    p = [torch.tensor([1.0, 2.0]), torch.tensor([[3.0]])]
    ensemble(p, torch.tensor([0.0, 0.0, 1.0]), 0.75)
    assert [v.tolist() for v in p] == [[0.75, 1.5], [[2.5]]]


def test_a_clean_view_has_neither_blur_nor_noise() -> None:
    """An even image stays even under its view: edges are mirrored, and no noise is added."""
    y = katana(torch.full((4, 3, 16, 16), 0.5), generator(0, 0, "a"), clean=True)
    assert y.std(dim=(2, 3)).max() < 1e-6
    assert y.mean(dim=(2, 3)).std() > 0.01  # the colours changed
    assert katana(torch.full((4, 3, 16, 16), 0.5), generator(0, 0, "a")).std(dim=(2, 3)).min() > 1e-3


def test_there_is_no_such_prior(net: nn.Module) -> None:
    with pytest.raises(ValueError, match="expected prior"):
        ROID(net, 5, options=ROIDOptions(prior="odds"))
