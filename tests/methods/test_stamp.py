"""STAMP against a plain loop of the algorithm as its docstring says it, and its equations against numpy."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from small_world import CLASSES, batch, by_batch, jitter, net, norms_of, stream
from torch import Tensor, nn

from testtime.adapter import state_hash
from testtime.methods import STAMP
from testtime.methods.stamp import RBM, self_weighted_entropy
from testtime.parts import generator, identity, sgd


class Bank:
    """The memory as a list of (image, class), oldest first, one image at a time."""

    def __init__(self, classes: int, capacity: int, decay: float = 0.9) -> None:
        self.items: list[tuple[Tensor, int]] = []
        self.average, self.capacity, self.decay, self.evicted = [0.0] * classes, capacity, decay, 0

    def add(self, image: Tensor, c: int) -> None:
        held = [sum(k == j for _, k in self.items) for j in range(len(self.average))]
        self.average = [
            self.decay * a + (1 - self.decay) * n for a, n in zip(self.average, held, strict=True)
        ]
        if len(self.items) == self.capacity:
            crowded = max((j for j, n in enumerate(held) if n), key=lambda j: self.average[j])
            self.items.pop([k for _, k in self.items].index(crowded))
            self.evicted += 1
        self.items.append((image, c))


class Plain:
    """The algorithm with a whole second model, torch's own scheduler and a sharpness-aware step by hand."""

    def __init__(
        self, model: nn.Module, capacity: int, views: int, alpha: float, lr: float, period: int
    ) -> None:
        self.source, self.model = by_batch(copy.deepcopy(model)), by_batch(model)
        self.moving = norms_of(self.model)
        self.model.requires_grad_(False)
        for p in self.moving:
            p.requires_grad_(True)
        self.optimizer = torch.optim.SGD(self.moving, lr, momentum=0.9)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=period)
        self.bank, self.views, self.alpha = Bank(CLASSES, capacity), views, alpha
        self.refused = {"entropy": 0, "disagreement": 0}

    def step(self, x: Tensor, clock: int) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            z = torch.stack(
                [self.model(jitter(x, generator(0, clock, f"view {i}"))) for i in range(self.views)]
            )
            p, origin = z.softmax(2).mean(0), self.source(x).argmax(1)
        h = -(p * p.log()).sum(1)
        for i in range(len(x)):
            if h[i] >= self.alpha * math.log(CLASSES):
                self.refused["entropy"] += 1
            elif p[i].argmax() != origin[i]:
                self.refused["disagreement"] += 1
            else:
                self.bank.add(x[i], int(p[i].argmax()))
        if self.bank.items:
            self.update(torch.stack([image for image, _ in self.bank.items]))
        self.schedule.step()
        return p, h, -torch.logsumexp(z.mean(0), 1)

    def loss(self, images: Tensor) -> Tensor:
        p = self.model(images).softmax(1)
        h = -(p * p.log()).sum(1)
        w = 1 / torch.exp(h)
        return (len(h) * w / w.sum() * h).mean()

    def update(self, images: Tensor) -> None:
        self.optimizer.zero_grad()
        self.loss(images).backward()
        norm = torch.cat([p.grad.flatten() for p in self.moving]).norm()
        old = [p.detach().clone() for p in self.moving]
        with torch.no_grad():
            for p in self.moving:
                p.add_(0.05 * p.grad / (norm + 1e-12))
        self.optimizer.zero_grad()
        self.loss(images).backward()
        with torch.no_grad():
            for p, q in zip(self.moving, old, strict=True):
                p.copy_(q)
        self.optimizer.step()


@pytest.mark.parametrize(("norm", "score"), [("batch", "energy"), ("batch", "entropy"), ("layer", "energy")])
def test_equals_the_plain_loop(norm: str, score: str) -> None:
    plain = Plain(net(norm), capacity=12, views=4, alpha=0.9, lr=0.1, period=15)
    ours = STAMP(
        net(norm),
        CLASSES,
        sgd(0.1),
        views=4,
        alpha=0.9,
        capacity=12,
        period=15,
        score=score,  # type: ignore[arg-type]
        augment=jitter,
    )
    for clock, x in enumerate(stream([13] * 20)):
        p, h, energy = plain.step(x, clock)
        looked, answer = ours.predict(x), ours(x)
        assert torch.equal(looked, answer)
        torch.testing.assert_close(answer.logits.softmax(1), p, rtol=0, atol=1e-8)
        torch.testing.assert_close(-answer.logits.logsumexp(1), energy, rtol=0, atol=1e-8)
        torch.testing.assert_close(answer.score, energy if score == "energy" else h, rtol=0, atol=1e-8)
        expected = p.log() - energy[:, None]
        torch.testing.assert_close(answer.logits, expected, rtol=0, atol=1e-8)
    assert min(plain.bank.evicted, *plain.refused.values()) > 0, plain.refused
    assert min((p - q).abs().max() for p, q in zip(ours._adapted, norms_of(net(norm)), strict=True)) > 1e-3


@pytest.mark.parametrize(("classes", "capacity", "decay"), [(3, 8, 0.9), (7, 16, 0.0), (40, 16, 0.99)])
def test_memory_equals_the_sequential_list(classes: int, capacity: int, decay: float) -> None:
    rng = np.random.default_rng(classes)
    ours, plain = RBM(classes, capacity, decay), Bank(classes, capacity, decay)
    for _ in range(40):
        n = int(rng.integers(0, 20))
        x = torch.from_numpy(rng.random((n, 2)))
        label = torch.from_numpy(np.minimum(rng.geometric(0.4, n) - 1, classes - 1))
        ours.add(x, label)
        for row in range(n):
            plain.add(x[row], int(label[row]))
        expected = torch.stack([image for image, _ in plain.items])
        images = ours.held()
        assert torch.equal(images[images[:, 0].argsort()], expected[expected[:, 0].argsort()])
        np.testing.assert_allclose(ours.places, plain.average, atol=1e-12)
    assert plain.evicted > 0


def test_memory_becomes_balanced() -> None:
    bank, rng = RBM(4, 32), np.random.default_rng(0)
    for _ in range(50):
        label = torch.from_numpy(rng.choice(4, 20, p=[0.7, 0.1, 0.1, 0.1]))
        bank.add(torch.rand(20, 2), label)
    assert bank.label.bincount().min() >= 5


def test_self_weighted_entropy_in_numpy() -> None:
    z = np.random.default_rng(0).normal(size=(6, 5)) * 3
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    h = -(p * np.log(p)).sum(1)
    w = 6 / np.exp(h) / (1 / np.exp(h)).sum()
    np.testing.assert_allclose(self_weighted_entropy(torch.from_numpy(z)), (w * h).mean(), atol=1e-12)


def test_weights_carry_gradients() -> None:
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(self_weighted_entropy, z)


def test_chunks_do_not_change_the_numbers() -> None:
    one, two = (STAMP(net(), CLASSES, views=4, alpha=0.9, augment=jitter, chunk=c) for c in (1, 2))
    for x in stream([9] * 4):
        torch.testing.assert_close(one(x).logits, two(x).logits, rtol=0, atol=1e-10)


def test_null_step_answers_as_the_source_under_batch_statistics() -> None:
    x, _ = batch(8, 2)
    a = STAMP(net(), CLASSES, sgd(0.0), views=3, augment=identity)
    expected = by_batch(net())(x)
    torch.testing.assert_close(a(x).logits, expected, rtol=0, atol=1e-12)


def test_nothing_reliable_means_no_update() -> None:
    a = STAMP(net(), CLASSES, views=2, alpha=0.0)
    y = a(batch(8, 0)[0])
    assert not y.updated
    assert not y.selected["reliable"].any()
    assert y.valid.all()


def test_consistency_can_be_left_out() -> None:
    x = stream([40] * 10)[5]
    yes, no = (
        STAMP(net(), CLASSES, views=2, alpha=1.1, consistent=c, augment=jitter)(x) for c in (True, False)
    )
    assert no.selected["reliable"].all()
    assert not yes.selected["reliable"].all()


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_state_is_enough_and_reset_is_birth(norm: str) -> None:
    data = stream([10, 3, 1, 25, 8])
    a, dirty = (STAMP(net(norm), CLASSES, views=2, alpha=0.9, capacity=8, period=4) for _ in range(2))
    born = state_hash(a)
    a(data[0]), a(data[1]), dirty(data[3])
    dirty.load_state_dict(a.state_dict())
    for x in data[2:]:
        assert torch.equal(a(x), dirty(x))
    assert state_hash(a) == state_hash(dirty)
    a.reset()
    assert state_hash(a) == born


@pytest.mark.parametrize("arguments", [{"views": 0}, {"views": 32, "chunk": 5}, {"score": "margin"}])
def test_refuses_bad_arguments(arguments: dict) -> None:
    with pytest.raises(ValueError, match="expected"):
        STAMP(net(), CLASSES, **arguments)


def test_half_precision_keeps_its_form() -> None:
    a = STAMP(net().bfloat16(), CLASSES, views=2, alpha=1.1)
    y = a(batch(20, 0)[0].bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.updated
    assert y.valid.all()
