"""RoTTA against a plain loop of the published behaviour, its memory against lists, its equations against numpy."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_world import CLASSES, batch, jitter, mirrored, net, stream
from testtime.adapter import state_hash
from testtime.methods import RoTTA
from testtime.methods.rotta import CSTU, RoTTAOptions, timeliness
from testtime.parts import adam, identity


class Bank:
    """The memory as lists of [image, entropy, age] by class, one image at a time."""

    def __init__(self, classes: int, capacity: int, by_age: float = 1.0, by_doubt: float = 1.0) -> None:
        self.lists: list[list[list]] = [[] for _ in range(classes)]
        self.classes, self.capacity, self.by_age, self.by_doubt = classes, capacity, by_age, by_doubt
        self.events: dict[str, int] = {"free": 0, "majority": 0, "own": 0, "refused": 0}

    def score(self, age: int, doubt: float) -> float:
        return self.by_age / (1 + math.exp(-age / self.capacity)) + self.by_doubt * doubt / math.log(
            self.classes
        )

    def make_room(self, classes: list[int], score: float, event: str) -> bool:
        worst = None
        for c in classes:
            for i, (_, doubt, age) in enumerate(self.lists[c]):
                if worst is None or self.score(age, doubt) >= worst[0]:
                    worst = self.score(age, doubt), c, i
        assert worst is not None
        keep = worst[0] > score
        self.events[event if keep else "refused"] += 1
        if keep:
            self.lists[worst[1]].pop(worst[2])
        return keep

    def add(self, image: Tensor, c: int, doubt: float) -> None:
        score, sizes = self.score(0, doubt), [len(kept) for kept in self.lists]
        if sizes[c] >= self.capacity / self.classes:
            room = self.make_room([c], score, "own")
        elif sum(sizes) < self.capacity:
            room, self.events["free"] = True, self.events["free"] + 1
        else:
            room = self.make_room([k for k, n in enumerate(sizes) if n == max(sizes)], score, "majority")
        if room:
            self.lists[c].append([image, doubt, 0])
        for kept in self.lists:
            for item in kept:
                item[2] += 1

    def aged(self) -> tuple[Tensor, Tensor]:
        items = [item for kept in self.lists for item in kept]
        ages = torch.tensor([item[2] for item in items], dtype=torch.float64)
        return torch.stack([item[0] for item in items]), ages / self.capacity


class Robust(nn.Module):
    """RobustBN, written anew."""

    def __init__(self, layer: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = layer.weight, layer.bias, layer.eps
        self.mean, self.var = layer.running_mean.clone(), layer.running_var.clone()

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.mean, self.var
        if self.training:
            mean = 0.95 * mean + 0.05 * x.mean((0, 2, 3))
            var = 0.95 * var + 0.05 * x.var((0, 2, 3), unbiased=False)
            self.mean, self.var = mean.detach(), var.detach()
        shape = (1, -1, 1, 1)
        x = (x - mean.view(shape)) / (var.view(shape) + self.eps).sqrt()
        return x * self.weight.view(shape) + self.bias.view(shape)


class Published:
    def __init__(self, model: nn.Sequential, capacity: int, nu: float, lr: float) -> None:
        model.requires_grad_(False)
        for i, m in enumerate(model):
            if isinstance(m, nn.BatchNorm2d):
                model[i] = Robust(m)
        self.teacher, self.student = copy.deepcopy(model), model
        self.moving = [p for m in model if isinstance(m, Robust) for p in (m.weight, m.bias)]
        self.average = [p for m in self.teacher if isinstance(m, Robust) for p in (m.weight, m.bias)]
        for p in self.moving:
            p.requires_grad_(True)
        self.optimizer = torch.optim.Adam(self.moving, lr)
        self.bank, self.nu, self.seen, self.updates = Bank(CLASSES, capacity), nu, 0, 0

    def step(self, x: Tensor) -> Tensor:
        self.teacher.eval()
        with torch.no_grad():
            z = self.teacher(x)
            p = z.softmax(1)
            doubt = -(p * torch.log(p + 1e-6)).sum(1)
        for i in range(len(x)):
            self.bank.add(x[i], int(p[i].argmax()), float(doubt[i]))
            self.seen += 1
            if self.seen % self.bank.capacity == 0:
                self.update()
        return z

    def update(self) -> None:
        self.teacher.train(), self.student.train()
        images, ages = self.bank.aged()
        with torch.no_grad():
            target = self.teacher(images).softmax(1)
        log_p = self.student(0.8 * images.flip(3)).log_softmax(1)
        weight = torch.exp(-ages) / (1 + torch.exp(-ages))
        self.optimizer.zero_grad()
        (-(target * log_p).sum(1) * weight).mean().backward()
        self.optimizer.step()
        self.updates += 1
        with torch.no_grad():
            for a, p in zip(self.average, self.moving, strict=True):
                a.copy_((1 - self.nu) * a + self.nu * p)


@pytest.mark.parametrize("size", [13, 40])
def test_equals_the_published_loop(size: int) -> None:
    """Batches that complete the memory now and then, and batches that complete it two or three times; 18 places leave room for
    5 of one class and 4 of another."""
    reference = Published(net(), capacity=18, nu=0.05, lr=1e-2)
    ours = RoTTA(net(), CLASSES, adam(1e-2), capacity=18, frequency=18, decay=0.95, augment=mirrored)
    for x in stream([size] * 20):
        expected, looked = reference.step(x), ours.predict(x)
        answer = ours(x)
        assert torch.equal(looked, answer)
        torch.testing.assert_close(answer.logits, expected, rtol=0, atol=1e-8)
    assert reference.updates == 20 * size // 18
    assert min(reference.bank.events.values()) > 0, reference.bank.events
    student = [m for m in reference.student if isinstance(m, Robust)]
    for p, q in zip(
        (s for m in student for s in (m.mean, m.var)), moving_statistics(ours.model), strict=True
    ):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-10)
    teacher = [m for m in reference.teacher if isinstance(m, Robust)]
    for p, q in zip(
        (s for m in teacher for s in (m.mean, m.var)), moving_statistics(ours.teacher), strict=True
    ):
        torch.testing.assert_close(p, q, rtol=0, atol=1e-10)


def moving_statistics(model: nn.Module) -> list[Tensor]:
    return [b for name, b in model.named_buffers() if name.endswith((".mean", ".var"))]


def test_the_student_learns_the_augmented_memory() -> None:
    """With one image per class a view's draws meet the same image, whatever the order of the memory."""
    seen: list[Tensor] = []

    def watch(x: Tensor, rng: torch.Generator) -> Tensor:
        seen.append(x.clone())
        return jitter(x, rng)

    x = stream([16])[0]
    plain, strong = (
        RoTTA(net(), CLASSES, adam(1e-2), capacity=16, frequency=16, augment=a) for a in (identity, watch)
    )
    plain(x), strong(x)
    assert torch.equal(seen[0], strong.memory.aged()[0])
    assert not torch.equal(plain._adapted[0], strong._adapted[0])


@pytest.mark.parametrize(("classes", "capacity"), [(3, 8), (7, 16), (40, 16)])
@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.0, 1.0), (2.0, 0.5)])
def test_memory_equals_the_sequential_lists(
    classes: int, capacity: int, weights: tuple[float, float]
) -> None:
    """The same images, ages and entropies after every batch, ties included."""
    rng = np.random.default_rng(classes)
    ours, lists = CSTU(classes, capacity, *weights), Bank(classes, capacity, *weights)
    for step in range(40):
        n = int(rng.integers(1, 20))
        x = torch.from_numpy(rng.random((n, 2)))
        label = torch.from_numpy(np.minimum(rng.geometric(0.4, n) - 1, classes - 1))
        doubt = torch.from_numpy(rng.integers(0, 4, n) / 4 * math.log(classes))  # coarse: many ties
        ours.add(x, label, doubt)
        for row in range(n):
            lists.add(x[row], int(label[row]), float(doubt[row]))
        images, ages = ours.aged()
        expected, expected_ages = lists.aged()
        order, expected_order = ages.argsort(), expected_ages.argsort()
        assert torch.equal(images[order], expected[expected_order]), step
        assert torch.equal(ages[order], expected_ages[expected_order])
    assert min(v for k, v in lists.events.items() if k != "majority") > 0, lists.events
    assert int(ours.seen) > 300


def test_memory_keeps_copies() -> None:
    bank, x = CSTU(2, 4), torch.rand(4, 3)
    bank.add(x, torch.tensor([0, 1, 0, 1]), torch.zeros(4))
    before = bank.aged()[0].clone()
    x.zero_()
    assert torch.equal(bank.aged()[0], before)
    with pytest.raises(ValueError, match="the memory holds images"):
        bank.add(torch.rand(1, 5), torch.tensor([0]), torch.zeros(1))


def test_timeliness_and_the_loss_in_numpy() -> None:
    age = np.linspace(0, 5, 7)
    expected = np.exp(-age) / (1 + np.exp(-age))
    np.testing.assert_allclose(timeliness(torch.from_numpy(age)), expected, atol=1e-12)


def test_teacher_statistics_stay_at_the_source_unless_it_observes() -> None:
    x = stream([16])[0]
    still, moved = (
        RoTTA(
            net(),
            CLASSES,
            capacity=16,
            frequency=16,
            augment=identity,
            options=RoTTAOptions(teacher_observes=o),
        )
        for o in (False, True)
    )
    still(x), moved(x)
    source = [
        b for m in net().modules() if isinstance(m, nn.BatchNorm2d) for b in (m.running_mean, m.running_var)
    ]
    assert all(torch.equal(a, b) for a, b in zip(moving_statistics(still.teacher), source, strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(moving_statistics(moved.teacher), source, strict=True))


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_says_that_it_needs_batch_norm(norm: str) -> None:
    with pytest.raises(ValueError, match="RoTTA follows the world through the statistics of BatchNorm"):
        RoTTA(net(norm), CLASSES)


def test_state_is_enough_and_reset_restores_the_initial_state() -> None:
    data = stream([10, 3, 1, 25, 8])
    a, dirty = (RoTTA(net(), CLASSES, adam(1e-2), capacity=8, frequency=8) for _ in range(2))
    born = state_hash(a)
    a(data[0]), a(data[1]), dirty(data[3])
    dirty.load_state_dict(a.state_dict())
    for x in data[2:]:
        assert torch.equal(a(x), dirty(x))
    assert state_hash(a) == state_hash(dirty)
    a.reset()
    assert state_hash(a) == born


def test_half_precision_keeps_its_form() -> None:
    a = RoTTA(net().bfloat16(), CLASSES, capacity=8, frequency=8)
    y = a(batch(20, 0)[0].bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.updated
    assert y.valid.all()
