"""PETAL against a plain loop of the published behaviour, its prior and its restoration against numpy."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from small_world import batch, by_batch, jitter, net, stream
from testtime.adapter import state_hash
from testtime.methods.petal import PETAL, PETALOptions, quantile_of
from testtime.parts import adam, generator, identity, sgd
from testtime.source.petal import SwagDiagonal, swag_diagonal


def source() -> list[tuple[Tensor, Tensor]]:
    return [batch(20, 900 + i) for i in range(3)]


class Published:
    """The published step, written anew: three whole models, all views always, a sorted Fisher vector."""

    def __init__(
        self, swag: SwagDiagonal, threshold: float, alpha: float, share: float, chance: float | None = None
    ) -> None:
        self.chance = chance
        self.student, self.teacher, self.anchor = (by_batch(copy.deepcopy(swag.network)) for _ in range(3))
        self.student.requires_grad_(True)
        self.mean = copy.deepcopy(list(self.anchor.parameters()))
        self.optimizer = torch.optim.SGD(self.student.parameters(), 0.05, momentum=0.9)
        self.variance = swag.variance.split([p.numel() for p in self.mean])
        self.threshold, self.alpha, self.share, self.used, self.returned = threshold, alpha, share, [], 0

    def step(self, x: Tensor, clock: int) -> Tensor:
        z = self.student(x)
        confident = self.anchor(x).softmax(1).max(1)[0].mean()
        plain = self.teacher(x).detach()
        seen = [self.teacher(jitter(x, generator(3, clock, f"view {i}"))).detach() for i in range(4)]
        self.used.append(bool(confident < self.threshold))
        answer = torch.stack(seen).mean(0) if self.used[-1] else plain
        loss = -(answer.softmax(1) * z.log_softmax(1)).sum(1).mean()
        for p, m, v in zip(self.student.parameters(), self.mean, self.variance, strict=True):
            loss = loss + self.alpha * 0.5 * ((p - m) ** 2 / (v.view_as(p) + 1e-6)).sum()
        self.optimizer.zero_grad()
        loss.backward()
        fisher = [p.grad.clone() ** 2 for p in self.student.parameters()]
        self.optimizer.step()
        with torch.no_grad():
            for t, s in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
                t.copy_(0.99 * t + 0.01 * s)
            least = np.quantile(np.concatenate([f.numpy().ravel() for f in fisher]), self.share)
            rng, total = generator(3, clock, "restoration"), sum(p.numel() for p in self.mean)
            draws = torch.rand(total, generator=rng).split([p.numel() for p in self.mean])
            for p, m, f, u in zip(self.student.parameters(), self.mean, fisher, draws, strict=True):
                mask = (f < least if self.chance is None else (u < self.chance).view_as(p)).to(p)
                self.returned += int(mask.sum())
                p.copy_(m * mask + p * (1 - mask))
        return answer


@pytest.mark.parametrize("chance", [None, 0.1])
def test_equals_the_published_loop(chance: float | None) -> None:
    """The restoration by the Fisher information, and the paper's other one, by chance."""
    swag = swag_diagonal(net(), source(), title=None)
    data = stream([16] * 14)
    data = data[7:] + data[:7]
    reference = Published(swag, 0.72, 1e-5, 0.2, chance)
    settings = {"decay": 0.99, "alpha": 1e-5, "quantile": 0.2, "options": PETALOptions(chance)}
    ours = PETAL(swag, sgd(0.05), views=4, threshold=0.72, augment=jitter, seed=3, **settings)
    assert ours.source == "none"
    for clock, x in enumerate(data):
        expected, looked = reference.step(x, clock), ours.predict(x)
        answer = ours(x)
        assert torch.equal(looked, answer)
        np.testing.assert_allclose(answer.numpy(), expected.numpy(), rtol=0, atol=1e-8)
    assert 0 < sum(reference.used) < len(data)
    assert reference.returned > 100
    assert ours.prior().item() > 1


def test_swag_is_mean_and_variance_of_the_path() -> None:
    """After every pass but the first, at rates that begin to rise with the third."""
    swag, plain = swag_diagonal(net(), source(), title=None), net().requires_grad_(True)
    optimizer = torch.optim.SGD(plain.parameters(), 1.0, momentum=0.9, weight_decay=5e-4)
    points = []
    for i, rate in enumerate([8e-4, 8e-4, 8e-4 + 0.0092 / 3, 8e-4 + 0.0184 / 3, 1e-2]):
        optimizer.param_groups[0]["lr"] = rate
        for x, y in source():
            optimizer.zero_grad()
            F.cross_entropy(plain(x), y).backward()
            optimizer.step()
        if i:
            points.append(np.concatenate([p.detach().numpy().ravel() for p in plain.parameters()]))
    mean = np.concatenate([p.numpy().ravel() for p in swag.network.parameters()])
    np.testing.assert_allclose(mean, np.mean(points, 0), atol=1e-12)
    np.testing.assert_allclose(swag.variance.numpy(), np.var(points, 0), atol=1e-14)
    assert (swag.variance >= 0).all()


def test_swag_goes_on_where_it_was_left(tmp_path: Path) -> None:
    class Power(Exception):
        pass

    class Cut(list):
        def __iter__(self) -> object:
            self.shown = getattr(self, "shown", 0) + 1
            if self.shown == 4:
                raise Power
            return super().__iter__()

    file, whole = tmp_path / "swag.safetensors", swag_diagonal(net(), source(), title=None)
    with pytest.raises(Power):
        swag_diagonal(net(), Cut(source()), file=file, title=None)
    again = swag_diagonal(net(), source(), file=file, title=None)
    assert torch.equal(again.variance, whole.variance)
    for p, q in zip(again.network.parameters(), whole.network.parameters(), strict=True):
        assert torch.equal(p, q)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_swag_of_half_precision_has_the_variance_of_float32(dtype: torch.dtype) -> None:
    narrow = net().to(dtype)
    examples = [(x.to(dtype), y) for x, y in source()]
    ours = swag_diagonal(narrow, examples, title=None)
    wide = swag_diagonal(copy.deepcopy(narrow).float(), [(x.float(), y) for x, y in examples], title=None)
    assert ours.variance.dtype == torch.float32
    torch.testing.assert_close(ours.variance, wide.variance, rtol=1e-4, atol=1e-12)
    for p, q in zip(ours.network.parameters(), wide.network.parameters(), strict=True):
        assert p.equal(q.to(dtype))


def test_prepare_learns_the_variance_and_leaves_the_mean() -> None:
    ours, x = PETAL(net(), views=2), stream([12])[0]
    ours.prepare([x for x, _ in source()])
    taught = [(x, by_batch(net())(x).argmax(1)) for x, _ in source()]
    expected = swag_diagonal(ours.anchor, taught, title=None).variance
    torch.testing.assert_close(ours.prior.variance, expected)
    np.testing.assert_allclose(
        PETAL(net(), views=2, threshold=0).predict(x).numpy(), by_batch(net())(x).detach().numpy(), atol=1e-12
    )
    assert ours.prior().item() == 0
    before = state_hash(ours)
    ours(x)
    ours.reset()
    assert state_hash(ours) == before


def test_quantile_is_numpys() -> None:
    values = torch.rand(101, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for share in (0.0, 0.03, 0.5, 0.777, 1.0):
        np.testing.assert_allclose(quantile_of(values, share), np.quantile(values.numpy(), share))


def test_nothing_returns_at_a_quantile_of_zero() -> None:
    x = stream([12])[0]
    none, some = (PETAL(net(), adam(1e-2), views=2, quantile=q, augment=identity) for q in (0.0, 0.3))
    for a in (none, some):
        a.prepare([x for x, _ in source()])
        a(x)
    theta, back = (np.concatenate([p.detach().numpy().ravel() for p in a._adapted]) for a in (none, some))
    origin = np.concatenate([p.detach().numpy().ravel() for p in none.prior.origin])
    returned = back == origin
    np.testing.assert_array_equal(back[~returned], theta[~returned])
    assert 0.25 < returned.mean() < 0.35
    assert (theta == origin).mean() < 0.1


def test_says_what_it_expects() -> None:
    with pytest.raises(ValueError, match="views >= 1 and a quantile"):
        PETAL(net(), quantile=2)
    with pytest.raises(ValueError, match="is at least 2, got 1"):
        PETALOptions(passes=1)
    with pytest.raises(ValueError, match="at least 2"):
        swag_diagonal(net(), source(), passes=1)
    with pytest.raises(RuntimeError, match="or give it the network of swag_diagonal"):
        PETAL(net())(stream([4])[0])
    with pytest.raises(TypeError, match="give the images alone"):
        PETAL(net()).prepare(source())
