import copy

import numpy as np
import torch
from torch import Tensor, nn

from testtime.methods import Tent
from testtime.parts import sgd


def published(net: nn.Module, stream: list[Tensor], lr: float) -> list[Tensor]:
    """The published algorithm as a plain loop."""
    net = copy.deepcopy(net).train().requires_grad_(False)
    parameters = []
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
            parameters += [m.weight.requires_grad_(True), m.bias.requires_grad_(True)]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    answers = []
    for x in stream:
        z = net(x)
        loss = -(z.softmax(1) * z.log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        answers.append(z.detach())
    return answers


def test_equals_the_published_loop(net: nn.Module, stream: list[Tensor]) -> None:
    tent = Tent(net)
    for x, expected in zip(stream, published(net, stream, 1e-3), strict=True):
        torch.testing.assert_close(tent(x).logits, expected, rtol=0, atol=1e-10)


def test_first_step_by_hand(net: nn.Module, stream: list[Tensor]) -> None:
    """One SGD step on the last bias alone, its gradient by finite differences of the entropy in numpy."""
    tent = Tent(net, sgd(0.1, momentum=0.0))
    x, h = stream[0], 1e-6
    bias = tent.model.network.bn2.layer.bias

    def mean_entropy() -> float:
        z = tent.predict(x).numpy()
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        return float(-(p * np.log(p)).sum(1).mean())

    before, slope = bias.detach().clone(), np.zeros(len(bias))
    for i in range(len(bias)):
        for sign in (1, -1):
            with torch.no_grad():
                bias.copy_(before)
                bias[i] += sign * h
            slope[i] += sign * mean_entropy() / (2 * h)
    with torch.no_grad():
        bias.copy_(before)
    tent(x)
    np.testing.assert_allclose(bias.detach().numpy(), before.numpy() - 0.1 * slope, atol=1e-8)
