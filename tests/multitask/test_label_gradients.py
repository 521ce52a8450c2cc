"""Gradients of S4T's loss against those of labels: recomputed by finite differences and in numpy; the rows made of them."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import nn

from testtime.data import DenseSet, Sample
from testtime.multitask import Assisted, Depth, Edges, MultiTaskNet, Synchronizer, SynchronizerOptions
from testtime.multitask.ceiling import Answers, network_of
from testtime.multitask.gradients import LOSSES, alignment, gradients, losses_of, pulls, qualities
from testtime.multitask.variants import LabelledSynchronizer, Reversed
from testtime.norm import source_statistics
from testtime.parts.optimizers import sgd
from testtime.parts.randomness import generator

TASKS = {"depth": Depth(), "edge": Edges()}


class Few(DenseSet):
    name, tasks = "few", ("depth", "edge")

    def __len__(self):
        return 6

    def __getitem__(self, index):
        image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(index))
        return Sample(image, {"depth": image[:1] * 2, "edge": (image[1:2] > 0.5).float()})


def model():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.BatchNorm2d(5), nn.Tanh())
    net = MultiTaskNet(encoder, {k: nn.Conv2d(5, 1, 1) for k in TASKS}, TASKS)
    return Assisted(net, Synchronizer(TASKS, 5, 4, 8, 2, 8, 1, 1, 2, SynchronizerOptions(ratio=0.5))).eval()


def batch(first=0, count=2):
    return Few().batch(range(first, first + count))


def parameters(m):
    return list(m.network.encoder.parameters())


def unit(v):
    return v / np.linalg.norm(v)


def test_gradients_are_the_slopes_of_the_losses():
    m, (x, labels) = model().double(), batch()
    x, labels = x.double(), {name: y.double() for name, y in labels.items()}
    losses = losses_of(m, m.branch, x, labels)
    slopes = {loss: gradients(losses[loss], parameters(m)) for loss in losses}
    assert set(losses) == {"labels", *LOSSES} - {"labels of the next batch"}
    rng = np.random.default_rng(0)
    for loss in ("labels", "labels through the synchronizer"):  # no target that moves along
        for name in TASKS:
            slope = slopes[loss][name].numpy()
            along, step, values = rng.normal(size=slope.shape), 1e-5, []
            for sign in (1, -1):
                moved, at = copy.deepcopy(m), 0
                for p in parameters(moved):
                    part = along[at : at + p.numel()].reshape(p.shape)
                    p.data += sign * step * torch.from_numpy(part)
                    at += p.numel()
                values.append(losses_of(moved, moved.branch, x, labels)[loss][name].item())
            assert slope @ along == pytest.approx((values[0] - values[1]) / 2 / step, rel=1e-5)


def test_losses_are_those_of_their_names():
    m, (x, labels) = model(), batch()
    z = m.network.encoder(x)
    y = {name: head(z) for name, head in m.network.heads.items()}
    y = {name: nn.functional.interpolate(one, (8, 8), mode="bilinear") for name, one in y.items()}
    seen = [m.branch.draw(2, generator(3, i, "mask")) for i in range(8)]
    masked = [m.branch(z, (8, 8), tokens)[1]["depth"].detach().numpy() for tokens in seen]
    whole = m.branch(z, (8, 8), None)[1]["depth"].detach().numpy()
    head, label = y["depth"].detach().numpy(), labels["depth"].numpy()
    found = {name: one["depth"].item() for name, one in losses_of(m, m.branch, x, labels, seed=3).items()}
    expected = {
        "labels": np.abs(head - label).mean(),
        "S4T": np.abs(masked[0] - head).mean(),
        "S4T, released loss": np.abs(masked[0] - head).mean(),
        "S4T, nothing masked": np.abs(whole - head).mean(),
        "S4T, mean of 8 masks": np.mean([np.abs(one - head).mean() for one in masked]),
        "labels through the synchronizer": np.abs(masked[0] - label).mean(),
        "heads learn the synchronizer": np.abs(whole - head).mean(),
    }
    assert found == pytest.approx(expected, rel=1e-5)
    edge = losses_of(m, m.branch, x, labels, seed=3)["labels"]["edge"].item()
    logit, edges = y["edge"].detach().double().numpy(), labels["edge"].numpy()
    both = 0.95 * edges * np.log1p(np.exp(-logit)) + 0.05 * (1 - edges) * np.log1p(np.exp(logit))
    assert edge == pytest.approx(50 * both.mean(), rel=1e-4)
    # S4T and its reverse have the same value and another gradient: the target stands still
    losses = losses_of(m, m.branch, x, labels)
    one, other = (
        gradients(losses[name], parameters(m))["depth"].numpy()
        for name in ("S4T, nothing masked", "heads learn the synchronizer")
    )
    assert not np.allclose(one, other)


def test_alignment_is_cosines_and_shares():
    rng = np.random.default_rng(1)
    pull = {name: rng.normal(size=7) * scale for name, scale in (("depth", 1.0), ("edge", 20.0))}
    labelled = {name: rng.normal(size=7) for name in pull}
    found = alignment(*({k: torch.from_numpy(v) for k, v in one.items()} for one in (pull, labelled)))
    whole, target = pull["depth"] + pull["edge"], labelled["depth"] + labelled["edge"]
    assert found["cosines"] == pytest.approx(
        {
            **{name: unit(pull[name]) @ unit(labelled[name]) for name in pull},
            "all": unit(whole) @ unit(target),
            "equal": unit(unit(pull["depth"]) + unit(pull["edge"])) @ unit(target),
        }
    )
    assert found["shares"] == pytest.approx({name: pull[name] @ whole / (whole @ whole) for name in pull})
    assert sum(found["shares"].values()) == pytest.approx(1)


def test_pulls_are_means_over_batches_and_leave_the_model_alone():
    m = model()
    for p in m.parameters():
        p.requires_grad_(False)
    found = pulls(m, Few(), batch=2, batches=2, seed=5)
    assert set(found) == set(LOSSES)
    assert not any(p.requires_grad or p.grad is not None for p in m.parameters())
    m = model()
    slopes = []
    for i in range(3):
        x, labels = batch(2 * i)
        slopes.append(
            {n: gradients(one, parameters(m)) for n, one in losses_of(m, m.branch, x, labels, 5 + i).items()}
        )
    for loss, name in (("S4T", "depth"), ("heads learn the synchronizer", "edge")):
        cosines = [unit(s[loss][name].numpy()) @ unit(s["labels"][name].numpy()) for s in slopes[:2]]
        assert found[loss]["cosines"][name] == pytest.approx(np.mean(cosines), rel=1e-4)
    following = [
        unit(b["labels"]["depth"].numpy()) @ unit(a["labels"]["depth"].numpy()) for a, b in pairwise(slopes)
    ]
    assert found["labels of the next batch"]["cosines"]["depth"] == pytest.approx(
        np.mean(following), rel=1e-4
    )
    with pytest.raises(ValueError, match="at least two batches of 6 images, got 6"):
        pulls(m, Few(), batch=6)


def test_qualities_are_the_metrics_of_heads_and_synchronizer():
    m = model()
    found = qualities(m, Few(), TASKS, batch=6, seed=2)
    x, labels = batch(0, 6)
    z = m.network.encoder(x)
    label = labels["depth"].numpy()
    seen = m.branch.draw(6, generator(2, 0, "mask"))
    answers = m(x)["depth"], m.branch(z, (8, 8), seen)[1]["depth"], m.branch(z, (8, 8))[1]["depth"]
    for kind, y in zip(found, answers, strict=True):
        rmse = np.sqrt(np.square(y.detach().numpy() - label).mean())
        assert found[kind]["depth"] == pytest.approx(rmse, rel=1e-5)


def moved(adapter, m):
    pairs = zip(network_of(adapter).encoder.parameters(), parameters(m), strict=True)
    return torch.cat([(a - b).flatten() for a, b in pairs]).detach().double().numpy()


def test_a_reversed_step_follows_its_gradient_and_leaves_the_synchronizer():
    m, (x, labels) = model(), batch()
    slopes = gradients(losses_of(m, m.branch, x, labels)["heads learn the synchronizer"], parameters(m))
    plain = Reversed(m, sgd(0.1, momentum=0.0), norm=source_statistics)
    plain(x)
    expected = -0.1 * 0.01 * sum(slope.numpy() for slope in slopes.values())
    assert moved(plain, m) == pytest.approx(expected, rel=1e-2, abs=1e-7)
    equal = Reversed(m, sgd(0.1, momentum=0.0), equal=True, norm=source_statistics)
    equal(x)
    assert moved(equal, m) == pytest.approx(
        -0.1 * sum(unit(s.numpy()) for s in slopes.values()), rel=1e-3, abs=1e-6
    )
    branches = [one for one in equal.modules() if isinstance(one, Synchronizer)]
    assert all(
        torch.equal(a, b) for a, b in zip(branches[0].parameters(), m.branch.parameters(), strict=True)
    )


def test_labels_through_the_synchronizer_follow_their_gradient():
    m, (x, labels) = model(), batch()
    ceiling = LabelledSynchronizer(m, Answers(Few()), sgd(0.1, momentum=0.0), norm=source_statistics)
    seen = m.branch.draw(2, generator(0, int(ceiling.clock), "mask"))
    ceiling(x)
    y = m.branch(m.network.encoder(x), (8, 8), seen)[1]
    losses = {name: task.weight * task.loss(y[name], labels[name]) for name, task in TASKS.items()}
    slopes = gradients(losses, parameters(m))
    expected = -0.1 * 0.01 * sum(slope.numpy() for slope in slopes.values())
    assert moved(ceiling, m) == pytest.approx(expected, rel=1e-3, abs=1e-7)
