import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime.methods import ETA
from testtime.methods.eta import MeanPrediction, active_entropy
from testtime.parts import sgd
from testtime.wrap import ResetEvery

E0 = 0.4 * math.log(5)


def published(
    net: nn.Module, stream: list[Tensor], lr: float, d_margin: float
) -> tuple[list[Tensor], list[set[int]]]:
    """The published algorithm as a plain loop, and whom it kept."""
    net = copy.deepcopy(net).train().requires_grad_(False)
    parameters = []
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
        if isinstance(m, nn.BatchNorm2d | nn.LayerNorm):
            parameters += [m.weight.requires_grad_(True), m.bias.requires_grad_(True)]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    mean, answers, kept = None, [], []
    for x in stream:
        z = net(x)
        losses, chosen, probabilities = [], set(), []
        for i, row in enumerate(z):
            h = -(row.softmax(0) * row.log_softmax(0)).sum()
            p = row.detach().softmax(0)
            if h.item() >= E0:
                continue
            if mean is not None and abs((p @ mean / (p.norm() * mean.norm())).item()) >= d_margin:
                continue
            losses.append(h / math.exp(h.item() - E0))
            probabilities.append(p)
            chosen.add(i)
        if losses:
            optimizer.zero_grad()
            torch.stack(losses).mean().backward()
            optimizer.step()
            new = torch.stack(probabilities).mean(0)
            mean = new if mean is None else 0.9 * mean + 0.1 * new
        answers.append(z.detach())
        kept.append(chosen)
    return answers, kept


@pytest.mark.parametrize("d_margin", [0.4, 0.6])
def test_equals_the_published_loop(net: nn.Module, stream: list[Tensor], d_margin: float) -> None:
    answers, kept = published(net, stream, 1e-3, d_margin)
    assert len({len(k) for k in kept}) > 3
    assert max(len(k) for k in kept) < 24  # some are kept, some are not
    eta = ETA(net, classes=5, d_margin=d_margin)
    for x, expected, chosen in zip(stream, answers, kept, strict=True):
        y = eta(x)
        torch.testing.assert_close(y.logits, expected, rtol=0, atol=1e-10)
        assert set(y.selected["minimised"].nonzero().flatten().tolist()) == chosen
        assert y.updated == bool(chosen)


def test_equals_the_published_loop_with_layer_norm(layer_net: nn.Module, stream: list[Tensor]) -> None:
    answers, kept = published(layer_net, stream, 1e-3, 0.4)
    assert 0 < sum(map(len, kept)) < 20 * 24
    eta = ETA(layer_net, classes=5)
    for x, expected in zip(stream, answers, strict=True):
        torch.testing.assert_close(eta(x).logits, expected, rtol=0, atol=1e-10)


def test_rdumb_is_eta_with_resets(net: nn.Module, stream: list[Tensor]) -> None:
    """RDumb (Press et al., NeurIPS 2023): weights, optimizer and mean prediction, every so many steps; not at the others."""
    rdumb = ResetEvery(ETA(net, classes=5, d_margin=0.6), 8)
    expected = [z for begin in (0, 8, 16) for z in published(net, stream[begin : begin + 8], 1e-3, 0.6)[0]]
    for x, z in zip(stream, expected, strict=True):
        torch.testing.assert_close(rdumb(x).logits, z, rtol=0, atol=1e-10)
    assert not published(net, stream, 1e-3, 0.6)[0][8].allclose(expected[8], rtol=0, atol=1e-4)
    assert ResetEvery(ETA(net, classes=5)).every == 1000


def test_equations_in_numpy() -> None:
    rng = np.random.default_rng(0)
    z, m = 3 * rng.normal(size=(12, 4)), np.array([0.4, 0.3, 0.2, 0.1])
    average = MeanPrediction(4, 0.9, torch.zeros(1, dtype=torch.float64))
    average.update(torch.from_numpy(m)[None], torch.ones(1, dtype=torch.bool))
    e0, d = 0.5 * np.log(4), 0.75

    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    h = -(p * np.log(p)).sum(1)
    cosine = p @ m / (np.linalg.norm(p, axis=1) * np.linalg.norm(m))
    kept = (h < e0) & (np.abs(cosine) < d)
    assert 0 < kept.sum() < (h < e0).sum() < 12
    loss = (np.exp(e0 - h[kept]) * h[kept]).mean()

    found, mask, probabilities = active_entropy(torch.from_numpy(z), average, e0, d)
    np.testing.assert_array_equal(mask.numpy(), kept)
    np.testing.assert_allclose(found.item(), loss, rtol=1e-12)
    average.update(probabilities, mask)
    np.testing.assert_allclose(average.mean.numpy(), 0.9 * m + 0.1 * p[kept].mean(0), rtol=1e-12)


def test_first_step_by_hand(net: nn.Module, stream: list[Tensor], slope: Callable[..., np.ndarray]) -> None:
    """One SGD step on the last bias; the weights carry no gradient."""
    eta = ETA(net, 5, sgd(0.1, momentum=0.0))
    bias = eta.model.network.bn2.layer.bias

    def entropies(z: np.ndarray) -> np.ndarray:
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        return -(p * np.log(p)).sum(1)

    x = stream[0]
    at = entropies(eta.predict(x).numpy())
    weight = (at < E0) * np.exp(E0 - at)
    expected = slope(lambda: eta.predict(x), bias, lambda z: (weight * entropies(z)).sum() / (at < E0).sum())
    before = bias.detach().numpy().copy()
    eta(x)
    np.testing.assert_allclose(bias.detach().numpy(), before - 0.1 * expected, atol=1e-8)


def test_no_kept_sample_moves_nothing(net: nn.Module, stream: list[Tensor]) -> None:
    eta = ETA(net, 5, margin=1e-9)
    before = eta.state_dict()
    y = eta(stream[0])
    after = eta.state_dict()
    assert not y.updated
    assert not y.selected["minimised"].any()
    assert all(after[k].equal(before[k]) for k in before if k != "clock")


def test_reset_forgets_the_mean_prediction(net: nn.Module, stream: list[Tensor]) -> None:
    eta = ETA(net, 5)
    first = [eta(x).logits for x in stream[:3]]
    assert eta.average.seen
    eta.reset()
    assert not eta.average.seen
    assert not eta.average.mean.any()
    assert all(eta(x).logits.equal(z) for x, z in zip(stream, first, strict=False))


def test_decay_is_a_weight() -> None:
    with pytest.raises(ValueError, match="decay is the weight of the past"):
        MeanPrediction(4, 1.5, torch.zeros(1))
