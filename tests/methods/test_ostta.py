import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime.methods import OSTTA
from testtime.methods.ostta import confidence_kept
from testtime.parts import sgd


def sides(scores: Tensor) -> Tensor:
    """Posteriors of a fixed border, in place of a mixture that starts at random."""
    known = torch.sigmoid(20 * (0.5 - scores.double()))
    return torch.stack([known, 1 - known], 1)


def published(
    net: nn.Module, stream: list[Tensor], lr: float, alpha: float, alpha2: float = 0.0, criterion: str = "ent"
) -> tuple[list[Tensor], list[list[bool]]]:
    """The published algorithm as a plain loop, and whom it kept; also on the losses of UniEnt."""
    net = copy.deepcopy(net).train().requires_grad_(False)
    for m in net.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.track_running_stats, m.running_mean, m.running_var = False, None, None
    source = copy.deepcopy(net)
    affine = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d | nn.LayerNorm)]
    parameters = [p.requires_grad_(True) for m in affine for p in (m.weight, m.bias)]
    optimizer = torch.optim.Adam(parameters, lr=lr)
    answers, kept = [], []
    for x in stream:
        z, p_source = net(x), source(x).softmax(1)
        p = z.softmax(1)
        label = [int(row.argmax()) for row in p_source]
        keep = [bool(p[i, c] >= p_source[i, c]) for i, c in enumerate(label)]
        h = -(p * z.log_softmax(1)).sum(1)
        mean = p.mean(0)
        if criterion != "ent":
            headless = copy.deepcopy(source)
            headless.fc = nn.Identity()
            f, w = headless(x), net.fc.weight
            nearest = [max(float(f[i] @ c / f[i].norm() / c.norm()) for c in w) for i in range(len(x))]
            scores = [(max(nearest) - s) / (max(nearest) - min(nearest)) for s in nearest]
            known = sides(torch.tensor(scores, dtype=torch.float64))[:, 0]
            rows = range(len(x))
        if criterion == "ent":
            loss = h[torch.tensor(keep)].mean()
        elif criterion == "ent_unf":
            low = [known[i] * h[i] for i in rows if keep[i]]
            high = [(1 - known[i]) * h[i] for i in rows]
            loss = sum(low) / len(low) - alpha2 * sum(high) / len(high)
        else:
            low = [h[i] for i in rows if keep[i] and known[i] > 0.5]
            high = [h[i] for i in rows if known[i] < 0.5]
            loss = sum(low) / len(low)
            if criterion == "ent_ind_ood":
                loss = loss - alpha2 * sum(high) / len(high)
            keep = [k and bool(known[i] > 0.5) for i, k in enumerate(keep)]
        loss = loss + alpha * (mean * mean.log()).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        answers.append(z.detach())
        kept.append(keep)
    return answers, kept


@pytest.mark.parametrize(("which", "alpha"), [("net", 0.5), ("net", 0.1), ("layer_net", 0.5)])
def test_equals_the_published_loop(
    which: str, alpha: float, stream: list[Tensor], request: pytest.FixtureRequest
) -> None:
    model = request.getfixturevalue(which)
    answers, kept = published(model, stream, 1e-3, alpha)
    assert all(kept[0])
    assert len({sum(k) for k in kept}) > 3
    ostta = OSTTA(model, alpha=alpha)
    for x, expected, keep in zip(stream, answers, kept, strict=True):
        y = ostta(x)
        torch.testing.assert_close(y.logits, expected, rtol=0, atol=1e-9)
        assert y.selected["minimised"].tolist() == keep


@pytest.mark.parametrize("criterion", ["ent_ind", "ent_ind_ood", "ent_unf"])
def test_the_losses_of_unient(criterion: str, net: nn.Module, stream: list[Tensor]) -> None:
    """Splits by the source's features, over 20 batches with known and unknown images."""
    answers, kept = published(net, stream, 1e-3, 0.4, 0.3, criterion)
    plain, _ = published(net, stream, 1e-3, 0.4)
    ostta = OSTTA(net, alpha=(0.4, 0.3), criterion=criterion, mixture=sides, head="fc")
    for x, expected, keep in zip(stream, answers, kept, strict=True):
        y = ostta(x)
        assert y.updated
        torch.testing.assert_close(y.logits, expected, rtol=0, atol=1e-9)
        if criterion != "ent_unf":
            assert y.selected["minimised"].tolist() == keep
        assert not (y.selected["minimised"] & y.selected["maximised"]).any()
    assert bool(y.selected["maximised"].any()) == (criterion != "ent_ind")
    assert (answers[-1] - plain[-1]).abs().max() > 1e-2


def test_a_batch_that_does_not_split_moves_nothing(net: nn.Module, stream: list[Tensor]) -> None:
    for criterion in ("ent_ind", "ent_ind_ood", "ent_unf"):
        ostta = OSTTA(net, criterion=criterion, head="fc")
        before = ostta.state_dict()
        assert not ostta(stream[0][:1]).updated
        assert all(v.equal(before[k]) for k, v in ostta.state_dict().items() if k != "clock")
    with pytest.raises(ValueError, match="criterion is one of 'ent', 'ent_ind', .* got 'unient'"):
        OSTTA(net, criterion="unient")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"no torch\.nn\.Linear layer named 'top'"):
        OSTTA(net, criterion="ent_unf", head="top")


def test_kept_in_numpy() -> None:
    rng = np.random.default_rng(0)
    source, adapted = 2 * rng.normal(size=(50, 4)), 2 * rng.normal(size=(50, 4))
    adapted[:5] = source[:5]  # ties are kept
    p, q = (np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in (source, adapted))
    label, rows = p.argmax(1), np.arange(50)
    expected = q[rows, label] >= p[rows, label]
    assert 5 < expected.sum() < 50
    found = confidence_kept(torch.from_numpy(source), torch.from_numpy(adapted))
    np.testing.assert_array_equal(found.numpy(), expected)


def test_second_step_by_hand(net: nn.Module, stream: list[Tensor], slope: Callable[..., np.ndarray]) -> None:
    """The loss in numpy, its gradient by differences; in the second step some are left out."""
    ostta = OSTTA(net, sgd(0.05, momentum=0.0), alpha=0.5)
    ostta(stream[0])
    x, bias = stream[1], ostta.model.network.bn2.layer.bias

    def softmax(z: np.ndarray) -> np.ndarray:
        p = np.exp(z - z.max(1, keepdims=True))
        return p / p.sum(1, keepdims=True)

    p_source = softmax(ostta.origin(x).detach().numpy())
    p, rows = softmax(ostta.predict(x).numpy()), np.arange(24)
    kept = p[rows, p_source.argmax(1)] >= p_source.max(1)
    assert 0 < kept.sum() < 24

    def loss(z: np.ndarray) -> float:
        p = softmax(z)
        return float(-(p * np.log(p)).sum(1)[kept].mean() + 0.5 * (p.mean(0) * np.log(p.mean(0))).sum())

    expected = slope(lambda: ostta.predict(x), bias, loss)
    before = bias.detach().numpy().copy()
    ostta(x)
    np.testing.assert_allclose(bias.detach().numpy(), before - 0.05 * expected, atol=1e-8)


def test_no_kept_sample_moves_nothing(net: nn.Module, stream: list[Tensor]) -> None:
    ostta = OSTTA(net)
    with torch.no_grad():
        for name, p in ostta.model.named_parameters():
            if name.endswith("bn2.layer.weight"):
                p.mul_(0.01)  # less sure of everything than the source
    before = ostta.state_dict()
    y = ostta(stream[0])
    assert not y.selected["minimised"].any()
    assert not y.updated
    assert all(v.equal(before[k]) for k, v in ostta.state_dict().items() if k != "clock")


def test_the_source_shares_what_is_frozen(net: nn.Module, stream: list[Tensor]) -> None:
    ostta = OSTTA(net)
    for x in stream[:3]:
        ostta(x)
    assert ostta.origin.network.conv2.weight.data_ptr() == net.conv2.weight.data_ptr()
    assert ostta.origin.network.bn2.layer.weight.equal(net.bn2.weight)
    assert not ostta.model.network.bn2.layer.weight.equal(net.bn2.weight)
