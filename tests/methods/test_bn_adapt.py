import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.methods import BNAdapt
from testtime.norm import alpha_statistics, ema_statistics


def by_hand(
    net: nn.Module, stream: list[Tensor], weight: float, remember: bool, unbiased: bool
) -> list[np.ndarray]:
    """Predictions with (1 - weight) * statistics + weight * batch in numpy; the statistics are remembered or the source's."""
    kept = {bn: (bn.running_mean.numpy(), bn.running_var.numpy()) for bn in (net.bn1, net.bn2)}

    def normalised(bn: nn.Module, x: Tensor) -> Tensor:
        v = x.detach().numpy()
        mean = (1 - weight) * kept[bn][0] + weight * v.mean((0, 2, 3))
        var = (1 - weight) * kept[bn][1] + weight * v.var((0, 2, 3), ddof=int(unbiased))
        if remember:
            kept[bn] = mean, var
        v = (v - mean[:, None, None]) / np.sqrt(var + bn.eps)[:, None, None]
        v = v * bn.weight.detach().numpy()[:, None, None] + bn.bias.detach().numpy()[:, None, None]
        return torch.from_numpy(np.maximum(v, 0))

    answers = []
    for x in stream:
        h = normalised(net.bn1, F.conv2d(x, net.conv1.weight, net.conv1.bias, padding=1))
        h = normalised(net.bn2, F.conv2d(h, net.conv2.weight, net.conv2.bias, stride=2, padding=1))
        answers.append(net.fc(h.mean((2, 3))).detach().numpy())
    return answers


@pytest.mark.parametrize(
    ("norm", "weight", "remember", "unbiased"),
    [
        (None, 1.0, False, False),
        (partial(alpha_statistics, alpha=0.1), 0.1, False, False),
        (partial(alpha_statistics, alpha=0.1, unbiased=True), 0.1, False, True),  # alpha-BN
        (
            partial(alpha_statistics, alpha=24 / (16 + 24), unbiased=True),
            0.6,
            False,
            True,
        ),  # Bayes-BN, N = 16
        (partial(ema_statistics, decay=0.9), 1 - 0.9, True, False),
        (partial(ema_statistics, decay=0.9, unbiased=True), 1 - 0.9, True, True),
    ],
)
def test_statistics_by_hand(
    net: nn.Module, stream: list[Tensor], norm, weight: float, remember: bool, unbiased: bool
) -> None:
    adapter = BNAdapt(net) if norm is None else BNAdapt(net, norm=norm)
    expected = by_hand(net, stream[:12], weight, remember, unbiased)
    source = net(stream[11]).detach().numpy()
    for x, y in zip(stream, expected, strict=False):
        np.testing.assert_allclose(adapter(x).numpy(), y, atol=1e-10)
    assert np.abs(expected[11] - source).max() > 0.1  # the statistics matter


def test_equals_the_published_loop(net: nn.Module, stream: list[Tensor]) -> None:
    published = copy.deepcopy(net).train()
    for m in published.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
    adapter = BNAdapt(net)
    for x in stream:
        torch.testing.assert_close(adapter(x).logits, published(x).detach(), rtol=0, atol=1e-10)


def test_only_moving_statistics_are_state(net: nn.Module, stream: list[Tensor]) -> None:
    assert set(BNAdapt(net).state_dict()) == {"clock"}
    adapter = BNAdapt(net, norm=ema_statistics)
    before = adapter.predict(stream[0]).logits
    adapter(stream[5])
    assert not adapter.predict(stream[0]).logits.equal(before)
    adapter.reset()
    assert adapter.predict(stream[0]).logits.equal(before)


def test_a_model_without_batch_norm_is_refused(layer_net: nn.Module) -> None:
    with pytest.raises(ValueError, match="BatchNorm layers, and this model has none"):
        BNAdapt(layer_net)


def test_a_prediction_that_raises_leaves_no_trace(net: nn.Module, stream: list[Tensor]) -> None:
    adapter, fresh = BNAdapt(net, norm=ema_statistics), BNAdapt(net, norm=ema_statistics)
    broken = adapter.model.network.fc
    adapter.model.network.fc = nn.Linear(3, 5).double()
    with pytest.raises(ValueError, match="mat1 and mat2 shapes cannot be multiplied"):
        adapter.predict(5 * stream[0])  # after the statistics of both layers were proposed
    adapter.model.network.fc = broken
    adapter(stream[1])
    fresh(stream[1])
    assert all(v.equal(fresh.state_dict()[k]) for k, v in adapter.state_dict().items())
