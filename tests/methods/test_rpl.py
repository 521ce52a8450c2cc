"""RPL against a plain loop of the published behaviour, and its loss against numpy."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime.methods import RPL
from testtime.methods.rpl import robust_self_loss
from testtime.parts import sgd


def published(net: nn.Module, stream: list[Tensor], lr: float) -> list[Tensor]:
    """The published algorithm as a plain loop."""
    net = copy.deepcopy(net).train().requires_grad_(False)
    affine = []
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
        if isinstance(m, nn.BatchNorm2d | nn.LayerNorm):
            affine += [m.weight.requires_grad_(True), m.bias.requires_grad_(True)]
    optimizer = torch.optim.SGD(affine, lr, momentum=0.9)
    answers = []
    for x in stream:
        z = net(x)
        losses = [(1 - z[i].softmax(0)[int(z[i].argmax())] ** 0.8) / 0.8 for i in range(len(x))]
        optimizer.zero_grad()
        torch.stack(losses).mean().backward()
        optimizer.step()
        answers.append(z.detach())
    return answers


@pytest.mark.parametrize("kind", ["net", "layer_net"])
def test_equals_the_published_loop(kind: str, request: pytest.FixtureRequest, stream: list[Tensor]) -> None:
    model = request.getfixturevalue(kind)
    rpl, answers = RPL(model, sgd(2e-2)), published(model, stream, 2e-2)
    for x, expected in zip(stream, answers, strict=True):
        torch.testing.assert_close(rpl(x).logits, expected, rtol=0, atol=1e-10)
    assert (answers[-1] - published(model, stream, 0.0)[-1]).abs().max() > 0.1


@pytest.mark.parametrize("q", [0.3, 0.8, 1.0])
def test_loss_in_numpy(q: float) -> None:
    z = 3 * torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    p = np.exp(z.numpy()) / np.exp(z.numpy()).sum(1, keepdims=True)
    np.testing.assert_allclose(robust_self_loss(z, q).numpy(), (1 - p.max(1) ** q) / q, rtol=1e-12)


def test_small_q_is_the_cross_entropy() -> None:
    z = torch.randn(7, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    expected = nn.functional.cross_entropy(z, z.argmax(1), reduction="none")
    torch.testing.assert_close(robust_self_loss(z, 1e-7), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("q", [0.0, -1.0, 1.1])
def test_q_is_checked(net: nn.Module, q: float) -> None:
    with pytest.raises(ValueError, match=r"lies in \(0, 1\]"):
        RPL(net, q=q)
