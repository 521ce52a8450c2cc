"""BatchNorm without running statistics, SyncBatchNorm, InstanceNorm with running ones: every policy works or says what does."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

from testtime import norm
from testtime.methods import PAFKIP, BNAdapt, Source, Tent
from testtime.norm import NormPolicy, batch_statistics, ema_statistics, norm_layers, source_statistics

X = torch.rand(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
POLICIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    name: getattr(norm, name)
    for name in norm.__all__
    if name.endswith("_statistics") or name in ("iabn", "unmix_tns")
}
POLICIES["unmix_tns"] = partial(norm.unmix_tns, components=4)
WITHOUT = {"batch_statistics", "source_statistics"}


class Activated(nn.BatchNorm2d):
    """A BatchNorm that also activates, as timm's BatchNormAct2d does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def network(layer: Callable[..., nn.Module] = nn.BatchNorm2d, **settings: bool) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), layer(4, **settings), nn.Flatten(), nn.Linear(64, 5))
    with torch.no_grad():
        net[1].weight.uniform_(0.5, 2)
        net[1].bias.uniform_(-1, 1)
        if net[1].running_mean is not None:
            net[1].running_mean.uniform_(-1, 1)
            net[1].running_var.uniform_(0.5, 2)
    return net.eval()


def test_every_policy_is_tried() -> None:
    kinds = {kind for kind in (getattr(norm, name) for name in norm.__all__) if isinstance(kind, type)} - {
        NormPolicy
    }
    built = {
        type(next(m for m in make(network()).modules() if isinstance(m, NormPolicy)))
        for make in POLICIES.values()
    }
    assert built == kinds


@pytest.mark.parametrize("layer", [nn.BatchNorm2d, Activated, nn.SyncBatchNorm])
@pytest.mark.parametrize("name", POLICIES)
def test_without_running_statistics(name: str, layer: Callable[..., nn.Module]) -> None:
    model = network(layer, track_running_stats=False)
    if name not in WITHOUT:
        with pytest.raises(
            ValueError, match=r"track_running_stats=False\); pass norm=testtime.norm.batch_statistics"
        ):
            POLICIES[name](model)
        return
    tree = POLICIES[name](model)
    torch.testing.assert_close(tree(X), model(X).detach(), rtol=1e-5, atol=1e-5)
    assert model[1].running_mean is None
    assert not list(model[1].buffers())


@pytest.mark.parametrize("make", [Tent, Source, BNAdapt, lambda m: PAFKIP(m, 5)])
def test_methods_work_on_them(make: Callable[[nn.Module], Tent]) -> None:
    model = network(track_running_stats=False)
    adapter = make(model)
    first = adapter(X)
    assert first.valid.all()
    if isinstance(adapter, Source | BNAdapt | Tent):
        torch.testing.assert_close(first.logits, model(X).detach(), rtol=1e-5, atol=1e-5)
    adapter.reset()
    assert adapter(X).equal(first)


@pytest.mark.parametrize("make", [Tent, Source, BNAdapt])
def test_one_value_per_channel_has_nothing_to_be_normalised_by(make: Callable[[nn.Module], Tent]) -> None:
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(108, 4), nn.BatchNorm1d(4, track_running_stats=False)
    ).eval()
    adapter = make(model)
    with pytest.raises(
        ValueError, match=r"one value per channel, \(1, 4\).* pass a batch of two images or more"
    ):
        adapter(X[:1])
    assert adapter(X).valid.all()
    assert adapter(X[:2]).valid.all()
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        model(X[:1])  # as in torch


def test_layers_with_and_without_may_be_mixed() -> None:
    model = nn.Sequential(network()[:2], nn.BatchNorm2d(4, track_running_stats=False)).eval()
    torch.testing.assert_close(source_statistics(model)(X), model(X).detach())
    with pytest.raises(ValueError, match="EMAStatistics starts from the running statistics"):
        ema_statistics(model)


@pytest.mark.parametrize("name", POLICIES)
def test_synchronised_layers_follow_a_policy_as_plain_ones(name: str) -> None:
    plain, synchronised = network(), nn.SyncBatchNorm.convert_sync_batchnorm(network())
    assert type(synchronised[1]) is nn.SyncBatchNorm
    torch.testing.assert_close(
        POLICIES[name](synchronised)(X), POLICIES[name](plain)(X), rtol=1e-5, atol=1e-5
    )
    tent, other = (Tent(net, norm=POLICIES[name]) for net in (plain, synchronised))
    for _ in range(2):
        torch.testing.assert_close(other(X).logits, tent(X).logits, rtol=1e-4, atol=1e-4)


def test_instance_norm_keeps_its_running_statistics() -> None:
    model = network(nn.InstanceNorm2d, affine=True, track_running_stats=True)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    assert Source(model)(X).logits.equal(model(X).detach())
    tent = Tent(model)
    assert list(norm_layers(tent.model)) == ["network.1"]
    assert tent(X).logits.equal(model(X).detach())
    assert tent(X).updated
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
    assert not batch_statistics(model)(X).requires_grad
