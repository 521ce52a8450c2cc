"""Tasks: every loss recomputed in numpy, with what it ignores; agreement; the sum over tasks."""

import numpy as np
import pytest
import torch
from torch import nn

from testtime.data import IGNORE
from testtime.multitask import (
    Depth,
    Edges,
    MultiTaskNet,
    Normals,
    Reconstruction,
    Segmentation,
    tasks_of,
    total_loss,
)
from testtime.tasks import class_logits


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_segmentation_is_cross_entropy_over_known_pixels():
    y = torch.randn(2, 3, 4, 5, generator=rng(), dtype=torch.float64)
    label = torch.randint(0, 3, (2, 4, 5), generator=rng(1))
    label[0, :2] = IGNORE
    logits, classes = y.numpy().transpose(0, 2, 3, 1), label.numpy()
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    known = classes != IGNORE
    expected = -np.mean([log_p[i][classes[i]] for i in zip(*np.nonzero(known), strict=True)])
    task = Segmentation(("a", "b", "c"))
    assert task.loss(y, label).item() == pytest.approx(expected)
    p = np.exp(log_p)
    assert task.agreement(y, y).item() == pytest.approx(-(p * log_p).sum(-1).mean())
    assert task.loss(y, torch.full_like(label, IGNORE)) == 0


def test_depth_is_l1_over_known_pixels():
    y, label = torch.randn(2, 1, 3, 3, generator=rng()), torch.rand(2, 1, 3, 3, generator=rng(1))
    label[1, 0, 0] = torch.nan
    expected = np.nanmean(np.abs(y.numpy() - label.numpy()))
    assert Depth().loss(y, label).item() == pytest.approx(expected)
    assert Depth().agreement(y, y + 0.5).item() == pytest.approx(0.5)


def test_normals_are_l1_between_unit_vectors_along_the_channels():
    y = torch.randn(2, 3, 4, 5, generator=rng(), dtype=torch.float64)
    label = nn.functional.normalize(torch.randn(2, 3, 4, 5, generator=rng(1), dtype=torch.float64), dim=1)
    label[0, :, 1] = torch.nan
    unit = y.numpy() / np.linalg.norm(y.numpy(), axis=1, keepdims=True)
    distance = np.abs(unit - label.numpy()).sum(1)
    assert Normals().loss(y, label).item() == pytest.approx(np.nanmean(distance))
    assert Normals().agreement(y, 7 * y).item() == pytest.approx(0, abs=1e-12)


def test_edges_weigh_as_in_hed():
    y, label = (
        torch.randn(2, 1, 4, 4, generator=rng()).double(),
        (torch.rand(2, 1, 4, 4, generator=rng(1)) < 0.3).double(),
    )
    label[0, 0, 0, 0] = torch.nan
    p, t = 1 / (1 + np.exp(-y.numpy())), label.numpy()
    losses = -(0.95 * t * np.log(p) + 0.05 * (1 - t) * np.log(1 - p))
    assert Edges().loss(y, label).item() == pytest.approx(np.nanmean(losses))
    assert Edges().weight == 50


def test_reconstruction_is_the_squared_error():
    x = torch.rand(2, 3, 4, 4, generator=rng())
    assert Reconstruction().loss(x + 0.5, x).item() == pytest.approx(0.25)


def test_agreement_sends_no_gradient_to_its_target():
    for task in (Segmentation(("a", "b")), Depth(), Normals(), Edges(), Reconstruction()):
        y, target = (
            torch.randn(1, task.channels, 4, 4, generator=rng(s), requires_grad=True) for s in (0, 1)
        )
        task.agreement(y, target).backward()
        assert y.grad is not None, task.name
        assert y.grad.abs().sum() > 0, task.name
        assert target.grad is None, task.name


def test_the_sum_weighs_tasks_and_leaves_out_those_without_a_label():
    tasks = {"depth": Depth(), "edge": Edges()}
    y = {"depth": torch.ones(1, 1, 2, 2), "edge": torch.zeros(1, 1, 2, 2)}
    depth, edge = torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 2, 2)
    assert total_loss(tasks, y, {"depth": depth}).item() == pytest.approx(1.0)
    both = total_loss(tasks, y, {"depth": depth, "edge": edge}).item()
    assert both == pytest.approx(1.0 + 50 * 0.95 * np.log(2), rel=1e-6)
    with pytest.raises(ValueError, match="no label for any"):
        total_loss(tasks, y, {"normals": depth})


def test_a_label_that_is_ignored_everywhere_costs_nothing_and_moves_nothing():
    nothing = {"semseg": torch.full((1, 2, 2), IGNORE), "normals": torch.full((1, 3, 2, 2), torch.nan)}
    tasks = {"semseg": Segmentation(("a", "b")), "normals": Normals()}
    y = {
        "semseg": torch.randn(1, 2, 2, 2, requires_grad=True),
        "normals": torch.randn(1, 3, 2, 2, requires_grad=True),
    }
    loss = total_loss(tasks, y, nothing)
    loss.backward()
    assert loss == 0
    assert y["semseg"].grad.abs().max() == 0
    assert y["normals"].grad.abs().max() == 0


def test_tasks_are_found_on_a_model_and_classes_in_its_answer():
    tasks = {"semseg": Segmentation(("a", "b")), "depth": Depth()}
    net = MultiTaskNet(nn.Conv2d(3, 4, 1), {k: nn.Conv2d(4, t.channels, 1) for k, t in tasks.items()}, tasks)
    assert tasks_of(nn.Sequential(net)) == tasks
    assert tasks_of(nn.Linear(2, 2)) == {}
    y = net(torch.rand(1, 3, 4, 4))
    assert class_logits(y, tasks) is y["semseg"]
    with pytest.raises(ValueError, match="logits over classes"):
        class_logits({"depth": y["depth"]}, tasks)


def test_a_segmentation_needs_classes():
    with pytest.raises(ValueError, match="two classes"):
        Segmentation(("one",))
