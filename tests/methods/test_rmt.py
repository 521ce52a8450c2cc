"""RMT against a plain loop of the published behaviour, its contrastive loss against numpy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from small_world import CLASSES, batch, by_batch, jitter, net, stream
from testtime.adapter import state_hash
from testtime.methods.rmt import RMT, RMTOptions, attract, symmetric
from testtime.parts import generator, identity, sgd
from testtime.parts.randomness import epochs
from testtime.wrap import ResetEvery


def labelled() -> list[tuple[Tensor, Tensor]]:
    """Source batches of unequal size with labels, a few of them other than what the model predicts."""
    batches = [batch(n, 900 + i) for i, n in enumerate((20, 20, 17))]
    return [(x, torch.where(torch.arange(len(y)) % 9 == 0, (y + 1) % CLASSES, y)) for x, y in batches]


def source() -> list[Tensor]:
    return [batch(20, 900 + i)[0] for i in range(3)]


def sce(z: Tensor, t: Tensor) -> Tensor:
    return -0.5 * (t.softmax(1) * z.log_softmax(1) + z.softmax(1) * t.log_softmax(1)).sum(1)


SIZES = [12, 5, 8, 1, 8, 6, 3, 9, 4, 7, 2, 5]


class Published:
    """The published step with whole models and one anchor at a time; from true labels where there are any."""

    def __init__(
        self, ours: RMT, lr: float, kept: int, momentum: float, labels: list[Tensor] | None = None
    ) -> None:
        images = source() if labels is None else [x for x, _ in labelled()]
        self.student, self.teacher = by_batch(net()), by_batch(net())
        self.projector = copy.deepcopy(ours.model.get_submodule("projector"))
        self.student.requires_grad_(True), self.projector.requires_grad_(True)
        self.optimizer = torch.optim.SGD(
            [*self.student.parameters(), *self.projector.parameters()], lr, momentum=momentum
        )
        features, predictions = [], []
        with torch.no_grad():
            for x in images:
                z = self.student[:-1](x)
                features.append(z)
                predictions.append(self.student[-1](z).argmax(1))
        f, y, every = torch.cat(features), torch.cat(labels or predictions), torch.cat(images)
        self.loader = list(zip(images, labels or predictions, strict=True))
        self.prototypes = torch.stack([f[y == c].mean(0) for c in range(CLASSES)])
        keep = torch.randperm(len(every), generator=generator(3, 0, "replay"))[:kept]
        self.images, self.labels = every[keep], y[keep]
        for i, x in enumerate(images):
            self.optimizer.param_groups[0]["lr"] = lr * (i + 1) / 3
            self.learn(sce(self.student(x), self.teacher(x).detach()).mean())
        self.optimizer.param_groups[0]["lr"] = lr

    def learn(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for t, s in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                t.copy_(0.9 * t + 0.1 * s)

    def contrast(self, f: Tensor, aug: Tensor) -> Tensor:
        units, image = [], []
        for i in range(len(f)):
            nearest = max(
                range(CLASSES),
                key=lambda c: float(F.cosine_similarity(self.prototypes[c], f[i].detach(), dim=0)),
            )
            for v in (self.prototypes[nearest], f[i], aug[i]):
                p = self.projector(v)
                units.append(p / p.norm())
                image.append(i)
        terms = []
        for a in range(len(units)):
            others = [b for b in range(len(units)) if b != a]
            total = torch.stack([(units[a] @ units[b] / 0.1).exp() for b in others]).sum()
            terms += [
                -torch.log((units[a] @ units[b] / 0.1).exp() / total) for b in others if image[b] == image[a]
            ]
        return torch.stack(terms).mean()

    def step(self, x: Tensor, clock: int, loader: bool = False) -> Tensor:
        f = self.student[:-1](x)
        z, t = self.student[-1](f), self.teacher(x).detach()
        aug = self.student[:-1](jitter(x, generator(3, clock, "view")))
        answer = (z + t).detach() if loader else (z + t).detach() / 2
        loss = (0.5 * sce(z, t) + 0.5 * sce(self.student[-1](aug), t)).mean() + 0.7 * self.contrast(f, aug)
        drawn = epochs(len(self.images), len(x), 3, clock)
        images, labels = self.images[drawn], self.labels[drawn]
        if loader:  # the source's own batches, one after the other
            images, labels = self.loader[clock % len(self.loader)]
        self.learn(loss + 0.4 * F.cross_entropy(self.student(images), labels))
        return answer


def make(lambda_ce: float = 0.4, projection: int | None = 16, **options: object) -> RMT:
    return RMT(
        net(),
        sgd(0.05),
        lambda_cl=0.7,
        lambda_ce=lambda_ce,
        projection=projection,
        decay=0.9,
        augment=jitter,
        options=RMTOptions(**{"replay": 40} | options),
        seed=3,
    )


def test_equals_the_published_loop() -> None:
    ours = make()
    reference = Published(ours, 0.05, 40, 0.9)
    ours.prepare(source())
    for clock, x in enumerate(stream(SIZES)):
        expected, looked = reference.step(x, clock), ours.predict(x)
        y = ours(x)
        assert torch.equal(y.logits, looked.logits)
        np.testing.assert_allclose(y.logits.numpy(), expected.numpy(), rtol=0, atol=1e-9)
    moved = [
        float((p - q).detach().abs().max())
        for p, q in zip(ours.teacher.student, net().parameters(), strict=True)
    ]
    assert max(moved) > 1e-2


def test_labels_replay_order_and_sum_of_the_published_code() -> None:
    """With all three it follows the loop that has them, which differs from the defaults."""
    ours = make(replay=100, shuffle=False, ensemble="sum")
    reference = Published(ours, 0.05, 57, 0.9, [y for _, y in labelled()])
    ours.prepare(iter(labelled()))
    plain = make(replay=100)
    plain.prepare([x for x, _ in labelled()])
    for clock, x in enumerate(stream(SIZES)):
        expected, looked = reference.step(x, clock, loader=True), ours.predict(x)
        y, other = ours(x), plain(x)
        assert torch.equal(y.logits, looked.logits)
        np.testing.assert_allclose(y.logits.numpy(), expected.numpy(), rtol=0, atol=1e-9)
    assert (y.logits / 2 - other.logits).abs().max() > 1e-2


def test_a_wrapper_passes_the_labels_on() -> None:
    ours = make(replay=100)
    wrapped = ResetEvery(ours, 5)
    assert ours.labelled_source
    assert wrapped.labelled_source
    wrapped.prepare(labelled())
    labels = torch.cat([y for _, y in labelled()])
    assert ours.of_source.label.bincount().equal(labels.bincount())


def test_the_first_images_are_held_in_the_order_of_prepare() -> None:
    ours = make(replay=30, shuffle=False)
    ours.prepare(labelled())
    assert torch.equal(ours.of_source.images, torch.cat([x for x, _ in labelled()])[:30])
    assert torch.equal(ours.of_source.label, torch.cat([y for _, y in labelled()])[:30])
    assert ours.of_source.batch.tolist() == [0] * 20 + [1] * 10


def test_the_contrastive_loss_in_numpy() -> None:
    rng = np.random.default_rng(0)
    views = rng.normal(size=(5, 3, 7))
    u = (views / np.linalg.norm(views, axis=2, keepdims=True)).reshape(15, 7)
    e = np.exp(u @ u.T / 0.1) * (1 - np.eye(15))
    terms = [
        np.log(e[a, b] / e[a].sum()) for a in range(15) for b in range(15) if a != b and a // 3 == b // 3
    ]
    np.testing.assert_allclose(attract(torch.from_numpy(views), 0.1).item(), -np.mean(terms), atol=1e-12)


def test_prototypes_are_class_means_and_a_class_without_images_is_no_ones() -> None:
    ours = make(warm_up=0)
    of_source = ours.of_source
    z = torch.tensor([[1.0, 0.0], [0.8, 0.2], [0.0, 2.0]])
    of_source.learn(torch.tensor([0, 0, 2]), 3, z)
    np.testing.assert_allclose(of_source.prototypes[[0, 2]].numpy(), [[0.9, 0.1], [0, 2]], atol=1e-6)
    assert of_source.met.tolist() == [2, 0, 1]
    assert (
        of_source.nearest(torch.tensor([[5.0, 1], [0.1, 9]])).tolist()
        == of_source.prototypes[[0, 2]].tolist()
    )


def test_without_warm_up_nothing_moves_before_the_first_batch() -> None:
    ours, x = make(warm_up=0), stream([12])[0]
    ours.prepare(source())
    np.testing.assert_allclose(ours.predict(x).numpy(), by_batch(net())(x).detach().numpy(), atol=1e-12)


def test_preparing_again_is_preparing_once() -> None:
    ours, x = make(), stream([12])[0]
    ours.prepare(source())
    once = ours.state_dict()
    ours(x)
    ours.prepare(source())
    for name, value in ours.state_dict().items():
        torch.testing.assert_close(value, once[name], rtol=0, atol=1e-12, msg=name)


def test_a_prepare_that_failed_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second batch of the warm-up, at two thirds of the rate, has no finite loss."""
    ours, other, first = make(), make(), state_hash(make())
    with monkeypatch.context() as broken:
        losses = iter([1.0, torch.nan])
        broken.setattr("testtime.methods.rmt.symmetric", lambda a, b: symmetric(a, b) * next(losses))
        with pytest.raises(ValueError, match="led RMT to a loss that is not finite"):
            ours.prepare(source())
    assert state_hash(ours) == first
    ours.prepare(source()), other.prepare(source())
    assert state_hash(ours) == state_hash(other) != first


def test_a_rate_that_does_not_fit_is_an_error_that_says_so() -> None:
    ours = RMT(net(), sgd(1e300), augment=jitter)
    with pytest.raises(ValueError, match="a learning rate of optimizer= that fits"):
        ours.prepare(source())


def test_no_replay_and_no_projection() -> None:
    ours, x = make(lambda_ce=0.0, projection=None), stream([12])[0]
    ours.prepare(source())
    assert len(ours.of_source.images) == 0
    assert ours.cost == (3, 2)
    assert ours(x).updated


def test_says_what_it_expects() -> None:
    with pytest.raises(ValueError, match="at least 1, got 0; lambda_ce=0"):
        RMT(net(), options=RMTOptions(replay=0))
    with pytest.raises(RuntimeError, match=r"call adapter\.prepare\(batches\)"):
        RMT(net())(stream([4])[0])
    with pytest.raises(ValueError, match="ensemble is 'mean' or 'sum', got 'max'"):
        RMT(net(), options=RMTOptions(ensemble="max"))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="labels .* as a tensor of integers, got torch.float32"):
        RMT(net()).prepare([(source()[0], torch.zeros(20))])
    with pytest.raises(ValueError, match="labels from 0 to 3, .* got labels from -1 to 0"):
        RMT(net()).prepare([(source()[0], torch.arange(20) % 2 - 1)])
    with pytest.raises(ValueError, match="finite source images"):
        RMT(net(), augment=identity).prepare([source()[0] * torch.nan])
