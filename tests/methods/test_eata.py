import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime.methods import EATA, ETA
from testtime.parts import sgd

E0 = 0.4 * math.log(5)


@pytest.fixture
def source(stream: list[Tensor]) -> list[Tensor]:
    """Batches of unequal size, as good as source data for a Fisher."""
    return [stream[0][:16], stream[1][:16], stream[2][:9]]


def published(
    net: nn.Module,
    source: list[Tensor],
    stream: list[Tensor],
    lr: float,
    fisher_alpha: float,
    d_margin: float = 0.4,
) -> list[Tensor]:
    """The published algorithm as a plain loop."""
    net = copy.deepcopy(net).train().requires_grad_(False)
    parameters: dict[str, nn.Parameter] = {}
    for name, m in net.named_modules():
        if isinstance(m, nn.BatchNorm2d):
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
        if isinstance(m, nn.BatchNorm2d | nn.LayerNorm):
            parameters |= {f"{name}.{n}": p.requires_grad_(True) for n, p in m.named_parameters()}
    fisher = {n: torch.zeros_like(p) for n, p in parameters.items()}
    anchor = {n: p.detach().clone() for n, p in parameters.items()}
    for x in source:
        z = net(x)
        nn.CrossEntropyLoss()(z, z.max(1)[1]).backward()
        for n, p in parameters.items():
            fisher[n] += p.grad**2 / len(source)
            p.grad = None
    optimizer = torch.optim.Adam(parameters.values(), lr=lr)
    mean, answers = None, []
    for x in stream:
        z = net(x)
        h = -(z.softmax(1) * z.log_softmax(1)).sum(1)
        ids = [i for i in range(len(x)) if h[i] < E0]
        if mean is not None:
            p = z.detach().softmax(1)
            ids = [i for i in ids if abs(torch.cosine_similarity(mean, p[i], dim=0)) < d_margin]
        if ids:
            loss = (h[ids] / torch.exp(h[ids].detach() - E0)).mean()
            for n, p in parameters.items():
                loss = loss + fisher_alpha * (fisher[n] * (p - anchor[n]) ** 2).sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            new = z[ids].detach().softmax(1).mean(0)
            mean = new if mean is None else 0.9 * mean + 0.1 * new
        answers.append(z.detach())
    return answers


@pytest.mark.parametrize("fisher_alpha", [1.0, 2000.0])
def test_equals_the_published_loop(
    net: nn.Module, source: list[Tensor], stream: list[Tensor], fisher_alpha: float
) -> None:
    eata = EATA(net, 5, fisher_alpha=fisher_alpha, d_margin=0.6)
    eata.prepare(source)
    for x, expected in zip(stream, published(net, source, stream, 1e-3, fisher_alpha, 0.6), strict=True):
        torch.testing.assert_close(eata(x).logits, expected, rtol=0, atol=1e-9)


def test_equals_the_published_loop_with_layer_norm(
    layer_net: nn.Module, source: list[Tensor], stream: list[Tensor]
) -> None:
    eata = EATA(layer_net, 5)
    eata.prepare(source)
    for x, expected in zip(stream, published(layer_net, source, stream, 1e-3, 2000.0), strict=True):
        torch.testing.assert_close(eata(x).logits, expected, rtol=0, atol=1e-9)


def test_the_regulariser_holds(net: nn.Module, source: list[Tensor], stream: list[Tensor]) -> None:
    """The larger its weight, the closer to the source; without it, ETA to the bit."""
    moved = []
    for fisher_alpha in (0.0, 10.0, 2000.0):
        eata = EATA(net, 5, fisher_alpha=fisher_alpha)
        eata.prepare(source)
        for x in stream:
            y = eata(x)
        moved.append((eata.fisher.importance * (_flat(eata) - eata.fisher.anchor) ** 2).sum().item())
        if not fisher_alpha:
            eta = ETA(net, 5)
            assert [eta(x) for x in stream][-1].logits.equal(y.logits)
    assert moved[0] > moved[1] > moved[2] > 0


def _flat(eata: EATA) -> Tensor:
    return torch.cat([p.detach().flatten() for p in eata.fisher.anchored])


def test_importance_by_hand(net: nn.Module, source: list[Tensor], slope: Callable[..., np.ndarray]) -> None:
    """Equation 9 by differences of the cross-entropy in numpy, and the regulariser of equation 8."""
    eata = EATA(net, 5)
    bias = eata.model.network.bn2.layer.bias
    expected = np.zeros(len(bias))
    for x in source:
        label = eata.predict(x).numpy().argmax(1)

        def cross_entropy(z: np.ndarray, label: np.ndarray = label) -> float:
            return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), label]).mean())

        def look(x: Tensor = x) -> Tensor:
            return eata.predict(x)

        expected += slope(look, bias, cross_entropy) ** 2 / len(source)
    eata.prepare(source)
    importance = eata.fisher.importance.numpy()
    assert importance.shape == (2 * 8 + 2 * 16,)
    np.testing.assert_allclose(importance[-16:], expected, rtol=1e-5, atol=1e-12)
    theta = _flat(eata).numpy()
    with torch.no_grad():
        bias += 0.3
    shift = np.r_[np.zeros(32), np.full(16, 0.3)]
    np.testing.assert_allclose(eata.fisher().item(), (importance * shift**2).sum(), rtol=1e-12)
    np.testing.assert_array_equal(eata.fisher.anchor.numpy(), theta)


def test_unprepared_is_an_error_that_helps(net: nn.Module, stream: list[Tensor]) -> None:
    eata = EATA(net, 5)
    before = eata.state_dict()
    with pytest.raises(RuntimeError, match=r"call adapter\.prepare\(batches\).*use ETA.*fisher_alpha=0"):
        eata(stream[0])
    assert all(v.equal(before[k]) for k, v in eata.state_dict().items())
    assert eata.predict(stream[0]).shape == (24, 5)
    assert EATA(net, 5, fisher_alpha=0)(stream[0]).updated


def test_prepare_needs_good_batches(net: nn.Module, stream: list[Tensor]) -> None:
    with pytest.raises(TypeError, match=r"got tuple; give the images alone"):
        EATA(net, 5).prepare([(stream[0], torch.zeros(24))])
    with pytest.raises(ValueError, match="expected batches of source images .* got none"):
        EATA(net, 5).prepare([])
    with pytest.raises(ValueError, match="expected finite source images"):
        EATA(net, 5).prepare([torch.full_like(stream[0], torch.nan)])


def test_importance_survives_reset_and_travels(
    net: nn.Module, source: list[Tensor], stream: list[Tensor]
) -> None:
    eata = EATA(net, 5, sgd(1e-3))
    eata.prepare(source)
    born = eata.fisher.importance.clone()
    first = [eata(x).logits for x in stream[:4]]
    eata.reset()
    assert eata.fisher.importance.equal(born)
    other = EATA(net, 5, sgd(1e-3))
    other.load_state_dict(eata.state_dict())
    for x, z in zip(stream, first, strict=False):
        assert eata(x).logits.equal(z)
        assert other(x).logits.equal(z)
