"""NC-TTT: posterior and losses recomputed in numpy, what the discriminator converges to, its slope, and what moves."""

import copy

import dense_world
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime import sgd, state_hash
from testtime.methods import NCTTT
from testtime.methods.nc_ttt import NCTTTOptions
from testtime.multitask import Assisted
from testtime.multitask.training import Joint
from testtime.norm import running_statistics
from testtime.source.nc_ttt import NoiseDiscriminator, in_distribution


def gauss(x: np.ndarray, deviation: float) -> np.ndarray:
    """The density of each row, as a product of densities on the line."""
    return (np.exp(-0.5 * (x / deviation) ** 2) / (deviation * np.sqrt(2 * np.pi))).prod(-1)


def judged(branch: NoiseDiscriminator, z: np.ndarray) -> np.ndarray:
    first, _, last = branch.discriminate
    w, b = first.weight.detach().numpy(), first.bias.detach().numpy()
    hidden = np.maximum(z @ w.T + b, 0)
    return (hidden @ last.weight.detach().numpy().T + last.bias.detach().numpy())[:, 0]


def projected(branch: NoiseDiscriminator, z: Tensor) -> np.ndarray:
    rows = np.moveaxis(z.detach().numpy(), 1, -1).reshape(-1, z.shape[1])
    return rows @ branch.project.weight.detach().numpy().T + branch.project.bias.detach().numpy()


def negative_log_odds(branch: NoiseDiscriminator, z: Tensor, sign: int = 1) -> float:
    """L_test; the published file has the sign -1."""
    raw = projected(branch, z)
    standard = (raw - branch.mean.numpy()) / np.sqrt(branch.var.numpy() + 1e-5)
    return float(np.log1p(np.exp(-sign * judged(branch, standard))).mean())


def test_the_posterior_is_that_of_two_gaussians() -> None:
    noise = 0.3 * torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    little, much = gauss(noise.numpy(), 0.2), gauss(noise.numpy(), 0.7)
    np.testing.assert_allclose(in_distribution(noise, 0.2, 0.7).numpy(), little / (little + much), rtol=1e-12)


def test_the_source_loss_by_hand_and_the_averages_it_leaves() -> None:
    torch.manual_seed(0)
    branch = NoiseDiscriminator(5, width=3, hidden=7, small=0.3, large=0.8).double()
    maps = [torch.randn(2, 5, 4, 6).double() + i for i in range(3)]
    means, variances = [], []
    for step, z in enumerate(maps):
        loss = branch.source_loss(nn.Identity(), torch.rand(1), [z], {}, torch.Generator().manual_seed(step))
        raw = projected(branch, z)
        means.append(raw.mean(0))
        variances.append(raw.var(0))
        standard = (raw - means[-1]) / np.sqrt(variances[-1] + 1e-5)
        rng, parts = torch.Generator().manual_seed(step), []
        for deviation in (0.3, 0.8):
            noise = deviation * torch.randn(standard.shape, generator=rng).double().numpy()
            little, much = gauss(noise, 0.3), gauss(noise, 0.8)
            t, q = little / (little + much), 1 / (1 + np.exp(-judged(branch, standard + noise)))
            parts.append(-(t * np.log(q) + (1 - t) * np.log(1 - q)).mean())
        assert loss["noise"].item() == pytest.approx(np.mean(parts), abs=1e-6)  # noise is drawn in float32
    np.testing.assert_allclose(branch.mean.numpy(), np.mean(means, 0), atol=1e-12)
    np.testing.assert_allclose(branch.var.numpy(), np.mean(variances, 0), atol=1e-12)
    assert branch.batches == 3
    assert branch.project.out_features == 3


def test_it_learns_the_log_ratio_of_the_blurred_densities() -> None:
    """A source of two points, -1 and 1 on a line: the ratio is known in closed form."""
    torch.manual_seed(0)
    branch = NoiseDiscriminator(1, hidden=32, small=0.3, large=0.9)
    with torch.no_grad():
        branch.project.weight.fill_(1), branch.project.bias.zero_()
    branch.project.requires_grad_(False)
    z = torch.tensor([-1.0, 1.0]).repeat(256)[:, None]
    optimizer = torch.optim.Adam(branch.discriminate.parameters(), 1e-2)
    for step in range(400):
        rng = torch.Generator().manual_seed(step)
        optimizer.zero_grad()
        branch.source_loss(nn.Identity(), z, [z], {}, rng)["noise"].backward()
        optimizer.step()
    at = np.linspace(-1.6, 1.6, 33)[:, None]
    blurred = [sum(gauss(at - c, s) for c in (-1.0, 1.0)) for s in (0.3, 0.9)]
    with torch.no_grad():
        learned = branch(torch.tensor(at, dtype=torch.float32)).sigmoid().numpy()
    np.testing.assert_allclose(learned, blurred[0] / (blurred[0] + blurred[1]), atol=0.08)


@pytest.mark.parametrize("opposite", [False, True])
def test_a_step_follows_the_slope_of_a_classifier(
    net: nn.Module, stream: list[Tensor], opposite: bool
) -> None:
    ncttt = NCTTT(net, sgd(0.1, momentum=0.0), options=NCTTTOptions(width=4), opposite=opposite)
    ncttt.prepare(stream[:2])
    own = copy.deepcopy(net)
    given: list[Tensor] = []
    own.fc.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))

    def loss() -> float:
        given.clear()
        own.train()(stream[5])
        return negative_log_odds(ncttt.branch, given[0], -1 if opposite else 1)

    slope = dense_world.differences(loss, own.bn2.bias.detach())
    before = {k: v.clone() for k, v in ncttt.named_parameters()}
    y = ncttt(stream[5])
    torch.testing.assert_close(y.logits, own.train()(stream[5]).detach(), rtol=0, atol=1e-10)
    name = next(k for k in before if k.endswith("bn2.layer.bias"))
    moved = ncttt.get_parameter(name).detach().numpy()
    np.testing.assert_allclose(moved, before[name].detach().numpy() - 0.1 * slope, atol=1e-8)
    assert np.abs(slope).max() > 1e-4
    still = {k for k, v in ncttt.named_parameters() if v.equal(before[k])}
    biases = {"conv1.bias", "conv2.bias"}  # before a BatchNorm, their gradient is mere rounding
    assert all("fc" in k or "branch" in k or k.endswith(tuple(biases)) for k in still), still


def test_a_multi_task_network_moves_its_encoder_towards_the_source() -> None:
    net, batches = dense_world.network(), [dense_world.batch(i, 8) for i in range(1, 5)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        branch = NoiseDiscriminator(6, width=4).double()
    encoder = copy.deepcopy(net.encoder)
    optimizer = torch.optim.Adam(branch.parameters(), 1e-2)
    for step in range(60):
        z = dense_world.by_batch(encoder, batches[step % 4]).detach()
        optimizer.zero_grad()
        branch.source_loss(net, z, [z], {}, torch.Generator().manual_seed(step))["noise"].backward()
        optimizer.step()
    x = (0.3 * batches[0] + 0.7 * dense_world.batch(9, 8) ** 4).clone()

    ncttt = NCTTT(Assisted(net, branch), sgd(0.05, momentum=0.0))
    assert ncttt.source == "none"
    z = dense_world.by_batch(encoder, x)
    loss = torch.log1p(torch.exp(-branch(z))).mean()
    assert loss.item() == pytest.approx(negative_log_odds(branch, z), abs=1e-12)
    slopes = torch.autograd.grad(loss, list(encoder.parameters()))
    y = ncttt(x)
    assert list(y) == list(dense_world.TASKS)
    z_by_head = net.heads["depth"](z)
    expected = nn.functional.interpolate(z_by_head, (8, 8), mode="bilinear").detach()
    torch.testing.assert_close(y["depth"], expected, rtol=0, atol=1e-10)
    for p, q, g in zip(ncttt._adapted, encoder.parameters(), slopes, strict=True):
        torch.testing.assert_close(p.detach(), q.detach() - 0.05 * g, rtol=0, atol=1e-10)
    for name, p in net.heads.named_parameters():
        assert ncttt.model.get_parameter(f"network.network.heads.{name}").equal(p)

    for _ in range(20):
        ncttt(x)
    with torch.no_grad():
        for p, q in zip(encoder.parameters(), ncttt._adapted, strict=True):
            p.copy_(q)
    assert negative_log_odds(branch, dense_world.by_batch(encoder, x)) < loss.item() - 0.005


def test_joint_training_adds_the_loss_and_reaches_the_encoder() -> None:
    net, x = dense_world.network().float(), dense_world.batch().float()
    labels = {k: y.float() if y.is_floating_point() else y for k, y in dense_world.labels().items()}
    branch = NoiseDiscriminator(5, width=4, layer="encoder.0")
    other = copy.deepcopy(branch)
    joint = Joint(Assisted(net, branch))
    _, parts = joint(x, labels, torch.Generator().manual_seed(3))
    z = net.encoder[0](x)
    expected = other.source_loss(net, x, [z], {}, torch.Generator().manual_seed(3))["noise"]
    assert parts["noise"].item() == pytest.approx(expected.item(), abs=1e-6)
    assert torch.autograd.grad(expected, net.encoder[0].weight)[0].abs().max() > 0
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total, _ = joint(x, labels, torch.Generator())
    assert total.isfinite()


def test_it_must_be_prepared_and_forgets_a_former_prepare() -> None:
    batches = [dense_world.batch(i) for i in range(1, 4)]
    ncttt = NCTTT(dense_world.network(), options=NCTTTOptions(passes=3))
    with pytest.raises(RuntimeError, match=r"call adapter.prepare\(batches\)"):
        ncttt(batches[0])
    ncttt.prepare(batches)
    taught = state_hash(ncttt)
    assert ncttt.branch.batches == 9
    other = NCTTT(dense_world.network(), options=NCTTTOptions(passes=3))
    other.load_state_dict(ncttt.state_dict())
    assert other(batches[0]).updated
    other.prepare(batches)
    assert state_hash(other) == taught
    different = NCTTT(dense_world.network(), options=NCTTTOptions(passes=3), seed=1)
    different.prepare(batches)
    assert not different.branch.project.weight.equal(ncttt.branch.project.weight)


def test_running_statistics_and_bad_settings() -> None:
    net, x = dense_world.network(), dense_world.batch()
    ncttt = NCTTT(Assisted(net, NoiseDiscriminator(6).double()), norm=running_statistics)
    ncttt(x)
    policy = ncttt.model.network.network.encoder.layer[1]
    first = net.encoder[0](x).mean((0, 2, 3)).detach()
    torch.testing.assert_close(policy.mean, 0.1 * first, rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="0 < small < large"):
        NoiseDiscriminator(6, small=0.5, large=0.5)
