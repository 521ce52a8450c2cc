"""ClusT3: the information recomputed in numpy, its slope by differences, what moves, and who must be taught first."""

import copy

import dense_world
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime import sgd, state_hash
from testtime.methods import ClusT3
from testtime.multitask import Assisted
from testtime.multitask.training import Joint
from testtime.norm import running_statistics
from testtime.source.clust3 import Projectors


def information(weight: np.ndarray, bias: np.ndarray, rows: np.ndarray) -> float:
    """I(X; Z) as the mean divergence of the assignments from their mean, which is the same thing."""
    logits = rows @ weight.T + bias
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return float((p * np.log(p / p.mean(0))).sum(1).mean())


def rows_of(z: Tensor) -> np.ndarray:
    z = z.detach()
    return (z.permute(0, 2, 3, 1).reshape(-1, z.shape[1]) if z.dim() == 4 else z).numpy()


def test_the_information_is_averaged_over_projectors_and_layers() -> None:
    torch.manual_seed(0)
    branch = Projectors([3, 5], clusters=4, projectors=2, layers=("a", "b")).double()
    seen = [torch.randn(2, 3, 4, 6).double(), torch.randn(7, 5).double()]
    expected = [
        information(w, b, rows_of(z))
        for linear, z in zip(branch.project, seen, strict=True)
        for w, b in zip(
            linear.weight.detach().numpy().reshape(2, 4, -1),
            linear.bias.detach().numpy().reshape(2, 4),
            strict=True,
        )
    ]
    assert len(expected) == 4
    assert branch(seen).item() == pytest.approx(np.mean(expected), abs=1e-12)
    loss = branch.source_loss(nn.Identity(), torch.rand(1), seen, {}, torch.Generator())
    assert loss["clusters"].item() == pytest.approx(-np.mean(expected), abs=1e-12)


def test_certain_and_evenly_spread_assignments_hold_log_k() -> None:
    branch = Projectors([4], clusters=4).double()
    with torch.no_grad():
        branch.project[0].weight.copy_(50 * torch.eye(4))
        branch.project[0].bias.zero_()
    assert branch([torch.eye(4).double()]).item() == pytest.approx(np.log(4))
    assert branch([torch.eye(4).double()[[0, 0, 0]]]).item() == pytest.approx(0)


def test_a_step_climbs_the_information_of_a_classifier(net: nn.Module, stream: list[Tensor]) -> None:
    clust3 = ClusT3(net, sgd(0.1, momentum=0.0), clusters=3, layers=("bn2",))
    clust3.prepare(stream[:2])
    linear = clust3.branch.project[0]
    own = copy.deepcopy(net)
    maps: list[Tensor] = []
    own.bn2.register_forward_hook(lambda module, inputs, output: maps.append(output))

    def loss() -> float:
        maps.clear()
        own.train()(stream[5])
        return -information(linear.weight.numpy(), linear.bias.numpy(), rows_of(maps[0]))

    slope = dense_world.differences(loss, own.bn1.weight.detach())
    before = {k: v.clone() for k, v in clust3.named_parameters()}
    y = clust3(stream[5])
    own.train()
    torch.testing.assert_close(y.logits, own(stream[5]).detach(), rtol=0, atol=1e-10)
    moved = {k for k, v in clust3.named_parameters() if not v.equal(before[k])}
    name = next(k for k in before if k.endswith("bn1.layer.weight"))
    np.testing.assert_allclose(
        clust3.get_parameter(name).detach().numpy(), before[name].detach().numpy() - 0.1 * slope, atol=1e-8
    )
    assert {k.split("network.")[-1].split(".")[0] for k in moved} == {"conv1", "bn1", "conv2", "bn2"}
    assert np.abs(slope).max() > 1e-4


def test_a_multi_task_network_keeps_its_heads_and_gains_information() -> None:
    net, x = dense_world.network(), dense_world.batch()
    branch = Projectors([6], clusters=4, projectors=3).double()
    clust3 = ClusT3(Assisted(net, branch), sgd(1.0, momentum=0.0))
    assert clust3.source == "none"

    encoder = copy.deepcopy(net.encoder)
    loss = -torch.stack(
        [
            torch.special.entr(p.mean(0)).sum() - torch.special.entr(p).sum(1).mean()
            for p in branch.project[0](dense_world.by_batch(encoder, x).movedim(1, -1).flatten(0, 2))
            .unflatten(1, (3, 4))
            .softmax(-1)
            .unbind(1)
        ]
    ).mean()
    slopes = torch.autograd.grad(loss, list(encoder.parameters()))
    y = clust3(x)
    assert list(y) == list(dense_world.TASKS)
    assert y.updated
    moved = dict(clust3.model.network.network.named_parameters())
    for (name, p), g in zip(encoder.named_parameters(), slopes, strict=True):
        first, last = name.split(".")
        mine = moved.get(f"encoder.layer.{name}", moved.get(f"encoder.layer.{first}.layer.{last}"))
        torch.testing.assert_close(mine.detach(), p.detach() - g, rtol=0, atol=1e-10)
    for name, p in net.heads.named_parameters():
        assert moved[f"heads.{name}"].equal(p)
    for p, q in zip(clust3.branch.parameters(), branch.parameters(), strict=True):
        assert p.equal(q)

    for _ in range(5):
        clust3(x)
    with torch.no_grad():
        later = branch([dense_world.by_batch(_copied(clust3, net), x)])
    assert later.item() > -loss.item() + 1e-4


def _copied(clust3: ClusT3, net: nn.Module) -> nn.Module:
    """A plain encoder with the adapted weights."""
    encoder = copy.deepcopy(net.encoder)
    with torch.no_grad():
        for p, q in zip(encoder.parameters(), clust3._adapted, strict=True):
            p.copy_(q)
    return encoder


def test_joint_training_adds_the_loss_to_those_of_the_tasks() -> None:
    net, x = dense_world.network(), dense_world.batch()
    branch = Projectors([5, 6], layers=("encoder.0", "encoder")).double()
    joint = Joint(Assisted(net, branch))
    total, parts = joint(x, dense_world.labels(), torch.Generator())
    with torch.no_grad():
        first = net.encoder[0](x)
        expected = -branch([first, net.encoder(x)]).item()
    assert parts["clusters"].item() == pytest.approx(expected, abs=1e-12)
    assert total.item() == pytest.approx(
        sum(t.weight * parts[k].item() for k, t in dense_world.TASKS.items()) + expected
    )
    total.backward()
    assert branch.project[0].weight.grad.abs().max() > 0


def test_prepare_trains_the_projectors_and_only_them() -> None:
    net, batches = dense_world.network(), [dense_world.batch(i) for i in range(1, 4)]
    clust3 = ClusT3(net, clusters=4)
    assert clust3.source == "data"
    with pytest.raises(RuntimeError, match=r"call adapter.prepare\(batches\)"):
        clust3(batches[0])
    with pytest.raises(ValueError, match="got none"):
        clust3.prepare([])
    before = [p.clone() for p in clust3.model.parameters()]

    def known() -> float:
        with torch.no_grad():
            return float(np.mean([clust3.branch([dense_world.by_batch(net.encoder, x)]) for x in batches]))

    unlearned = known()
    clust3.prepare(iter(batches))
    learned, taught = known(), state_hash(clust3)
    assert learned > 3 * unlearned
    assert all(p.equal(q) for p, q in zip(clust3.model.parameters(), before, strict=True))
    clust3(batches[0])
    clust3.prepare(batches)
    assert state_hash(clust3) == taught
    with pytest.raises(TypeError, match="images alone"):
        clust3.prepare([(batches[0], torch.zeros(4))])


def test_running_statistics_move_once_a_step() -> None:
    net, x = dense_world.network(), dense_world.batch()
    clust3 = ClusT3(Assisted(net, Projectors([6]).double()), norm=running_statistics)
    clust3(x)
    first = net.encoder[0](x)
    policy = clust3.model.network.network.encoder.layer[1]
    torch.testing.assert_close(policy.mean, 0.1 * first.mean((0, 2, 3)).detach(), rtol=0, atol=1e-12)


def test_layers_that_cannot_be_read_are_refused() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    with pytest.raises(ValueError, match="nothing to adapt"):
        ClusT3(net)
    with pytest.raises(ValueError, match="does not say how many channels"):
        ClusT3(net, layers=("0",))
    tokens = ClusT3(
        nn.Sequential(nn.Flatten(2), nn.Linear(4, 3), nn.Flatten(), nn.Linear(9, 2)), layers=("1",)
    )
    with pytest.raises(ValueError, match=r"expected feature maps \(N, 3, h, w\)"):
        tokens.prepare([torch.rand(2, 3, 2, 2)])
    with pytest.raises(ValueError, match="at least two clusters"):
        Projectors([3], clusters=1)
