"""Norm layers are found by kind, policies are laid once, and several models run as one."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from testtime.adapter import state_hash
from testtime.intake.shards import Shards
from testtime.intake.sharing import share, twin
from testtime.methods import Tent
from testtime.norm import (
    AlphaStatistics,
    BatchStatistics,
    EMAStatistics,
    NormPolicy,
    SourceStatistics,
    advance,
    alpha_statistics,
    batch_statistics,
    ema_statistics,
    has_batch_norm,
    norm_affine,
    norm_layers,
    observing,
    source_statistics,
    swap_policy,
)
from testtime.norm.grouped import grouped


class MyNorm(nn.LayerNorm):
    """A kind of LayerNorm that nobody listed."""


def mixed() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 1),
        nn.BatchNorm2d(4),
        nn.GroupNorm(2, 4),
        nn.InstanceNorm2d(4, affine=True),
        nn.Sequential(nn.Flatten(), MyNorm(16), nn.RMSNorm(16), nn.LayerNorm(16, elementwise_affine=False)),
    )


def test_layers_are_found_by_kind() -> None:
    assert list(norm_layers(mixed())) == ["1", "2", "3", "4.1", "4.2", "4.3"]


def test_affine_is_scale_and_shift_of_all_of_them() -> None:
    model = mixed()
    got = norm_affine(model)
    want = [model[1].weight, model[1].bias, model[2].weight, model[2].bias, model[3].weight, model[3].bias]
    want += [model[4][1].weight, model[4][1].bias, model[4][2].weight]
    assert [id(p) for p in got] == [id(p) for p in want]


def test_affine_is_found_under_a_policy_too() -> None:
    model = batch_statistics(mixed())
    assert [tuple(p.shape) for p in norm_affine(model)] == [tuple(p.shape) for p in norm_affine(mixed())]


def test_has_batch_norm() -> None:
    assert has_batch_norm(mixed())
    assert has_batch_norm(batch_statistics(mixed()))
    assert not has_batch_norm(nn.Sequential(nn.GroupNorm(1, 2)))


def test_a_policy_that_is_there_stays() -> None:
    model = batch_statistics(alpha_statistics(mixed(), 0.3))
    kinds = [type(m) for m in model.modules() if isinstance(m, NormPolicy)]
    assert kinds == [AlphaStatistics]


def test_swap_again_replaces_it_and_gives_the_source_statistics_back() -> None:
    bn = nn.BatchNorm1d(2)
    bn.running_mean.copy_(torch.tensor([1.0, -1.0]))
    model = batch_statistics(nn.Sequential(bn))
    swap_policy(model, SourceStatistics, again=True)
    policy = next(m for m in model.modules() if isinstance(m, NormPolicy))
    assert type(policy) is SourceStatistics
    assert policy.source_mean.tolist() == [1, -1]


def test_the_first_proposal_counts_and_a_refused_one_is_forgotten() -> None:
    model = ema_statistics(nn.Sequential(nn.BatchNorm1d(2)), decay=0.5)
    policy = next(m for m in model.modules() if isinstance(m, EMAStatistics))
    one, other = torch.tensor([[0.0, 2.0], [2.0, 4.0]]), torch.tensor([[8.0, 8.0], [9.0, 9.0]])
    model(one)
    model(other)
    advance(model)
    assert policy.mean.tolist() == [0.5, 1.5]
    model(other)
    advance(model, accept=False)
    assert policy.mean.tolist() == [0.5, 1.5]
    model(one)
    advance(model)
    assert policy.mean.tolist() == [0.75, 2.25]


def test_observing_ends_with_an_error_too() -> None:
    model = ema_statistics(nn.Sequential(nn.BatchNorm1d(2)))
    policy = next(m for m in model.modules() if isinstance(m, NormPolicy))

    def stop() -> None:
        with observing(model):
            assert policy.observing
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        stop()
    assert not policy.observing


@pytest.mark.parametrize("policy", [batch_statistics, source_statistics, alpha_statistics, ema_statistics])
def test_a_network_is_compiled_as_one_graph(
    policy: Callable[[nn.Module], nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Shards, "used", False)  # by other tests in this process
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 5))
    plain, fast = Tent(net, norm=policy), Tent(net, norm=policy)
    fast.model.network.compile(backend="eager", fullgraph=True)
    for _ in range(2):
        x = torch.rand(6, 3, 8, 8)
        assert fast(x).equal(plain(x))
    assert state_hash(fast) == state_hash(plain)


def test_policies_can_be_laid_inside_inference_mode() -> None:
    with torch.inference_mode():
        model = ema_statistics(nn.Sequential(nn.BatchNorm1d(2)))
    weight = next(m for m in model.modules() if isinstance(m, NormPolicy)).layer.weight.requires_grad_(True)
    (gradient,) = torch.autograd.grad(model(torch.rand(4, 2)).square().sum(), [weight])
    assert gradient.isfinite().all()


def test_grouped_runs_several_models_at_once() -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2))

    with torch.random.fork_rng():
        source = share(network())
    adapting = batch_statistics(source)
    other = twin(adapting, own=norm_affine(adapting))
    for p in norm_affine(other):
        p.data += 0.3
    plain = twin(adapting)
    swap_policy(plain, SourceStatistics, again=True)
    stack = grouped([plain, adapting, other])
    rng = torch.Generator().manual_seed(1)
    batches: list[Tensor] = [torch.rand(5, 3, 6, 6, generator=rng) for _ in range(3)]
    with torch.no_grad():
        together = stack(torch.cat(batches)).chunk(3)
        alone = [model(x) for model, x in zip((plain, adapting, other), batches, strict=True)]
    for one, two in zip(together, alone, strict=True):
        torch.testing.assert_close(one, two)
    with torch.no_grad():
        norm_affine(adapting)[0].add_(0.5)  # tensors stay shared and live
        torch.testing.assert_close(stack(torch.cat(batches)).chunk(3)[1], adapting(batches[1]))
    assert type(next(m for m in adapting.modules() if isinstance(m, NormPolicy))) is BatchStatistics
