"""MTI-Net: the equations of distillation and propagation in numpy, and its initial predictions in joint training."""

import numpy as np
import pytest
import torch

from testtime.models.mti_net import Distillation, Propagation, mti_net
from testtime.multitask.training import Joint
from testtime.tasks import Depth, Edges, Normals

TASKS = {task.name: task for task in (Depth(), Normals(), Edges())}


def features(channels=4, side=3):
    torch.manual_seed(0)
    return {name: torch.randn(2, channels, side, side) for name in TASKS}


def linear(conv, x):
    weight, bias = conv.weight[:, :, 0, 0].detach().numpy(), conv.bias.detach().numpy()
    return np.einsum("oc,nchw->nohw", weight, x.numpy()) + bias[:, None, None]


def test_a_task_takes_from_the_others_what_attention_lets_through():
    maps, distil = features(), Distillation(TASKS, 4)
    found = distil(maps)
    for task in TASKS:
        expected = maps[task].numpy().copy()
        for other in set(TASKS) - {task}:
            attention = 1 / (1 + np.exp(-linear(distil.attention[task][other], maps[other])))
            expected += attention * linear(distil.content[task][other], maps[other])
        assert found[task].detach().numpy() == pytest.approx(expected, abs=1e-5)


def test_what_is_shared_reaches_each_task_through_its_own_gate():
    maps, propagation = features(), Propagation(list(TASKS), 4).eval()
    found = propagation(maps)
    stacked = torch.cat([maps[name] for name in TASKS], 1)
    weights = propagation.weigh(stacked).view(2, 3, 4, 3, 3).softmax(1)
    assert weights.sum(1).detach().numpy() == pytest.approx(1, abs=1e-6)
    shared = propagation.share((weights * stacked.view(2, 3, 4, 3, 3)).flatten(1, 2))
    for name, gate in propagation.gates.items():
        first, _, last, _ = gate
        hidden = np.maximum(
            shared.mean((2, 3)).detach().numpy() @ first.weight.detach().numpy().T
            + first.bias.detach().numpy(),
            0,
        )
        open_ = 1 / (1 + np.exp(-(hidden @ last.weight.detach().numpy().T + last.bias.detach().numpy())))
        expected = maps[name].numpy() + open_[:, :, None, None] * shared.detach().numpy()
        assert found[name].detach().numpy() == pytest.approx(expected, abs=1e-5)


def test_initial_predictions_are_trained_at_every_scale():
    torch.manual_seed(0)
    net = mti_net(TASKS, 18, 4).eval()
    x = torch.rand(2, 3, 64, 64)
    z = net.encoder(x)
    guesses = net.decoder.initial(z)
    assert [tuple(maps["normals"].shape) for maps in guesses] == [(2, 3, n, n) for n in (16, 8, 4, 2)]
    assert tuple(net.decoder(z)["depth"].shape) == (2, 4 * 16, 16, 16)
    labels = {"depth": torch.rand(2, 1, 64, 64)}
    whole, parts = Joint(net)(x, labels, torch.Generator())
    depth = TASKS["depth"]
    losses = [depth.loss(net(x)["depth"], labels["depth"])]
    for maps in guesses:
        guess = torch.nn.functional.interpolate(maps["depth"], (64, 64), mode="bilinear")
        losses.append(depth.loss(guess, labels["depth"]))
    assert parts["depth"].item() == pytest.approx(sum(losses).item(), rel=1e-5)
    assert whole.item() == pytest.approx(depth.weight * sum(losses).item(), rel=1e-5)
    whole.backward()
    untrained = {name for name, p in net.named_parameters() if p.grad is None}
    assert {name.split(".")[0] for name in untrained} <= {"heads", "decoder", "encoder"}
    assert not {name for name in untrained if "encoder.backbone" in name and ".fc." not in name}
