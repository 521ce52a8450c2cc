"""AdaContrast against a plain loop of the published behaviour, its contrast against numpy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_world import CLASSES, jitter, mirrored, net, stream
from testtime.adapter import state_hash
from testtime.methods.adacontrast import AdaContrast, AdaContrastOptions, class_contrast
from testtime.parts import adam, generator, sgd


def weakly(x: Tensor, rng: torch.Generator) -> Tensor:
    return (x + 0.02 * torch.randn(x.shape, generator=rng, dtype=torch.float64)).clamp(0, 1)


class Published:
    """Two whole models, lists of remembered vectors, one image at a time."""

    def __init__(self, model: nn.Module, begin: int, capacity: int) -> None:
        self.student, self.teacher = copy.deepcopy(model), copy.deepcopy(model)
        self.student.requires_grad_(True)
        self.optimizer = torch.optim.SGD(self.student.parameters(), 0.02, momentum=0.9)
        self.begin, self.capacity, self.seen = begin, capacity, 0
        self.keys: list[tuple[Tensor, int]] = []
        self.bank: list[tuple[Tensor, Tensor]] = []
        self.overruled = 0

    @staticmethod
    def train_mode(model: nn.Module, x: Tensor, momentum: float = 0.0) -> tuple[Tensor, Tensor]:
        """By the statistics of the batch; the running ones follow by ``momentum``."""
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.momentum = momentum
        model.train()
        z = model[:-1](x)
        y = model[-1](z)
        model.eval()
        return y, z / z.norm(dim=1, keepdim=True)

    def step(self, x: Tensor, clock: int) -> Tensor:
        weak = weakly(x, generator(3, clock, "weak"))
        with torch.no_grad():
            observer = copy.deepcopy(self.student)
            self.train_mode(observer, weak, momentum=0.1)
            moved = dict(observer.named_buffers())
            y, z = self.train_mode(self.student, weak)
            own = y.argmax(1).tolist()
            label = []
            for i in range(len(x)):
                ranked = sorted(range(len(self.bank)), key=lambda j: -float(z[i] @ self.bank[j][0]))[:4]
                mean = sum(self.bank[j][1] for j in ranked) if self.seen >= self.begin else y[i]
                label.append(int(mean.argmax()))
            self.overruled += sum(a != b for a, b in zip(own, label, strict=True))
            for t, s in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                t.copy_(0.9 * t + 0.1 * s)
            _, k = self.train_mode(self.teacher, jitter(x, generator(3, clock, "key")))
        y, q = self.train_mode(self.student, jitter(x, generator(3, clock, "query")))
        terms = []
        for i in range(len(x)):
            up = (q[i] @ k[i] / 0.07).exp()
            down = [(q[i] @ key / 0.07).exp() for key, c in self.keys if c != label[i]]
            terms.append(-y[i].log_softmax(0)[label[i]] - 0.6 * torch.log(up / (up + sum(down))))
        p = y.softmax(1).mean(0)
        loss = torch.stack(terms).mean() + 0.8 * (p * p.log()).sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            y, z = self.train_mode(self.teacher, weak)
            self.keys = [*self.keys, *zip(k, label, strict=True)][-self.capacity :]
            self.bank = [*self.bank, *zip(z, y.softmax(1), strict=True)][-self.capacity :]
            self.seen += len(x)
            answer = self.student(x)
            for name, value in moved.items():
                self.student.get_buffer(name).copy_(value)
        return answer


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_equals_the_published_loop(norm: str) -> None:
    reference = Published(net(norm), 20, 30)
    ours = AdaContrast(
        net(norm),
        sgd(0.02),
        neighbours=4,
        options=AdaContrastOptions(0.6, 0.8, begin=20, capacity=30, full_batch=None),
        decay=0.9,
        weak=weakly,
        strong=jitter,
        seed=3,
    )
    sizes = [12, 5, 12, 9, 33, 2, 8, 4, 12, 6]
    for clock, x in enumerate(stream(sizes)):
        expected = reference.step(x, clock)
        np.testing.assert_allclose(ours(x).numpy(), expected.numpy(), rtol=0, atol=1e-9)
    assert reference.overruled > 0
    assert int(ours.memory.met) == sum(sizes)
    held = {tuple(np.round(k.numpy(), 6)) for k in ours.memory.keys}
    assert held == {tuple(np.round(k.numpy(), 6)) for k, _ in reference.keys}


def test_the_contrast_in_numpy() -> None:
    rng = np.random.default_rng(0)
    q, k, keys = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in rng.normal(size=(3, 6, 4)))
    label, labels = np.array([0, 1, 2, 0, 1, 3]), np.array([0, 0, 1, 1, 2, 2])
    terms = []
    for i in range(6):
        up = np.exp(q[i] @ k[i] / 0.07)
        terms.append(-np.log(up / (up + np.exp(keys[labels != label[i]] @ q[i] / 0.07).sum())))
    ours = class_contrast(*map(torch.from_numpy, (q, k, label, keys, labels)), temperature=0.07)
    np.testing.assert_allclose(ours.item(), np.mean(terms), rtol=1e-12)
    nothing = class_contrast(*map(torch.from_numpy, (q, k, label, keys[:0], labels[:0])), temperature=0.07)
    assert nothing.item() == 0


def test_votes_only_after_enough_images() -> None:
    """A memory of one certain opinion labels everything so, once it may."""
    x, _ = stream([12, 12])
    for begin, bound in ((13, False), (12, True)):
        a = AdaContrast(
            net(),
            adam(0.05),
            options=AdaContrastOptions(0, 0, begin, 16, full_batch=None),
            weak=mirrored,
            strong=mirrored,
        )
        a(x)
        a.memory.probability = torch.eye(CLASSES)[3].expand(16, CLASSES).double().clone()
        for _ in range(12):
            a.memory.met.fill_(12)
            a(x)
            a.memory.probability = torch.eye(CLASSES)[3].expand(16, CLASSES).double().clone()
        assert bool((a.predict(x).argmax(1) == 3).all()) == bound


@pytest.mark.parametrize(
    ("full_batch", "shares"),
    [(16, [4 / 16, 1, 8 / 16, 1, 1 / 16]), (None, [1, 1, 1, 1, 1]), (128, [1 / 32, 1 / 8])],
)
def test_a_small_batch_moves_at_its_share_of_the_rate(full_batch: int | None, shares: list[float]) -> None:
    """SGD moves the weights by -lr min(1, n / full_batch) v, with v the momentum that its state shows."""
    options = AdaContrastOptions(full_batch=full_batch)
    a = AdaContrast(net(), sgd(0.5), weak=mirrored, strong=mirrored, options=options)
    before = a.state_dict()
    for x, share in zip(stream([4, 16, 8, 20, 1]), shares, strict=False):
        a(x)
        after = a.state_dict()
        moved = after["model.network.3.weight"] - before["model.network.3.weight"]
        velocity = after["optimizer.network.3.weight.momentum_buffer"]
        np.testing.assert_allclose(moved, -0.5 * share * velocity, rtol=0, atol=1e-12)
        assert moved.abs().max() > 1e-5
        before = after


def test_state_travels_and_the_memory_keeps_copies() -> None:
    x, y, z = stream([12, 7, 12])
    a, b = (
        AdaContrast(net(), options=AdaContrastOptions(begin=8, capacity=10)),
        AdaContrast(net(), options=AdaContrastOptions(begin=8, capacity=10)),
    )
    a(x), b(z)
    b.load_state_dict(a.state_dict())
    assert torch.equal(a(y).logits, b(y).logits)
    assert state_hash(a) == state_hash(b)
    np.testing.assert_allclose(a.memory.keys.norm(dim=1), 1)


def test_says_what_it_expects() -> None:
    with pytest.raises(ValueError, match="AdaContrast: neighbours is at least 1, got 0"):
        AdaContrast(net(), neighbours=0)
    with pytest.raises(ValueError, match="full_batch counts images and is at least 1, or None, got 0"):
        AdaContrastOptions(full_batch=0)
    with pytest.raises(ValueError, match=r"no torch\.nn\.Linear layer"):
        AdaContrast(nn.Conv2d(3, 3, 1))
