import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime.methods import UniEntPlus
from testtime.parts import sgd

mixture = pytest.importorskip("sklearn.mixture")


def random_start(s: np.ndarray) -> np.ndarray:
    """Posteriors as the published code takes them: a mixture that starts at a random k-means, seeded here."""
    fitted = mixture.GaussianMixture(n_components=2, random_state=3).fit(s[:, None])
    return fitted.predict_proba(s[:, None])[:, fitted.means_[:, 0].argsort()]


def exact_start(s: np.ndarray) -> np.ndarray:
    """The same from the best split, found by trying all thresholds."""
    thresholds = np.unique(s)[1:]
    within = [(s < t).sum() * s[s < t].var() + (s >= t).sum() * s[s >= t].var() for t in thresholds]
    t = thresholds[int(np.argmin(within))]
    groups = [s[s < t], s[s >= t]]
    fitted = mixture.GaussianMixture(
        n_components=2,
        weights_init=[len(g) / len(s) for g in groups],
        means_init=[[g.mean()] for g in groups],
        precisions_init=[[[1 / (g.var() + 1e-6)]] for g in groups],
        random_state=0,
    ).fit(s[:, None])
    return fitted.predict_proba(s[:, None])[:, fitted.means_[:, 0].argsort()]


def score(features: np.ndarray, prototypes: np.ndarray) -> np.ndarray:
    """1 - minmax(max cosine), in numpy."""
    lengths = np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(prototypes, axis=1)
    cosine = (features @ prototypes.T / lengths).max(1)
    return 1 - (cosine - cosine.min()) / (cosine.max() - cosine.min())


def published(
    net: nn.Module, stream: list[Tensor], alpha: tuple[float, float], fit: Callable[[np.ndarray], np.ndarray]
) -> tuple[list[Tensor], list[np.ndarray]]:
    """The published algorithm as a plain loop, and the posteriors it met."""
    net = copy.deepcopy(net).train().requires_grad_(False)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
    featurizer, head = copy.deepcopy(net), "4" if isinstance(net, nn.Sequential) else "fc"
    prototypes = getattr(net, head).weight.numpy()
    setattr(featurizer, head, nn.Identity())
    affine = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)]
    parameters = [p.requires_grad_(True) for m in affine for p in (m.weight, m.bias)]
    optimizer = torch.optim.Adam(parameters, lr=1e-3)
    answers, posteriors = [], []
    for x in stream:
        z = net(x)
        posterior = fit(score(featurizer(x).numpy(), prototypes))
        h = -(z.softmax(1) * z.log_softmax(1)).sum(1)
        weight = torch.from_numpy(posterior)
        loss = (h * weight[:, 0]).mean() - alpha[1] * (h * weight[:, 1]).mean()
        mean = z.softmax(1).mean(0)
        loss = loss + alpha[0] * (mean * mean.log()).sum()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        answers.append(z.detach())
        posteriors.append(posterior)
    return answers, posteriors


@pytest.mark.parametrize("alpha", [(0.5, 0.5), (0.1, 1.0)])
@pytest.mark.parametrize("which", ["net", "layer_net"])
@pytest.mark.parametrize("start", [random_start, exact_start])
def test_equals_the_published_loop(
    which: str,
    alpha: tuple[float, float],
    start: Callable[[np.ndarray], np.ndarray],
    stream: list[Tensor],
    request: pytest.FixtureRequest,
) -> None:
    model = request.getfixturevalue(which)
    answers, posteriors = published(model, stream, alpha, start)
    assert all(0 < (p[:, 0] > 0.5).mean() < 1 for p in posteriors)
    if start is random_start:
        adapter = UniEntPlus(model, 5, alpha=alpha, mixture=lambda s: torch.from_numpy(start(s.numpy())))
    else:
        adapter = UniEntPlus(model, 5, alpha=alpha)
    for x, expected, p in zip(stream, answers, posteriors, strict=True):
        y = adapter(x)
        torch.testing.assert_close(y.logits, expected, rtol=0, atol=1e-8)
        assert y.selected["minimised"].tolist() == (p[:, 0] > 0.5).tolist()
        assert y.selected["maximised"].tolist() == (p[:, 0] < 0.5).tolist()


def test_first_step_by_hand(net: nn.Module, stream: list[Tensor], slope: Callable[..., np.ndarray]) -> None:
    """The loss in numpy, its gradient by differences."""
    adapter = UniEntPlus(net, 5, sgd(0.05, momentum=0.0), alpha=(0.3, 0.7))
    x, bias = stream[0], adapter.model.network.bn2.layer.bias
    with torch.no_grad():
        features = adapter.origin(x).numpy()
    posterior = exact_start(score(features, net.fc.weight.detach().numpy()))

    def loss(z: np.ndarray) -> float:
        p = np.exp(z - z.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        h, mean = -(p * np.log(p)).sum(1), p.mean(0)
        sides = (posterior[:, 0] * h).mean() - 0.7 * (posterior[:, 1] * h).mean()
        return float(sides + 0.3 * (mean * np.log(mean)).sum())

    expected = slope(lambda: adapter.predict(x), bias, loss)
    before = bias.detach().numpy().copy()
    adapter(x)
    np.testing.assert_allclose(bias.detach().numpy(), before - 0.05 * expected, atol=1e-8)


def unmoved(adapter: UniEntPlus, x: Tensor) -> bool:
    before = adapter.state_dict()
    y = adapter(x)
    nobody = not any(mask.any() for mask in y.selected.values())
    return (
        bool(y.isfinite().all())
        and nobody
        and not y.updated
        and all(v.equal(before[k]) for k, v in adapter.state_dict().items() if k != "clock")
    )


def test_a_batch_that_does_not_split_moves_nothing(net: nn.Module, stream: list[Tensor]) -> None:
    adapter = UniEntPlus(net, 5)
    assert unmoved(adapter, stream[0][:1])  # one image
    assert unmoved(adapter, stream[0][:1].expand(6, -1, -1, -1))  # the same image, six times
    assert adapter(stream[0][:2]).isfinite().all()
