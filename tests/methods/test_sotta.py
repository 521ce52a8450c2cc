"""SoTTA against a plain loop of the published behaviour, its memory against lists, its equations against numpy."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_world import CLASSES, batch, net, norms_of, stream
from testtime.adapter import state_hash
from testtime.methods import SoTTA
from testtime.methods.sotta import HUS, SoTTAOptions, mean_entropy, smoothed_entropy
from testtime.parts import adam, generator, sgd


class Bank:
    """The memory as lists of images by class, one image at a time."""

    def __init__(self, classes: int, capacity: int) -> None:
        self.lists: list[list[Tensor]] = [[] for _ in range(classes)]
        self.capacity = capacity
        self.events = {"free": 0, "own": 0, "other": 0}

    def add(self, image: Tensor, c: int, which: float, who: float) -> None:
        sizes = [len(kept) for kept in self.lists]
        if sum(sizes) >= self.capacity:
            largest = [k for k, n in enumerate(sizes) if n == max(sizes)]
            self.events["own" if c in largest else "other"] += 1
            leaves = self.lists[c if c in largest else largest[int(which * len(largest))]]
            leaves.pop(int(who * len(leaves)))
        else:
            self.events["free"] += 1
        self.lists[c].append(image)

    def held(self) -> list[Tensor]:
        return [image for kept in self.lists for image in kept]


class Published:
    """One image at a time; an update whenever ``capacity`` have been seen."""

    def __init__(
        self, model: nn.Module, capacity: int, threshold: float, lr: float, rho: float = 0.05
    ) -> None:
        self.model, self.threshold, self.rho, self.seen = model.requires_grad_(False), threshold, rho, 0
        self.moving = [p.requires_grad_(True) for p in norms_of(model)]
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.momentum = 0.2
        self.optimizer, self.bank, self.refused = (
            torch.optim.Adam(self.moving, lr),
            Bank(CLASSES, capacity),
            0,
        )

    def step(self, x: Tensor, clock: int) -> Tensor:
        draws = torch.rand(len(x), 2, dtype=torch.float64, generator=generator(0, clock, "eviction")).tolist()
        answers = []
        for i in range(len(x)):
            self.model.eval()
            with torch.no_grad():
                z = self.model(x[i : i + 1])[0]
            answers.append(z)
            p = z.softmax(0)
            if p.max() < self.threshold:
                self.refused += 1
            else:
                self.bank.add(x[i], int(p.argmax()), *draws[i])
            self.seen += 1
            if self.seen % self.bank.capacity == 0 and self.bank.held():
                self.update(torch.stack(self.bank.held()))
        return torch.stack(answers)

    def loss(self, images: Tensor) -> Tensor:
        p = self.model(images).softmax(1)
        return (-p * torch.log(p + 1e-6)).sum(1).mean()

    def update(self, images: Tensor) -> None:
        self.model.train()
        self.optimizer.zero_grad()
        self.loss(images).backward()
        norm = torch.norm(torch.stack([p.grad.norm() for p in self.moving]))
        old = [p.detach().clone() for p in self.moving]
        with torch.no_grad():
            for p in self.moving:
                p.add_(p.grad * self.rho / (norm + 1e-12))
        self.optimizer.zero_grad()
        self.loss(images).backward()
        with torch.no_grad():
            for p, q in zip(self.moving, old, strict=True):
                p.copy_(q)
        self.optimizer.step()


@pytest.mark.parametrize(("size", "norm"), [(13, "batch"), (40, "batch"), (16, "layer")])
def test_equals_the_published_loop(size: int, norm: str) -> None:
    """Batches that complete the memory now and then, and batches that complete it two or three times."""
    reference = Published(net(norm), capacity=16, threshold=0.6, lr=1e-2)
    ours = SoTTA(
        net(norm),
        CLASSES,
        adam(1e-2),
        capacity=16,
        frequency=16,
        threshold=0.6,
        loss=partial(smoothed_entropy, over_classes="sum"),
        options=SoTTAOptions(observe_twice=True),
    )
    for clock, x in enumerate(stream([size] * 20)):
        torch.testing.assert_close(ours(x).logits, reference.step(x, clock), rtol=0, atol=1e-8)
    assert min(*reference.bank.events.values(), reference.refused) > 0, reference.bank.events
    moved = [(p - q).abs().max() for p, q in zip(ours._adapted, norms_of(net(norm)), strict=True)]
    assert min(moved) > 1e-3


def test_statistics_advance_once_per_memory() -> None:
    """By default the running statistics are those of the first forward, which no perturbation has touched."""
    x = stream([16])[0]
    ours = SoTTA(net(), CLASSES, sgd(0.0), capacity=16, frequency=16, threshold=0.0)
    ours(x)
    model = net().train()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.momentum = 0.2
    model(ours.memory.held())
    means = [b for name, b in ours.model.named_buffers() if name.endswith((".mean", ".var"))]
    expected = [
        b for m in model.modules() if isinstance(m, nn.BatchNorm2d) for b in (m.running_mean, m.running_var)
    ]
    for a, b in zip(means, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize(("classes", "capacity"), [(3, 8), (7, 16), (40, 16)])
def test_memory_equals_the_sequential_lists(classes: int, capacity: int) -> None:
    rng = np.random.default_rng(classes)
    ours, lists = HUS(classes, capacity), Bank(classes, capacity)
    for _ in range(40):
        n = int(rng.integers(1, 20))
        x, draws = torch.from_numpy(rng.random((n, 2))), torch.from_numpy(rng.random((n, 2)))
        label = torch.from_numpy(np.minimum(rng.geometric(0.4, n) - 1, classes - 1))
        reliable = torch.from_numpy(rng.random(n) < 0.7)
        ours.add(x, label, reliable, draws)
        for row in range(n):
            if reliable[row]:
                lists.add(x[row], int(label[row]), *draws[row].tolist())
        held = lists.held()
        expected = torch.stack(held) if held else torch.zeros(0, 2, dtype=torch.float64)
        images = ours.held()
        assert torch.equal(images[images[:, 0].argsort()], expected[expected[:, 0].argsort()])
    assert min(lists.events.values()) > 0, lists.events


def test_losses_in_numpy() -> None:
    z = np.random.default_rng(0).normal(size=(5, 7))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    np.testing.assert_allclose(mean_entropy(torch.from_numpy(z)), -(p * np.log(p)).sum(1).mean(), atol=1e-12)
    smooth = -p * np.log(p + 1e-6)
    np.testing.assert_allclose(smoothed_entropy(torch.from_numpy(z)), smooth.mean(), atol=1e-12)
    np.testing.assert_allclose(smoothed_entropy(torch.from_numpy(z), "sum"), smooth.sum() / 5, atol=1e-12)
    with pytest.raises(ValueError, match='"mean" or "sum"'):
        smoothed_entropy(torch.from_numpy(z), "none")  # type: ignore[arg-type]


def test_nothing_confident_means_no_update() -> None:
    a = SoTTA(net(), CLASSES, capacity=8, frequency=8, threshold=1.1)
    x, _ = batch(20, 0)
    for _ in range(3):
        y = a(x)
        assert not y.updated
        assert not y.selected["reliable"].any()
    torch.testing.assert_close(y.logits, net()(x), rtol=0, atol=1e-12)


def test_top_layers_stay() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer1, self.layer4 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.fc = nn.Linear(3, CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.layer4(self.layer1(x)).mean((2, 3)))

    a = SoTTA(Named(), CLASSES)
    assert len(a._adapted) == 2
    assert len(SoTTA(Named(), CLASSES, options=SoTTAOptions(skip=()))._adapted) == 4
    with pytest.raises(ValueError, match="leaves none"):
        SoTTA(Named(), CLASSES, options=SoTTAOptions(skip=("layer1", "layer4")))


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_state_is_enough_and_reset_restores_the_initial_state(norm: str) -> None:
    data = stream([10, 3, 1, 25, 8])
    a, dirty = (SoTTA(net(norm), CLASSES, capacity=8, frequency=8, threshold=0.5) for _ in range(2))
    born = state_hash(a)
    a(data[0]), a(data[1]), dirty(data[3])
    dirty.load_state_dict(a.state_dict())
    for x in data[2:]:
        assert torch.equal(a(x), dirty(x))
    assert state_hash(a) == state_hash(dirty)
    a.reset()
    assert state_hash(a) == born


def test_half_precision_keeps_its_form() -> None:
    a = SoTTA(net().bfloat16(), CLASSES, capacity=8, frequency=8, threshold=0.0)
    y = a(batch(20, 0)[0].bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.updated
    assert y.valid.all()
