"""The ceiling: labels are found by image, and move the encoder alone, down the losses of training."""

import pytest
import torch
from torch import nn

from testtime.data import DenseSet, Sample
from testtime.models.assisted import Assisted
from testtime.models.multitask import MultiTaskNet
from testtime.multitask.ceiling import Answers, Labelled, network_of
from testtime.norm import source_statistics
from testtime.parts.optimizers import sgd
from testtime.source.ttt import RotationBranch
from testtime.tasks import Depth, Edges

TASKS = {"depth": Depth(), "edge": Edges()}


class Colours(DenseSet):
    name, tasks = "colours", ("depth", "edge")

    def __len__(self):
        return 4

    def __getitem__(self, index):
        image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(index))
        return Sample(image, {"depth": image[:1] + index, "edge": (image[1:2] > 0.5).float()})


def network():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4))
    return MultiTaskNet(encoder, {name: nn.Conv2d(4, 1, 1) for name in TASKS}, TASKS).eval()


def test_labels_are_those_of_the_images_in_any_order():
    answers = Answers(Colours())
    x, labels = Colours().batch([2, 0, 2])
    found = answers(x)
    assert all(torch.equal(found[name], labels[name]) for name in TASKS)
    with pytest.raises(KeyError, match="image 1 of the batch is none of colours"):
        answers(torch.stack([x[0], x[0] + 1]))


def test_a_step_is_one_of_descent_on_the_losses_of_training_with_frozen_statistics():
    net, (x, labels) = network(), Colours().batch(range(3))
    loss = sum(task.weight * task.loss(net(x)[name], labels[name]) for name, task in TASKS.items())
    slopes = torch.autograd.grad(loss, list(net.encoder.parameters()))
    ceiling = Labelled(net, Answers(Colours()), sgd(0.1, momentum=0.0), source_statistics)
    assert torch.allclose(ceiling(x)["depth"], net(x)["depth"], atol=1e-6)
    moved = network_of(ceiling)
    for before, after, slope in zip(
        net.encoder.parameters(), moved.encoder.parameters(), slopes, strict=True
    ):
        assert torch.allclose(after, before - 0.1 * slope, atol=1e-6)
    assert all(
        torch.equal(a, b) for a, b in zip(net.heads.parameters(), moved.heads.parameters(), strict=True)
    )


def test_labels_bring_the_loss_down_and_a_branch_does_not_matter():
    net, (x, labels) = network(), Colours().batch(range(4))
    alone, beside = (
        Labelled(model, Answers(Colours()), sgd(0.02)) for model in (net, Assisted(net, RotationBranch(4)))
    )
    for _ in range(20):
        alone(x)
        beside(x)

    def loss(model):
        return TASKS["depth"].loss(model.predict(x)["depth"], labels["depth"]).item()

    still = Labelled(net, Answers(Colours()), sgd(0.0))
    for _ in range(20):
        still(x)
    assert loss(alone) < 0.9 * loss(still)
    assert loss(alone) == pytest.approx(loss(beside), rel=1e-5)


def test_what_is_no_multi_task_network_is_refused():
    with pytest.raises(TypeError, match="expected a MultiTaskNet"):
        network_of(nn.Linear(1, 1))
