"""CoTTA against a plain loop of the published behaviour, and its equations against numpy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_world import batch, by_batch, jitter, net, stream
from testtime.adapter import state_hash
from testtime.methods import CoTTA
from testtime.parts import adam, generator, identity, sgd


class Published:
    """The published step, written anew: three whole models, all views always, restoration by a loop."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: type,
        lr: float,
        views: int,
        threshold: float,
        p: float,
        mirror: bool,
    ):
        self.student, self.teacher, self.anchor = (by_batch(copy.deepcopy(model)) for _ in range(3))
        for m in (self.teacher, self.anchor):
            m.requires_grad_(False)
        self.student.requires_grad_(True)
        self.source = {k: v.detach().clone() for k, v in self.student.named_parameters()}
        self.optimizer = optimizer(self.student.parameters(), lr)
        self.views, self.threshold, self.p, self.mirror, self.used = views, threshold, p, mirror, []

    def step(self, x: Tensor, clock: int) -> Tensor:
        z = self.student(x)
        confident = self.anchor(x).softmax(1).max(1)[0].mean()
        plain = self.teacher(x)
        seen = [self.teacher(jitter(x, generator(3, clock, f"view {i}"))) for i in range(self.views)]
        self.used.append(bool(confident < self.threshold))
        answer = torch.stack(seen).mean(0) if self.used[-1] else plain
        loss = -(answer.softmax(1) * z.log_softmax(1)).sum(1)
        if self.mirror:
            loss = 0.5 * loss - 0.5 * (z.softmax(1) * answer.log_softmax(1)).sum(1)
        self.optimizer.zero_grad()
        loss.mean().backward()
        self.optimizer.step()
        with torch.no_grad():
            for t, s in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                t.copy_(0.99 * t + 0.01 * s)
            draws = torch.rand(
                sum(v.numel() for v in self.source.values()), generator=generator(3, clock, "restoration")
            )
            first = 0
            for name, s in self.student.named_parameters():
                mask = (draws[first : first + s.numel()].view_as(s) < self.p).to(s)
                first += s.numel()
                s.copy_(self.source[name] * mask + s * (1 - mask))
        return answer


@pytest.mark.parametrize(
    ("mirror", "factory", "optimizer", "lr"),
    [
        (False, adam, torch.optim.Adam, 1e-2),
        (True, sgd, lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), 0.05),
    ],
)
def test_equals_the_published_loop(mirror: bool, factory: type, optimizer: type, lr: float) -> None:
    # The most drifted come first: with the first views student and teacher part, and gradients are not mere noise.
    threshold, data = 0.72, stream([16] * 20)
    data = data[10:] + data[:10]
    reference = Published(net(), optimizer, lr, views=4, threshold=threshold, p=0.05, mirror=mirror)
    ours = CoTTA(
        net(),
        factory(lr),
        views=4,
        threshold=threshold,
        decay=0.99,
        restoration=0.05,
        symmetric=mirror,
        augment=jitter,
        seed=3,
    )
    for clock, x in enumerate(data):
        expected, looked = reference.step(x, clock), ours.predict(x)
        answer = ours(x)
        assert torch.equal(looked, answer)  # the teacher answers before it learns
        torch.testing.assert_close(answer.logits, expected, rtol=0, atol=1e-8)
    assert 0 < sum(reference.used) < 20  # both branches
    moved = [(a - b).abs().max() for a, b in zip(ours._adapted, ours.origin, strict=True)]
    assert sorted(moved)[1] > 1e-3  # but for the bias before a BatchNorm


def test_chunks_do_not_change_the_numbers() -> None:
    one, three = (CoTTA(net(), views=6, threshold=1.0, augment=jitter, chunk=c) for c in (1, 3))
    for x in stream([7] * 4):
        torch.testing.assert_close(one(x).logits, three(x).logits, rtol=0, atol=1e-10)


def test_restoration_returns_the_drawn_share_to_the_source() -> None:
    x, _ = batch(8, 0, drift=1)
    kept, some = (CoTTA(net(), adam(1e-2), views=2, augment=identity, restoration=p) for p in (0.0, 0.3))
    kept(x), some(x)
    theta, back = (np.concatenate([p.detach().numpy().ravel() for p in a._adapted]) for a in (kept, some))
    source = np.concatenate([p.detach().numpy().ravel() for p in kept.origin])
    mask = torch.rand(len(source), generator=generator(0, 0, "restoration")).numpy() < 0.3
    np.testing.assert_array_equal(back, np.where(mask, source, theta))
    assert 0.2 < mask.mean() < 0.4


def test_teacher_averages_the_student_before_it_is_restored() -> None:
    x, _ = batch(8, 0, drift=1)
    a = CoTTA(net(), adam(1e-2), views=2, augment=identity, restoration=0.0, decay=0.9)
    a(x)
    for student, source, teacher in zip(a._adapted, a.origin, a.teacher.average, strict=True):
        expected = 0.9 * source.detach().numpy() + 0.1 * student.detach().numpy()
        np.testing.assert_allclose(teacher.detach().numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("norm", ["layer", "group"])
def test_adapts_models_without_batch_norm(norm: str) -> None:
    model = net(norm)
    a = CoTTA(model, adam(1e-2), views=2)
    before = state_hash(a)
    y = a(batch(8, 0)[0])
    assert y.updated
    assert y.valid.all()
    assert state_hash(a) != before


def test_the_anchor_costs_no_memory_and_never_moves() -> None:
    model = net()
    a = CoTTA(model, adam(1e-2), views=2)
    assert {p.data_ptr() for p in a.anchor.parameters()} == {p.data_ptr() for p in model.parameters()}
    source = [p.clone() for p in model.parameters()]
    for x in stream([8] * 3):
        a(x)
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), source, strict=True))


def test_state_is_enough_and_reset_restores_the_initial_state() -> None:
    data = stream([8, 3, 1, 8])
    a, dirty = CoTTA(net(), views=2, seed=5), CoTTA(net(), views=2, seed=5)
    born = state_hash(a)
    a(data[0]), a(data[1]), dirty(data[3])
    dirty.load_state_dict(a.state_dict())
    for x in data[2:]:
        assert torch.equal(a(x), dirty(x))
    assert state_hash(a) == state_hash(dirty)
    a.reset()
    assert state_hash(a) == born


def test_null_step_answers_as_the_source_under_batch_statistics() -> None:
    x, _ = batch(8, 2)
    a = CoTTA(net(), sgd(0.0), views=3, augment=identity)
    expected = by_batch(net())(x)
    torch.testing.assert_close(a(x).logits, expected, rtol=0, atol=1e-12)


def test_refuses_a_chunk_that_does_not_divide_the_views() -> None:
    with pytest.raises(ValueError, match="chunk that divides"):
        CoTTA(net(), views=32, chunk=5)


def test_half_precision_keeps_its_form() -> None:
    a = CoTTA(net().bfloat16(), views=2, threshold=1.0)
    y = a(batch(8, 0)[0].bfloat16())
    assert y.dtype == torch.bfloat16
    assert y.updated
    assert y.valid.all()
