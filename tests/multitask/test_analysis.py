"""Affinity of tasks and the loss under masks, recomputed."""

import numpy as np
import pytest
import torch
from torch import nn

from testtime.data import DenseSet, Sample
from testtime.multitask import Assisted, Depth, Edges, MultiTaskNet, Synchronizer
from testtime.multitask.analysis import affinity, affinity_gap, masked_losses
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
    return Assisted(net, Synchronizer(TASKS, 5, 4, 8, 2, 8, 1, 1, 2, ratio=0.5)).eval()


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
