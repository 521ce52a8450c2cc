"""Affinity of tasks and the loss under masks, recomputed."""

import numpy as np
import pytest
import torch
from torch import nn

from testtime import Adapter
from testtime.data import DenseSet, Sample
from testtime.multitask import Assisted, Depth, Edges, MultiTaskNet, Synchronizer, SynchronizerOptions
from testtime.multitask.analysis import affinity, affinity_gap, direction, masked_losses
from testtime.multitask.ceiling import network_of
from testtime.parts.optimizers import sgd
from testtime.parts.randomness import generator

TASKS = {"depth": Depth(), "edge": Edges()}


class Few(DenseSet):
    name, tasks = "few", ("depth", "edge")

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rng = torch.Generator().manual_seed(index)
        image = torch.rand(3, 8, 8, generator=rng)
        return Sample(image, {"depth": image[:1] * 2, "edge": (image[1:2] > 0.5).float()})


def model():
    torch.manual_seed(0)
    net = MultiTaskNet(nn.Conv2d(3, 5, 3, 2, 1), {k: nn.Conv2d(5, 1, 1) for k in TASKS}, TASKS)
    return Assisted(net, Synchronizer(TASKS, 5, 4, 8, 2, 8, 1, 1, 2, SynchronizerOptions(ratio=0.5))).eval()


def test_affinity_is_the_mean_cosine_between_latents():
    m = model()
    x, _ = Few().batch(range(3))
    z = m.network.encoder(x)
    latents = [conv(z).flatten(1).detach().numpy() for conv in m.branch.project.values()]
    cosines = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(*latents, strict=True)]
    got = affinity(m, Few(), batch=2)
    assert got[0, 1].item() == pytest.approx(np.mean(cosines), rel=1e-5)
    assert torch.allclose(got.diagonal(), torch.ones(2))
    assert torch.equal(affinity_gap(got, torch.zeros(2, 2)), got.abs())


def test_masked_losses_are_those_of_the_synchronised_outputs():
    m = model()
    found = masked_losses(m, Few(), [0.0, 0.75], batch=3, seed=4)
    x, labels = Few().batch(range(3))
    z = m.network.encoder(x)
    m.branch.ratio = 0.75
    seen = m.branch.draw(3, generator(4, 0, "mask"))
    m.branch.ratio = 0.5
    _, y = m.branch(z, (8, 8), seen)
    for name, task in TASKS.items():
        assert found[0.75][name] == pytest.approx(task.loss(y[name], labels[name]).item(), rel=1e-5)
    assert m.branch.ratio == 0.5
    assert found[0.0] != found[0.75]


def test_it_asks_for_a_synchronizer():
    with pytest.raises(TypeError, match="Synchronizer"):
        affinity(nn.Linear(1, 1), Few())


class Labelled(Adapter):
    """Goes down (or up) the labelled loss itself, of one task."""

    needs = ()

    def __init__(self, model, rate):
        super().__init__(model)
        self.adapt(list(network_of(self.model).encoder.parameters()), sgd(rate, 0.0))

    def step(self, x):
        y = self.model(x)
        _, labels = Few().batch(range(3))
        self.update(TASKS["depth"].loss(y["depth"], labels["depth"]))
        return y


def test_direction_is_1_for_descent_minus_1_for_ascent_and_recomputed_between():
    net = model().network
    x, labels = Few().batch(range(3))
    down, still = Labelled(net, 1e-3), Labelled(net, 0.0)
    down(x)
    still(x)
    found = direction(down, net, Few(), TASKS, batch=2)
    assert found["depth"] == pytest.approx(1, abs=1e-4)
    assert np.isnan(direction(still, net, Few(), TASKS)["all"])
    up = Labelled(net, 1e-3)
    up(x)
    for ours, theirs in zip(network_of(up).encoder.parameters(), net.encoder.parameters(), strict=True):
        ours.data.copy_(2 * theirs - ours)
    assert direction(up, net, Few(), TASKS)["depth"] == pytest.approx(-1, abs=1e-4)
    slopes = {}
    for name, task in TASKS.items():
        loss = task.weight * task.loss(net(x)[name], labels[name])
        grads = torch.autograd.grad(loss, list(net.encoder.parameters()))
        slopes[name] = np.concatenate([g.numpy().ravel() for g in grads])
    whole = slopes["depth"] + slopes["edge"]
    cosine = slopes["depth"] @ whole / np.linalg.norm(slopes["depth"]) / np.linalg.norm(whole)
    assert found["all"] == pytest.approx(cosine, abs=1e-3)
