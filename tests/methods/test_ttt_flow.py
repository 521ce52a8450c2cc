"""TTTFlow: the flow against its Jacobian, its inverse, numpy and an integral; what it learns; what a step moves."""

import copy
import math

import dense_world
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime import sgd, state_hash
from testtime.methods import TTTFlow
from testtime.multitask import Assisted
from testtime.multitask.training import Joint
from testtime.norm import running_statistics
from testtime.source.ttt_flow import Coupling, Flow


def bent(channels: int, couplings: int = 3) -> Flow:
    """A flow that is far from the identity, in float64."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        flow = Flow(channels, couplings, hidden=8).double()
        for coupling in flow.couplings:
            nn.init.normal_(coupling.last.weight, std=0.5)
            nn.init.normal_(coupling.last.bias, std=0.5)
        flow.mean.copy_(torch.randn(channels))
        flow.var.copy_(torch.rand(channels) + 0.2)
    return flow


def negative_log_likelihood(flow: Flow, z: np.ndarray) -> np.ndarray:
    """In nats per dimension, coupling by coupling."""
    var = flow.var.numpy()
    scale = np.sqrt(var + 0.01 * var.mean() + 1e-6)
    u, log_det, d = (z - flow.mean.numpy()) / scale, -np.log(scale).sum(), z.shape[1]
    for i, coupling in enumerate(flow.couplings):
        layers = [coupling.first[0], coupling.first[2], coupling.last]
        given, changed = np.arange(d // 2), np.arange(d // 2, d)
        if i % 2:
            given, changed = changed, given
        h = u[:, given]
        for k, linear in enumerate(layers):
            h = h @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
            h = np.maximum(h, 0) if k < 2 else h
        s, t = np.tanh(h[:, : len(changed)]), h[:, len(changed) :]
        u = u.copy()
        u[:, changed] = u[:, changed] * np.exp(s) + t
        log_det = log_det + s.sum(1)
    return -(np.log(np.exp(-0.5 * u**2) / np.sqrt(2 * np.pi)).sum(1) + log_det) / d


def rows_of(z: Tensor) -> np.ndarray:
    return np.moveaxis(z.detach().numpy(), 1, -1).reshape(-1, z.shape[1])


def test_the_likelihood_by_hand_of_vectors_and_of_maps() -> None:
    rng = torch.Generator().manual_seed(1)
    flow, vectors = bent(5), torch.randn(7, 5, generator=rng, dtype=torch.float64)
    np.testing.assert_allclose(flow(vectors).detach(), negative_log_likelihood(flow, vectors.numpy()))
    maps = torch.randn(2, 5, 3, 4, generator=rng, dtype=torch.float64)
    np.testing.assert_allclose(flow(maps).detach(), negative_log_likelihood(flow, rows_of(maps)))


@pytest.mark.parametrize("channels", [2, 5])
def test_the_log_determinant_is_that_of_the_jacobian_and_the_inverse_inverts(channels: int) -> None:
    flow, rng = bent(channels), torch.Generator().manual_seed(1)
    z = torch.randn(4, channels, generator=rng, dtype=torch.float64)
    u, log_det = flow.transform(z)
    for row, value in zip(z, log_det, strict=True):
        jacobian = torch.func.jacrev(lambda v: flow.transform(v[None])[0][0])(row)
        assert torch.linalg.slogdet(jacobian).logabsdet.item() == pytest.approx(value.item(), abs=1e-10)
    torch.testing.assert_close(flow.inverse(u), z, rtol=0, atol=1e-12)
    assert (u - z).abs().max() > 0.5


def test_the_density_integrates_to_one() -> None:
    line = torch.linspace(-12, 12, 481, dtype=torch.float64)
    plane = torch.cartesian_prod(line, line)
    density = torch.exp(-2 * bent(2)(plane))
    assert density.sum().item() * 0.05**2 == pytest.approx(1, abs=1e-4)


def test_a_new_coupling_changes_nothing() -> None:
    u = torch.randn(3, 5)
    v, log_det = Coupling(5, 4, swapped=True)(u)
    assert v.equal(u)
    assert log_det.equal(torch.zeros(3))


def test_it_learns_a_dependence_that_averages_miss() -> None:
    """z_2 = z_1^2 / 2 + noise: the entropy is known, and that of independent Gaussians is 0.3 nats above."""
    torch.manual_seed(0)
    flow = Flow(2, couplings=4, hidden=32)
    optimizer = torch.optim.Adam(flow.parameters(), 1e-2)
    for _ in range(150):
        first = torch.randn(512, 1)
        z = torch.cat([first, 0.5 * first**2 + 0.3 * torch.randn(512, 1)], 1)
        optimizer.zero_grad()
        flow.source_loss(nn.Identity(), z, [z], {}, torch.Generator())["flow"].backward()
        optimizer.step()
    entropy = 0.5 * (1 + math.log(2 * math.pi)) + 0.5 * math.log(0.3)  # per dimension
    apart = 0.5 * (1 + math.log(2 * math.pi)) + 0.25 * math.log(0.3**2 + 0.5)
    with torch.no_grad():
        learned = flow(z).mean().item()
    assert entropy - 0.06 < learned < entropy + 0.12 < apart


def test_a_step_follows_the_slope_of_a_classifier(net: nn.Module, stream: list[Tensor]) -> None:
    ttt_flow = TTTFlow(net, sgd(0.1, momentum=0.0, weight_decay=5e-4), layer="bn2")
    ttt_flow.prepare(stream[:2])
    own = copy.deepcopy(net)
    maps: list[Tensor] = []
    own.bn2.register_forward_hook(lambda module, inputs, output: maps.append(output))

    def loss() -> float:
        maps.clear()
        own.train()(stream[5])
        return float(negative_log_likelihood(ttt_flow.branch, rows_of(maps[0])).mean())

    slope = dense_world.differences(loss, own.bn2.weight.detach())
    before = {k: v.clone() for k, v in ttt_flow.named_parameters()}
    y = ttt_flow(stream[5])
    torch.testing.assert_close(y.logits, own.train()(stream[5]).detach(), rtol=0, atol=1e-10)
    name = next(k for k in before if "bn2" in k and k.endswith("weight"))
    old, new = before[name].detach().numpy(), ttt_flow.get_parameter(name).detach().numpy()
    np.testing.assert_allclose(new, old - 0.1 * (slope + 5e-4 * old), atol=1e-8)
    assert np.abs(slope).max() > 1e-3
    still = {k for k, v in ttt_flow.named_parameters() if v.equal(before[k])}
    assert {k for k in before if "fc" in k or "branch" in k} == still


def test_a_multi_task_network_moves_its_encoder_towards_likely_features() -> None:
    net, x = dense_world.network(), dense_world.batch()
    ttt_flow = TTTFlow(Assisted(net, bent(6)), sgd(0.02, momentum=0.0))
    assert ttt_flow.source == "none"
    encoder = copy.deepcopy(net.encoder)
    z = dense_world.by_batch(encoder, x)
    u, log_det = ttt_flow.branch.transform(z.movedim(1, -1).flatten(0, 2))
    normal = torch.distributions.Normal(0.0, 1.0)
    loss = -(normal.log_prob(u).sum(1) + log_det).mean() / 6
    slopes = torch.autograd.grad(loss, list(encoder.parameters()))
    y = ttt_flow(x)
    assert list(y) == list(dense_world.TASKS)
    expected = nn.functional.interpolate(net.heads["edge"](z), (8, 8), mode="bilinear").detach()
    torch.testing.assert_close(y["edge"], expected, rtol=0, atol=1e-10)
    for p, q, g in zip(ttt_flow._adapted, encoder.parameters(), slopes, strict=True):
        torch.testing.assert_close(p.detach(), q.detach() - 0.02 * g, rtol=0, atol=1e-10)
    for name, p in net.heads.named_parameters():
        assert ttt_flow.model.get_parameter(f"network.network.heads.{name}").equal(p)
    for _ in range(20):
        ttt_flow(x)
    with torch.no_grad():
        for p, q in zip(encoder.parameters(), ttt_flow._adapted, strict=True):
            p.copy_(q)
        later = negative_log_likelihood(ttt_flow.branch, rows_of(dense_world.by_batch(encoder, x))).mean()
    assert later < loss.item() - 0.05


def test_joint_training_leaves_the_encoder_to_the_tasks() -> None:
    net, x = dense_world.network(), dense_world.batch()
    joint = Joint(Assisted(net, Flow(6, hidden=8).double()))
    total, parts = joint(x, dense_world.labels(), torch.Generator())
    slope = torch.autograd.grad(total, net.encoder[0].weight)[0]
    alone = Joint(net)(x, dense_world.labels(), torch.Generator())[0]
    assert total.item() == pytest.approx(alone.item() + parts["flow"].item())
    torch.testing.assert_close(slope, torch.autograd.grad(alone, net.encoder[0].weight)[0])


def test_prepare_fits_the_flow_on_the_frozen_network() -> None:
    net, batches = dense_world.network(), [dense_world.batch(i, 8) for i in range(1, 4)]
    ttt_flow = TTTFlow(net)
    with pytest.raises(RuntimeError, match=r"call adapter.prepare\(batches\)"):
        ttt_flow(batches[0])
    ttt_flow.prepare(batches)
    rows = np.concatenate([rows_of(dense_world.by_batch(net.encoder, x)) for x in batches])
    independent = 0.5 * (1 + np.log(2 * np.pi)) + 0.5 * np.log(rows.var(0)).mean()
    assert negative_log_likelihood(ttt_flow.branch, rows).mean() < independent - 0.05
    np.testing.assert_allclose(ttt_flow.branch.mean.numpy(), rows.mean(0), atol=0.02)
    taught = state_hash(ttt_flow)
    ttt_flow(batches[0])
    ttt_flow.reset()
    assert state_hash(ttt_flow) == taught
    ttt_flow.prepare(batches)
    assert state_hash(ttt_flow) == taught


def test_running_statistics_and_bad_settings() -> None:
    net, x = dense_world.network(), dense_world.batch()
    ttt_flow = TTTFlow(Assisted(net, bent(6)), norm=running_statistics)
    ttt_flow(x)
    policy = ttt_flow.model.network.network.encoder.layer[1]
    first = net.encoder[0](x).mean((0, 2, 3)).detach()
    torch.testing.assert_close(policy.mean, 0.1 * first, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="two channels"):
        Flow(1)
