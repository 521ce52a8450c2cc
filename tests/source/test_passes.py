"""Training on the source goes on where it was left, and says what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from testtime.errors import WeightsError
from testtime.intake.fingerprint import state_hash
from testtime.source.passes import passes_over
from testtime.training import checkpoint


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
    examples = [(x, y, 2.0) for x, y in batches]
    for _ in passes_over(
        examples,
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


def test_a_file_of_version_0_1_is_read_and_continued(tmp_path: Path) -> None:
    """It counted passes, and called the digest of the initial weights "began"."""
    file, described = tmp_path / "training.safetensors", {"kind": "test", "rate": 0.1}
    batches, net, optimizer = world()
    began = state_hash(net)

    def run(passes: int, net: nn.Linear, optimizer: torch.optim.Optimizer, at: Path | None) -> list[int]:
        loss = lambda x, y: F.cross_entropy(net(x), y)  # noqa: E731
        return list(passes_over(batches, passes, net, optimizer, loss, lambda _: 0.1, None, at, described))

    run(2, net, optimizer, None)
    checkpoint.save(file, net, optimizer, 2, {**described, "began": began})
    _, finished, fresh = world()
    assert run(2, finished, fresh, file) == []
    assert finished.weight.equal(net.weight)
    _, whole, fresh = world()
    run(4, whole, fresh, None)
    checkpoint.save(file, net, optimizer, 2, {**described, "began": began})
    _, resumed, fresh = world()
    assert run(4, resumed, fresh, file) == [2, 3]
    assert resumed.weight.equal(whole.weight)
    checkpoint.save(file, net, optimizer, 2, {**described, "began": "of other weights"})
    with pytest.raises(WeightsError, match="began is .* there and .* here"):
        run(4, *world()[1:], file)


def test_batches_that_are_not_as_many_as_they_say_are_refused() -> None:
    class Short(list[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return 5

    batches, net, optimizer = world()
    with pytest.raises(ValueError, match=r"expected 5 batches in every pass, as len\(batches\) says, got 3"):
        next(
            passes_over(
                Short(batches), 1, net, optimizer, lambda x, y: F.cross_entropy(net(x), y), lambda _: 0.1
            )
        )
    with pytest.raises(ValueError, match="expected batches of the source to train on, got none"):
        next(passes_over([], 1, net, optimizer, F.cross_entropy, lambda _: 0.1))


def test_a_loader_shuffles_by_the_seed() -> None:
    orders = []
    for seed in (0, 0, 1):
        torch.manual_seed(len(orders))
        _, net, optimizer = world()
        seen: list[int] = []
        loader = DataLoader([(torch.full((4,), float(i)), i) for i in range(12)], 4, shuffle=True)

        def loss(x: Tensor, i: Tensor, net: nn.Linear = net, seen: list[int] = seen) -> Tensor:
            seen += i.tolist()
            return net(x).square().mean()

        for _ in passes_over(loader, 2, net, optimizer, loss, lambda _: 0.0, seed=seed):
            pass
        assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
        assert seen[:12] != seen[12:]
        orders.append(seen)
    assert orders[0] == orders[1] != orders[2]


def test_refuses_what_is_not_finite() -> None:
    batches, net, optimizer = world()
    with pytest.raises(
        ValueError,
        match="training of Linear, step 0: the loss is nan; check that inputs and labels are finite",
    ):
        next(passes_over(batches, 1, net, optimizer, lambda x, y: net(x).sum() * torch.nan, lambda _: 0.1))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD])
def test_half_precision_learns_what_float32_does(
    dtype: torch.dtype, kind: type[torch.optim.Optimizer]
) -> None:
    """Twenty passes of a rate whose single steps are lost in the weights' last digit."""
    rate, nets = {torch.optim.AdamW: 1e-4, torch.optim.SGD: 1e-3}[kind], []
    for half in (False, True):
        batches, net, _ = world()
        for p in net.parameters():
            p.data = p.data.to(dtype).float()
        net = net.to(dtype) if half else net
        began = net.weight.detach().float().clone()
        examples = [(x.to(net.weight), y) for x, y in batches]
        for _ in passes_over(
            examples,
            20,
            net,
            kind(net.parameters(), lr=rate),
            lambda x, y, n=net: F.cross_entropy(n(x), y),
            lambda _: rate,
        ):
            pass
        nets.append((net.weight.detach().float() - began, net))
    (wide, _), (narrow, net) = nets
    assert net.weight.dtype == dtype
    assert all(p.grad is None for p in net.parameters())
    last_digit = torch.finfo(dtype).eps * net.weight.detach().float().abs()
    assert wide.abs().max() > 2e-3
    assert ((narrow - wide).abs() <= 0.6 * last_digit + 0.05 * wide.abs() + 1e-5).all()


def test_half_precision_goes_on_where_it_was_left(tmp_path: Path) -> None:
    file, nets = tmp_path / "training.safetensors", []
    for stops in ([6], [3, 6]):
        for stop in stops:
            batches, net, _ = world()
            net = net.bfloat16()
            optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4)
            for _ in passes_over(
                [(x.bfloat16(), y) for x, y in batches],
                stop,
                net,
                optimizer,
                lambda x, y, n=net: F.cross_entropy(n(x), y),
                lambda _: 1e-4,
                None,
                file if len(stops) > 1 else None,
            ):
                pass
        nets.append((net, optimizer.param_groups[0]["params"]))
    (net, masters), (resumed, again) = nets
    assert [p.dtype for p in again] == [torch.float32] * 2
    assert resumed.weight.equal(net.weight)
    for p, q in zip(masters, again, strict=True):
        assert p.equal(q)


def test_refuses_gradients_that_are_not_finite_and_moves_nothing() -> None:
    batches, net, optimizer = world()
    before = net.weight.detach().clone()
    training = passes_over(
        batches,
        1,
        net,
        optimizer,
        lambda x, y: (net(x) * 0).sum().abs().sqrt() + net.bias.sum(),
        lambda _: 0.1,
    )
    with pytest.raises(ValueError, match="step 0: a gradient is not finite; .*it is 0.1"):
        next(training)
    assert net.weight.equal(before)
    assert net.weight.grad is None
