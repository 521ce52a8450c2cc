"""STAMP against a plain loop of the published behaviour and of its alternatives, and its equations against numpy."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_world import CLASSES, batch, by_batch, jitter, net, norms_of, stream
from testtime.adapter import state_hash
from testtime.methods import STAMP
from testtime.methods.stamp import RBM, STAMPOptions, self_weighted_entropy
from testtime.parts import generator, identity, sgd


class Bank:
    """The memory as a list of (image, class), oldest first, one image at a time."""

    def __init__(self, classes: int, capacity: int, decay: float = 0.9, count: str = "update") -> None:
        self.items: list[tuple[Tensor, int]] = []
        self.average, self.capacity, self.decay, self.evicted = [0.0] * classes, capacity, decay, 0
        self.count = count

    def held(self) -> list[int]:
        return [sum(k == j for _, k in self.items) for j in range(len(self.average))]

    def move(self) -> None:
        self.average = [
            self.decay * a + (1 - self.decay) * n for a, n in zip(self.average, self.held(), strict=True)
        ]

    def add(self, image: Tensor, c: int) -> None:
        if self.count == "admission":
            self.move()
        if len(self.items) == self.capacity:
            held = self.held()
            known = self.average if any(self.average) else held  # nothing was counted yet
            crowded = max((j for j, n in enumerate(held) if n), key=lambda j: known[j])
            self.items.pop([k for _, k in self.items].index(crowded))
            self.evicted += 1
        self.items.append((image, c))

    def learned(self) -> None:
        if self.count == "update":
            self.move()


class Plain:
    """The algorithm with a whole second model, torch's own scheduler and a sharpness-aware step by hand."""

    def __init__(
        self,
        model: nn.Module,
        capacity: int,
        views: int,
        alpha: float,
        lr: float,
        period: int,
        original: bool = True,
        count: str = "update",
        normalise: str = "capacity",
        epsilon: float = 1e-5,
    ) -> None:
        self.source, self.model = by_batch(copy.deepcopy(model)), by_batch(model)
        self.moving = norms_of(self.model)
        self.model.requires_grad_(False)
        for p in self.moving:
            p.requires_grad_(True)
        self.optimizer = torch.optim.SGD(self.moving, lr, momentum=0.9)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, T_max=period)
        self.bank, self.views, self.alpha = Bank(CLASSES, capacity, count=count), views, alpha
        self.original, self.normalise, self.epsilon = original, normalise, epsilon
        self.refused, self.sizes = {"entropy": 0, "disagreement": 0}, set[int]()

    def entropy(self, p: Tensor) -> Tensor:
        return -(p * torch.log(p + self.epsilon)).sum(1)

    def step(self, x: Tensor, clock: int) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            views = [jitter(x, generator(0, clock, f"view {i}")) for i in range(self.views)]
            if self.original:
                views[0] = x
            z = torch.stack([self.model(view) for view in views])
            p, origin = z.softmax(2).mean(0), self.source(x).argmax(1)
        h = self.entropy(p)
        for i in range(len(x)):
            if h[i] >= self.alpha * math.log(CLASSES):
                self.refused["entropy"] += 1
            elif p[i].argmax() != origin[i]:
                self.refused["disagreement"] += 1
            else:
                self.bank.add(x[i], int(p[i].argmax()))
        if self.bank.items:
            self.bank.learned()
            self.sizes.add(len(self.bank.items))
            self.update(torch.stack([image for image, _ in self.bank.items]))
        self.schedule.step()
        return p, h, -torch.logsumexp(z.mean(0), 1)

    def loss(self, images: Tensor) -> Tensor:
        h = self.entropy(self.model(images).softmax(1))
        w = 1 / torch.exp(h)
        total = self.bank.capacity if self.normalise == "capacity" else len(h)
        return (total * w / w.sum() * h).mean()

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


def same_memory(ours: RBM, plain: Bank) -> None:
    """The same images with the same labels, oldest first, and the same count."""
    order = [i for i in ours.arrival.argsort().tolist() if ours.label[i] >= 0]
    assert ours.label[order].tolist() == [c for _, c in plain.items]
    if plain.items:
        assert torch.equal(ours.images[order], torch.stack([image for image, _ in plain.items]))
    np.testing.assert_allclose(ours.places, plain.average, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("norm", "arguments"),
    [
        ("batch", {}),  # the published code
        ("batch", {"score": "entropy"}),
        ("layer", {}),
        ("batch", {"original": False}),
        ("batch", {"count": "admission"}),
        ("batch", {"normalise": "held"}),
        ("batch", {"epsilon": 0.0}),
        ("layer", {"original": False, "count": "admission", "normalise": "held", "epsilon": 0.0}),
    ],
)
def test_equals_the_published_loop(norm: str, arguments: dict) -> None:
    score = arguments.get("score", "energy")
    settings = {"views": 4, "alpha": 0.9, "period": 15}
    alike = {k: v for k, v in arguments.items() if k != "score"}
    plain = Plain(net(norm), lr=0.02, capacity=24, **settings, **alike)
    options = STAMPOptions(capacity=24, **arguments)
    ours = STAMP(net(norm), CLASSES, sgd(0.02), augment=jitter, options=options, **settings)
    for clock, x in enumerate(stream([13] * 20)):
        p, h, energy = plain.step(x, clock)
        looked, answer = ours.predict(x), ours(x)
        assert torch.equal(looked, answer)
        torch.testing.assert_close(answer.logits.softmax(1), p, rtol=0, atol=1e-8)
        torch.testing.assert_close(-answer.logits.logsumexp(1), energy, rtol=0, atol=1e-8)
        torch.testing.assert_close(answer.score, energy if score == "energy" else h, rtol=0, atol=1e-8)
        expected = p.log() - energy[:, None]
        torch.testing.assert_close(answer.logits, expected, rtol=0, atol=1e-8)
        same_memory(ours.memory, plain.bank)
    assert min(plain.bank.evicted, *plain.refused.values()) > 0, plain.refused
    assert min(plain.sizes) < max(plain.sizes) == 24  # the memory fills, and is full
    assert min((p - q).abs().max() for p, q in zip(ours._adapted, norms_of(net(norm)), strict=True)) > 1e-3


@pytest.mark.parametrize("count", ["update", "admission"])
@pytest.mark.parametrize(("classes", "capacity", "decay"), [(3, 8, 0.9), (7, 16, 0.0), (40, 16, 0.99)])
def test_memory_equals_the_sequential_list(classes: int, capacity: int, decay: float, count: str) -> None:
    rng = np.random.default_rng(classes)
    ours, plain = RBM(classes, capacity, decay, count), Bank(classes, capacity, decay, count)
    for _ in range(40):
        n = int(rng.integers(0, 20))
        x = torch.from_numpy(rng.random((n, 2)))
        label = torch.from_numpy(np.minimum(rng.geometric(0.4, n) - 1, classes - 1))
        ours.add(x, label)
        for row in range(n):
            plain.add(x[row], int(label[row]))
        if n % 3:  # updates follow only some of the batches
            ours.recount()
            plain.learned()
        same_memory(ours, plain)
    assert plain.evicted > 0


def test_the_count_of_two_updates_by_hand() -> None:
    """Capacity 4 with labels 0, 0, 1, then 1, 1, 2: the third admission evicts by the count of the first update."""
    by_update, by_admission = RBM(3, 4, 0.5), RBM(3, 4, 0.5, "admission")
    x = torch.arange(6.0)[:, None]
    for bank in (by_update, by_admission):
        bank.add(x[:3], torch.tensor([0, 0, 1]))
        bank.recount()
    assert by_update.places.tolist() == [1.0, 0.5, 0.0]  # half of 2, 1, 0
    assert by_admission.places.tolist() == [
        1.25,
        0.0,
        0.0,
    ]  # before the first 0, the second 0 and the 1: 0, 0.5, 1.25
    for bank in (by_update, by_admission):
        bank.add(x[3:], torch.tensor([1, 1, 2]))
        bank.recount()
    assert sorted(by_update.held()[:, 0].tolist()) == [2.0, 3.0, 4.0, 5.0]  # both of class 0 left
    assert by_update.places.tolist() == [0.5, 1.75, 0.5]
    assert sorted(by_admission.held()[:, 0].tolist()) == [1.0, 3.0, 4.0, 5.0]  # one of 0, then one of 1


@pytest.mark.parametrize("count", ["update", "admission"])
def test_memory_becomes_balanced(count: str) -> None:
    bank, rng, held = RBM(4, 32, count=count), np.random.default_rng(0), []
    for _ in range(50):
        label = torch.from_numpy(rng.choice(4, 20, p=[0.7, 0.1, 0.1, 0.1]))
        bank.add(torch.rand(20, 2), label)
        bank.recount()
        held.append(np.bincount(bank.label[bank.label >= 0], minlength=4))
    assert np.mean(held[10:], axis=0).min() >= 5  # a tenth of the stream would be 3 places


def test_self_weighted_entropy_in_numpy() -> None:
    z = np.random.default_rng(0).normal(size=(6, 5)) * 3
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    h = -(p * np.log(p)).sum(1)
    w = 6 / np.exp(h) / (1 / np.exp(h)).sum()
    np.testing.assert_allclose(self_weighted_entropy(torch.from_numpy(z)), (w * h).mean(), atol=1e-12)
    h = -(p * np.log(p + 1e-3)).sum(1)
    w = 64 / np.exp(h) / (1 / np.exp(h)).sum()
    got = self_weighted_entropy(torch.from_numpy(z), 64, epsilon=1e-3)
    np.testing.assert_allclose(got, (w * h).mean(), atol=1e-12)


def test_weights_carry_gradients() -> None:
    z = torch.randn(6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(self_weighted_entropy, z)


def test_chunks_do_not_change_the_numbers() -> None:
    one, two = (
        STAMP(net(), CLASSES, views=4, alpha=0.9, augment=jitter, options=STAMPOptions(chunk=c))
        for c in (1, 2)
    )
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
def test_state_is_enough_and_reset_restores_the_initial_state(norm: str) -> None:
    data = stream([10, 3, 1, 25, 8])
    a, dirty = (
        STAMP(net(norm), CLASSES, views=2, alpha=0.9, options=STAMPOptions(capacity=8), period=4)
        for _ in range(2)
    )
    born = state_hash(a)
    a(data[0]), a(data[1]), dirty(data[3])
    dirty.load_state_dict(a.state_dict())
    for x in data[2:]:
        assert torch.equal(a(x), dirty(x))
    assert state_hash(a) == state_hash(dirty)
    a.reset()
    assert state_hash(a) == born


@pytest.mark.parametrize(
    ("views", "options", "message"),
    [
        (0, {}, "views is at least 1, got 0"),
        (32, {"chunk": 5}, "a chunk that divides it, got views=32, chunk=5"),
        (32, {"score": "margin"}, "expected score"),
        (32, {"count": "batch"}, "expected count"),
        (32, {"normalise": "64"}, "expected normalise"),
    ],
)
def test_refuses_bad_arguments(views: int, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        STAMP(net(), CLASSES, views=views, options=STAMPOptions(**options))


def test_half_precision_keeps_its_form() -> None:
    a = STAMP(net().bfloat16(), CLASSES, views=2, alpha=1.1)
    y = a(batch(20, 0)[0].bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.updated
    assert y.valid.all()
