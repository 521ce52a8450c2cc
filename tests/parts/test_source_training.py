"""Training on the source goes on where it was left, and says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.parts.source_training import passes_over


def world() -> tuple[list[tuple[Tensor, Tensor]], nn.Linear, torch.optim.Optimizer]:
    rng = torch.Generator().manual_seed(0)
    batches = [(torch.randn(8, 4, generator=rng), torch.randint(3, (8,), generator=rng)) for _ in range(3)]
    net = nn.Linear(4, 3)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=rng))
    return batches, net, torch.optim.SGD(net.parameters(), 1.0, momentum=0.9)


def test_trains_as_a_plain_loop() -> None:
    batches, net, _ = world()
    _, plain, optimizer = world()
    ours = torch.optim.SGD(net.parameters(), 1.0, momentum=0.9)
    done = list(
        passes_over(batches, 2, net, ours, lambda x, y: F.cross_entropy(net(x), y), lambda i: 0.1 / (i + 1))
    )
    for rate in (0.1, 0.05):
        optimizer.param_groups[0]["lr"] = rate
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(plain(x), y).backward()
            optimizer.step()
    assert done == [0, 1]
    for p, q in zip(net.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_groups_learn_at_multiples_of_the_rate_and_lessons_say_more() -> None:
    batches, net, _ = world()
    _, plain, _ = world()
    groups = [{"params": [net.weight]}, {"params": [net.bias], "times": 0.1}]
    lessons = [(x, y, 2.0) for x, y in batches]
    for _ in passes_over(
        lessons,
        1,
        net,
        torch.optim.SGD(groups, 1.0),
        lambda x, y, times: times * F.cross_entropy(net(x), y),
        lambda _: 0.1,
    ):
        pass
    for x, y in batches:
        weight, bias = torch.autograd.grad(2 * F.cross_entropy(plain(x), y), [plain.weight, plain.bias])
        with torch.no_grad():
            plain.weight -= 0.1 * weight
            plain.bias -= 0.01 * bias
    torch.testing.assert_close(net.weight, plain.weight)
    torch.testing.assert_close(net.bias, plain.bias)


def test_goes_on_where_it_was_left(tmp_path: Path) -> None:
    file, described = tmp_path / "training.safetensors", {"kind": "test"}
    nets = []
    for stop in (4, 2):
        batches, net, optimizer = world()
        at = file if stop == 2 else None
        for _ in passes_over(
            batches,
            stop,
            net,
            optimizer,
            lambda x, y, n=net: F.cross_entropy(n(x), y),
            lambda _: 0.1,
            None,
            at,
            described,
        ):
            pass
        nets.append(net)
    batches, resumed, optimizer = world()
    rest = passes_over(
        batches,
        4,
        resumed,
        optimizer,
        lambda x, y: F.cross_entropy(resumed(x), y),
        lambda _: 0.1,
        None,
        file,
        described,
    )
    assert list(rest) == [2, 3]
    assert torch.equal(resumed.weight, nets[0].weight)
    with pytest.raises(ValueError, match="belongs to another training"):
        next(
            passes_over(
                batches, 4, resumed, optimizer, F.cross_entropy, lambda _: 0.1, None, file, {"kind": "other"}
            )
        )
    batches, other, optimizer = world()
    other.bias.data += 1  # of the same shapes: another network
    with pytest.raises(ValueError, match="belongs to another training"):
        next(passes_over(batches, 4, other, optimizer, F.cross_entropy, lambda _: 0.1, None, file, described))


def test_refuses_what_is_not_finite() -> None:
    batches, net, optimizer = world()
    with pytest.raises(ValueError, match="loss of nan in pass 1"):
        next(passes_over(batches, 1, net, optimizer, lambda x, y: net(x).sum() * torch.nan, lambda _: 0.1))
