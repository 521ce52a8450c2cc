"""S4T: the loss of both presets recomputed in numpy, where its gradient goes, the statistics it leaves, what it needs."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from testtime import sgd
from testtime.methods import S4T
from testtime.multitask import (
    Assisted,
    Depth,
    Edges,
    MultiTaskNet,
    Normals,
    Segmentation,
    Synchronizer,
    SynchronizerOptions,
)
from testtime.norm import batch_statistics
from testtime.parts.randomness import generator

TASKS = {t.name: t for t in (Segmentation(("a", "b", "c")), Depth(), Normals(), Edges())}


def source(seed=0, **settings):
    torch.manual_seed(seed)
    encoder = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    net = MultiTaskNet(encoder, {k: nn.Conv2d(8, t.channels, 1) for k, t in TASKS.items()}, TASKS)
    small = {"features": 4, "size": 16, "patch": 4, "width": 8, "depth": 1, "decoder_depth": 1, "heads": 2}
    return Assisted(net, Synchronizer(TASKS, 8, **small, options=SynchronizerOptions(**settings))).double()


def batch(seed=0):
    return torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def outputs(model, x, step=0):
    """Main and synchronised outputs in train mode, computed beside the adapter."""
    model = copy.deepcopy(model).train()
    z = model.network.encoder(x)
    main = {
        k: nn.functional.interpolate(h(z), (16, 16), mode="bilinear") for k, h in model.network.heads.items()
    }
    _, tbs = model.branch(z, (16, 16), model.branch.draw(len(x), generator(0, step, "mask")))
    return model, main, tbs


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def by_hand(preset, main, tbs):
    m, t = ({k: v.detach().numpy() for k, v in y.items()} for y in (main, tbs))
    if preset == "released":
        weights = {"semseg": 1, "depth": 1, "normals": 100, "edge": 2500}  # every weight applied twice
        return sum(w * np.abs(t[k] - m[k]).sum(1).mean() for k, w in weights.items())
    semseg = -(softmax(m["semseg"]) * np.log(softmax(t["semseg"]))).sum(1).mean()
    unit = {
        k: v / np.linalg.norm(v, axis=1, keepdims=True) for k, v in (("m", m["normals"]), ("t", t["normals"]))
    }
    p, q = (1 / (1 + np.exp(-y["edge"])) for y in (m, t))
    edge = -(0.95 * p * np.log(q) + 0.05 * (1 - p) * np.log(1 - q)).mean()
    depth = np.abs(m["depth"] - t["depth"]).mean()
    return semseg + depth + 10 * np.abs(unit["t"] - unit["m"]).sum(1).mean() + 50 * edge


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_the_step_goes_down_the_papers_loss(preset):
    model, x = source(), batch()
    losses = []

    adapter = S4T(model, sgd(0.1), preset)
    update = adapter.update
    adapter.update = lambda loss: (losses.append(loss.item()), update(loss))
    y = adapter(x)
    trained, main, tbs = outputs(model, x)
    expected = 0.01 * by_hand(preset, main, tbs)
    assert losses == [pytest.approx(expected, rel=1e-6)]
    for name, value in main.items():
        torch.testing.assert_close(y[name], value.detach(), rtol=1e-9, atol=1e-9)

    if preset == "paper":  # one step of SGD on encoder and branch, from the loss written out in torch
        loss = 0.01 * sum(TASKS[k].weight * TASKS[k].agreement(tbs[k], main[k]) for k in TASKS)
        moved = dict(trained.named_parameters())
        grads = torch.autograd.grad(loss, list(moved.values()), allow_unused=True)
        kinds = {}
        mine = {k.replace(".layer.", "."): v for k, v in adapter.model.named_parameters()}
        mine = {
            k.removeprefix("network.").replace("encoder.1.layer", "encoder.1"): v for k, v in mine.items()
        }
        for (name, p), g in zip(moved.items(), grads, strict=True):
            kinds.setdefault(name.split(".")[1], set()).add(g is not None)
            expected_p = p if g is None else p - 0.1 * g
            torch.testing.assert_close(mine[name], expected_p, rtol=1e-7, atol=1e-9, msg=name)
        assert kinds["heads"] == kinds["read"] == {False}  # pseudo labels are detached
        assert kinds["encoder"] == kinds["project"] == kinds["predict"] == {True}


def test_forty_steps_replace_the_statistics_with_those_of_the_batch():
    model, x = source(), batch()
    adapter = S4T(model, sgd(0.0))
    for _ in range(40):
        adapter(x)
    conv = model.network.encoder[0]
    inside = conv(x).detach()
    mean, var = inside.mean((0, 2, 3)), inside.var((0, 2, 3), unbiased=True)
    state = adapter.state_dict()
    got = {k.rpartition(".")[2]: v for k, v in state.items() if k.endswith((".mean", ".var"))}
    share = 0.9**40  # 1.5 % of the source is left
    torch.testing.assert_close(got["mean"], share * torch.zeros(8).double() + (1 - share) * mean)
    torch.testing.assert_close(got["var"], share * torch.ones(8).double() + (1 - share) * var)


def test_every_step_draws_another_mask_and_the_same_again_after_a_reset():
    adapter, x = S4T(source(), sgd(0.0)), batch()
    drawn = []
    draw = adapter._branch.draw
    adapter._branch.draw = lambda *a: drawn.append(draw(*a)) or drawn[-1]
    for _ in range(2):
        adapter(x)
    adapter.reset()
    adapter(x)
    assert not torch.equal(drawn[0], drawn[1])
    assert torch.equal(drawn[0], drawn[2])


def test_single_task_and_reconstruction_and_every_norm_policy_run():
    x = batch()
    one = Synchronizer({"depth": Depth()}, 8, 4, 16, 4, 8, 1, 1, 2).double()
    y = S4T(Assisted(source().network, one))(x)
    assert set(y) == set(TASKS)
    assert y.updated
    assert S4T(source(reconstruct=True))(x).updated
    assert S4T(source(), norm=batch_statistics)(x).updated
    assert S4T(source(layout="per_task", strategy="hide", ratio=0.5))(x).updated


def test_it_asks_for_its_synchronizer_and_a_known_preset():
    with pytest.raises(ValueError, match="needs the synchronizer"):
        S4T(source().network)
    with pytest.raises(ValueError, match="preset is one of 'paper', 'released', got"):
        S4T(source(), preset="both")
