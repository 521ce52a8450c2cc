"""TIPI: the published loop in plain torch, its divergences in numpy, the signed step by differences."""

import copy

import dense_world
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime import adam, sgd
from testtime.methods import TIPI
from testtime.multitask import Depth, MultiTaskNet
from testtime.norm import running_statistics
from testtime.parts.randomness import generator

EPSILON = 2 / 255


def start(x: Tensor, step: int) -> Tensor:
    draws = torch.rand(x.shape, generator=generator(0, step, "start"))
    return ((2 * draws - 1) * EPSILON).double()


def kl(p: Tensor, q: Tensor) -> Tensor:
    return nn.functional.kl_div(q.log_softmax(1), p.log_softmax(1), reduction="batchmean", log_target=True)


def published(net: nn.Module, stream: list[Tensor], weight: float, reverse: bool) -> list[Tensor]:
    """The algorithm as a plain loop: two sets of statistics, both the batch's own."""
    net = copy.deepcopy(net).train().requires_grad_(False)
    parameters = []
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
            parameters += [m.weight.requires_grad_(True), m.bias.requires_grad_(True)]
    optimizer, answers = torch.optim.Adam(parameters, lr=1e-2), []

    def apart(moved: Tensor, z: Tensor) -> Tensor:
        return kl(moved, z) if reverse else kl(z, moved)

    for step, x in enumerate(stream):
        delta = start(x, step).requires_grad_(True)
        z = net(x)
        apart(net(x + delta), z.detach()).backward()
        worst = (delta.detach() + EPSILON * delta.grad.sign()).clamp(-EPSILON, EPSILON)
        loss = apart(net(x + worst), z.detach()) + weight * -(z.softmax(1) * z.log_softmax(1)).sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        answers.append(z.detach())
    return answers


@pytest.mark.parametrize(("weight", "reverse"), [(0.0, True), (1.0, True), (0.0, False)])
def test_equals_the_plain_loop(net: nn.Module, stream: list[Tensor], weight: float, reverse: bool) -> None:
    tipi = TIPI(net, adam(1e-2), entropy_weight=weight, reverse=reverse)
    for x, expected in zip(stream[:12], published(net, stream[:12], weight, reverse), strict=True):
        torch.testing.assert_close(tipi(x).logits, expected, rtol=0, atol=1e-10)


def listen(tipi: TIPI) -> tuple[list[Tensor], list[float]]:
    """The images that the model is shown, and the losses."""
    shown: list[Tensor] = []
    losses: list[float] = []
    tipi.model.register_forward_pre_hook(lambda m, x: shown.append(x[0].detach().clone()))
    update = tipi.update
    tipi.update = lambda loss: (losses.append(loss.item()), update(loss))[1]  # type: ignore[method-assign]
    return shown, losses


def probabilities(z: Tensor) -> np.ndarray:
    e = np.exp(z.detach().numpy() - z.detach().numpy().max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_the_signed_step_goes_uphill_pixel_by_pixel(net: nn.Module, stream: list[Tensor]) -> None:
    """The slope at the random start by differences of the divergence in numpy."""
    x = stream[3][:4]
    tipi = TIPI(net, norm=running_statistics)
    shown, _ = listen(tipi)
    tipi(x)
    torch.testing.assert_close(shown[1], x + start(x, 0), rtol=0, atol=0)
    trained = copy.deepcopy(net).train()

    def apart(at: Tensor) -> float:
        q, p = (probabilities(trained(v)) for v in (at, x))
        return float((q * np.log(q / p)).sum(1).mean())

    for place in [(0, 0, 2, 3), (1, 2, 5, 5), (3, 1, 0, 7), (2, 0, 4, 4)]:
        ahead, behind = shown[1].clone(), shown[1].clone()
        ahead[place] += 1e-5
        behind[place] -= 1e-5
        sign = np.sign(apart(ahead) - apart(behind))
        expected = np.clip((shown[1] - x)[place].item() + sign * EPSILON, -EPSILON, EPSILON)
        assert (shown[2] - x)[place].item() == pytest.approx(expected, abs=1e-12)


def test_without_a_random_start_it_starts_at_the_image(net: nn.Module, stream: list[Tensor]) -> None:
    tipi = TIPI(net, random_start=False, epsilon=0.1)
    shown, _ = listen(tipi)
    tipi(stream[0])
    assert torch.equal(shown[1], stream[0])
    assert (shown[2] - stream[0]).abs().max().item() == pytest.approx(0.1)


def test_the_loss_of_many_tasks() -> None:
    """Classes, a regression and edges, each in numpy, each weighted as its task is."""
    net, x = dense_world.network(), dense_world.batch(1)
    tipi = TIPI(net, sgd(0.1), entropy_weight=2.0)
    shown, losses = listen(tipi)
    y = tipi(x)
    trained = copy.deepcopy(net).train()
    clean, moved = (trained(v) for v in (shown[0], shown[2]))
    torch.testing.assert_close(y["depth"], clean["depth"].detach(), rtol=0, atol=1e-12)
    q, p = (probabilities(z["semseg"]) for z in (moved, clean))
    semseg = (q * np.log(q / p)).sum(1).mean()
    entropy = -(p * np.log(p)).sum(1).mean()
    depth = np.abs((moved["depth"] - clean["depth"]).detach().numpy()).mean()
    q, p = (1 / (1 + np.exp(-z["edge"].detach().numpy())) for z in (moved, clean))
    edge = (q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))).mean()
    assert losses == [pytest.approx(semseg + depth + 50 * edge + 2 * entropy, rel=1e-9)]
    heads = {
        k: torch.equal(p, q)
        for (k, p), q in zip(net.heads.named_parameters(), tipi.model.network.heads.parameters(), strict=True)
    }
    assert all(heads.values())


def test_regressions_alone_adapt_too() -> None:
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Tanh())
    net = MultiTaskNet(encoder, {"depth": nn.Conv2d(4, 1, 1)}, {"depth": Depth()}).double()
    assert TIPI(net)(dense_world.batch()).updated
    with pytest.raises(ValueError, match="needs logits over classes"):
        TIPI(net, entropy_weight=1.0)(dense_world.batch())


def test_only_the_untransformed_images_move_the_statistics(net: nn.Module, stream: list[Tensor]) -> None:
    tipi = TIPI(net, sgd(0.0), norm=running_statistics)
    tipi(stream[0])
    inside = net.conv1(stream[0]).detach()
    got = next(v for k, v in tipi.state_dict().items() if k.endswith("bn1.mean"))
    expected = 0.9 * net.bn1.running_mean + 0.1 * inside.mean((0, 2, 3))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-12)


def test_undeclared_outputs_are_refused() -> None:
    class Undeclared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            return {"depth": self.norm(x), "semseg": self.norm(x)}

    with pytest.raises(
        ValueError,
        match=r"outputs='depth' \(2, 3, 4, 4\), outputs='semseg' .* declares its outputs by name as `tasks`",
    ):
        TIPI(Undeclared())(torch.rand(2, 3, 4, 4))
