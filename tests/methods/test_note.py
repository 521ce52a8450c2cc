"""NOTE against a plain loop of the published behaviour, and its memory against the reservoir's own law."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from small_world import CLASSES, net, norms_of, stream
from testtime.methods import NOTE
from testtime.methods.note import PBRS
from testtime.methods.sotta import smoothed_entropy
from testtime.norm import iabn, running_statistics
from testtime.parts import adam, generator


class Reservoir:
    """The memory as slots of (image, class), one image at a time."""

    def __init__(self, capacity: int) -> None:
        self.slots: list[tuple[Tensor, int]] = []
        self.capacity, self.met = capacity, dict[int, int]()
        self.events = {"free": 0, "other": 0, "own": 0, "refused": 0}

    def add(self, image: Tensor, c: int, which: float, who: float) -> None:
        self.met[c] = self.met.get(c, 0) + 1
        if len(self.slots) < self.capacity:
            self.events["free"] += 1
            self.slots.append((image, c))
            return
        held = [k for _, k in self.slots]
        most = max(held.count(k) for k in held)
        largest = sorted({k for k in held if held.count(k) == most})
        leaves = c
        if c not in largest:
            self.events["other"] += 1
            leaves = largest[int(which * len(largest))]
        elif which <= held.count(c) / self.met[c]:
            self.events["own"] += 1
        else:
            self.events["refused"] += 1
            return
        candidates = [i for i, k in enumerate(held) if k == leaves]
        self.slots[candidates[int(who * len(candidates))]] = (image, c)


class InstanceAware(nn.Module):
    """The published layer, written anew."""

    def __init__(self, layer: nn.BatchNorm2d, k: float, momentum: float) -> None:
        super().__init__()
        self.weight, self.bias, self.eps, self.k, self.momentum = (
            layer.weight,
            layer.bias,
            layer.eps,
            k,
            momentum,
        )
        self.mean, self.var = layer.running_mean.clone(), layer.running_var.clone()

    def forward(self, x: Tensor) -> Tensor:
        var, mean = torch.var_mean(x, (2, 3), keepdim=True)
        if self.training:
            of_var, of_mean = torch.var_mean(x, (0, 2, 3))
            self.mean = (1 - self.momentum) * self.mean + self.momentum * of_mean.detach()
            self.var = (1 - self.momentum) * self.var + self.momentum * of_var.detach()
        else:
            of_mean, of_var = self.mean, self.var
        of_mean, of_var = of_mean.view(1, -1, 1, 1), of_var.view(1, -1, 1, 1)
        places = x.shape[2] * x.shape[3]
        by_mean = self.k * torch.sqrt((of_var + self.eps) / places)
        by_var = self.k * (of_var + self.eps) * (2 / (places - 1)) ** 0.5
        mean, var = mean - of_mean, var - of_var
        mean = of_mean + mean - torch.minimum(torch.maximum(mean, -by_mean), by_mean)
        var = of_var + var - torch.minimum(torch.maximum(var, -by_var), by_var)
        x = (x - mean) / (var + self.eps).sqrt()
        return x * self.weight.view(-1, 1, 1) + self.bias.view(-1, 1, 1)


class Published:
    """One image at a time; an update whenever ``capacity`` have been seen."""

    def __init__(self, model: nn.Sequential, capacity: int, lr: float, k: float) -> None:
        self.moving = [p.requires_grad_(True) for p in norms_of(model.requires_grad_(False))]
        for i, m in enumerate(model):
            if isinstance(m, nn.BatchNorm2d):
                model[i] = InstanceAware(m, k, 0.01)
        self.model, self.optimizer = model, torch.optim.Adam(self.moving, lr)
        self.memory, self.seen = Reservoir(capacity), 0

    def step(self, x: Tensor, clock: int) -> Tensor:
        draws = torch.rand(
            len(x), 2, dtype=torch.float64, generator=generator(0, clock, "reservoir")
        ).tolist()
        answers = []
        for i in range(len(x)):
            self.model.eval()
            with torch.no_grad():
                answers.append(self.model(x[i : i + 1])[0])
            self.memory.add(x[i], int(answers[-1].argmax()), *draws[i])
            self.seen += 1
            if self.seen % self.memory.capacity == 0:
                self.model.train()
                p = self.model(torch.stack([image for image, _ in self.memory.slots])).softmax(1)
                self.optimizer.zero_grad()
                (-p * torch.log(p + 1e-6)).mean().backward()
                self.optimizer.step()
        return torch.stack(answers)


@pytest.mark.parametrize(("size", "norm", "k"), [(13, "batch", 1.0), (40, "batch", 4.0), (16, "layer", 4.0)])
def test_equals_the_published_loop(size: int, norm: str, k: float) -> None:
    """Batches that complete the memory now and then, and batches that complete it two or three times."""
    reference = Published(net(norm), 16, 1e-2, k)
    ours = NOTE(net(norm), CLASSES, adam(1e-2), 16, 16, smoothed_entropy, partial(iabn, k=k))
    for clock, x in enumerate(stream([size] * 20)):
        torch.testing.assert_close(ours(x).logits, reference.step(x, clock), rtol=0, atol=1e-8)
    assert min(reference.memory.events.values()) > 0, reference.memory.events
    moved = [(p - q).abs().max() for p, q in zip(ours._adapted, norms_of(net(norm)), strict=True)]
    assert min(moved) > 1e-3


def test_the_answer_comes_before_the_update_and_the_memory_keeps_copies() -> None:
    a, b = (NOTE(net(), CLASSES, adam(1e-2), 16, 16) for _ in range(2))
    x, y = stream([16, 16])
    looked, given = a.predict(x), x.clone()
    assert torch.equal(a(given).logits, looked.logits)
    assert not torch.equal(a.predict(x).logits, looked.logits)
    b(x)
    given.zero_()
    assert torch.equal(a(y).logits, b(y).logits)
    with pytest.raises(ValueError, match="the memory holds images"):
        a(torch.rand(16, 3, 10, 10).double())


def test_a_reservoir_is_uniform_over_time_and_balanced_over_classes() -> None:
    """Of one class every image of the stream is held as likely; of unequal classes as many are held."""
    rng = np.random.default_rng(0)
    held = np.zeros(40)
    for _ in range(600):
        memory = PBRS(1, 8)
        memory.add(
            torch.arange(40.0)[:, None],
            torch.zeros(40, dtype=torch.int64),
            torch.from_numpy(rng.random((40, 2))),
        )
        held[memory.held()[:, 0].long().numpy()] += 1
    assert held.sum() == 600 * 8
    np.testing.assert_allclose(held / 600, 0.2, atol=0.07)  # four standard errors
    memory = PBRS(4, 16)
    label = torch.tensor([0] * 100 + [1] * 30 + [2] * 8 + [3] * 4)
    memory.add(label[:, None].float(), label, torch.from_numpy(rng.random((142, 2))))
    assert np.bincount(memory.label.numpy()).tolist() == [4, 4, 4, 4]
    assert memory.met.tolist() == [100, 30, 8, 4]
    assert int(memory.seen) == 142


def test_without_instance_awareness_it_is_another_policy() -> None:
    x = stream([16])[0]
    aware, plain = NOTE(net(), CLASSES), NOTE(net(), CLASSES, norm=running_statistics)
    assert not torch.equal(aware(x).logits, plain(x).logits)
    torch.testing.assert_close(plain(x).logits, net()(x), rtol=0, atol=1e-10)


def test_an_empty_batch_after_a_freeze() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5)
    )
    adapter = NOTE(net.eval(), 5)
    adapter(torch.rand(6, 3, 8, 8))
    assert adapter.freeze()(torch.rand(0, 3, 8, 8)).shape == (0, 5)
