"""Every policy against numpy, over every kind of BatchNorm layer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from testtime.norm import (
    NormPolicy,
    advance,
    alpha_statistics,
    batch_statistics,
    ema_statistics,
    observing,
    robust_statistics,
    running_statistics,
    source_statistics,
)

EPS = 1e-5


class BatchNormAct(nn.BatchNorm2d):
    """A layer that does something of its own after normalising, as timm's does."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def layer(kind: type[_BatchNorm], channels: int = 3, affine: bool = True) -> _BatchNorm:
    rng = torch.Generator().manual_seed(2)
    made = kind(channels, affine=affine, eps=EPS).double()
    for tensor in (made.running_mean, *([made.weight, made.bias] if affine else [])):
        tensor.data.copy_(torch.randn(channels, generator=rng))
    made.running_var.copy_(torch.rand(channels, generator=rng) + 0.5)
    return made.eval()


KINDS = {
    "1d": (nn.BatchNorm1d, (7, 3)),
    "1d-long": (nn.BatchNorm1d, (5, 3, 6)),
    "2d": (nn.BatchNorm2d, (4, 3, 5, 6)),
    "3d": (nn.BatchNorm3d, (2, 3, 4, 2, 3)),
    "activation": (BatchNormAct, (4, 3, 5, 6)),
}


@pytest.fixture(params=KINDS)
def case(request: pytest.FixtureRequest) -> tuple[_BatchNorm, Tensor, Tensor]:
    """A layer and two batches."""
    kind, shape = KINDS[request.param]
    rng = torch.Generator().manual_seed(3)
    one, other = (2 * torch.randn(shape, generator=rng, dtype=torch.float64) + 1 for _ in range(2))
    return layer(kind), one, other


def moments(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    flat = x.detach().numpy().swapaxes(0, 1).reshape(x.shape[1], -1)
    return flat.mean(1), flat.var(1)


def source(bn: _BatchNorm) -> tuple[np.ndarray, np.ndarray]:
    return bn.running_mean.numpy().copy(), bn.running_var.numpy().copy()


def expected(bn: _BatchNorm, x: Tensor, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    shape = (1, -1) + (1,) * (x.dim() - 2)
    y = (x.detach().numpy() - mean.reshape(shape)) / np.sqrt(var.reshape(shape) + EPS)
    if bn.affine:
        y = y * bn.weight.detach().numpy().reshape(shape) + bn.bias.detach().numpy().reshape(shape)
    return np.maximum(y, 0) if isinstance(bn, BatchNormAct) else y


def close(got: Tensor, want: np.ndarray) -> None:
    np.testing.assert_allclose(got.detach().numpy(), want, rtol=1e-9, atol=1e-9)


Case = tuple[_BatchNorm, Tensor, Tensor]


def test_source(case: Case) -> None:
    bn, x, _ = case
    close(source_statistics(nn.Sequential(bn))(x), expected(bn, x, *source(bn)))


def test_batch(case: Case) -> None:
    bn, x, _ = case
    close(batch_statistics(nn.Sequential(bn))(x), expected(bn, x, *moments(x)))


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha(case: Case, alpha: float) -> None:
    bn, x, _ = case
    (m_s, v_s), (m_b, v_b) = source(bn), moments(x)
    mean, var = (1 - alpha) * m_s + alpha * m_b, (1 - alpha) * v_s + alpha * v_b
    close(alpha_statistics(nn.Sequential(bn), alpha)(x), expected(bn, x, mean, var))


def test_ema(case: Case) -> None:
    bn, one, other = case
    model, (mean, var) = ema_statistics(nn.Sequential(bn), decay=0.8), source(bn)
    for x in (one, other):
        m_b, v_b = moments(x)
        mean, var = 0.8 * mean + 0.2 * m_b, 0.8 * var + 0.2 * v_b
        for _ in range(2):  # a second forward in the same step observes nothing more
            close(model(x), expected(bn, x, mean, var))
        advance(model)
    policy = policies(model)[0]
    close(policy.mean, mean)
    close(policy.var, var)


def test_robust(case: Case) -> None:
    bn, one, other = case
    model, (mean, var) = robust_statistics(nn.Sequential(bn), alpha=0.05), source(bn)
    for x in (one, other):
        close(model(x), expected(bn, x, mean, var))
        advance(model)  # looking moved nothing
        m_b, v_b = moments(x)
        mean, var = 0.95 * mean + 0.05 * m_b, 0.95 * var + 0.05 * v_b
        with observing(model):
            close(model(x), expected(bn, x, mean, var))
        advance(model)
    close(model(one), expected(bn, one, mean, var))


def test_running(case: Case) -> None:
    bn, one, other = case
    model, (mean, var) = running_statistics(nn.Sequential(bn), momentum=0.2), source(bn)
    for x in (one, other):
        close(model(x), expected(bn, x, mean, var))
        advance(model)
        m_b, v_b = moments(x)
        with observing(model):
            close(model(x), expected(bn, x, m_b, v_b))
        advance(model)
        n = x.numel() / x.shape[1]
        mean, var = 0.8 * mean + 0.2 * m_b, 0.8 * var + 0.2 * v_b * n / (n - 1)
    close(model(one), expected(bn, one, mean, var))


def test_running_is_torchs_own_training_mode(case: Case) -> None:
    bn, one, other = case
    model = running_statistics(nn.Sequential(bn), momentum=0.1)
    torch_own = layer(type(bn)).train()
    for x in (one, other):
        with observing(model):
            close(model(x), torch_own(x).detach().numpy())
        advance(model)
    close(policies(model)[0].mean, torch_own.running_mean.numpy())
    close(policies(model)[0].var, torch_own.running_var.numpy())


def policies(model: nn.Module) -> list[NormPolicy]:
    return [m for m in model.modules() if isinstance(m, NormPolicy)]


ALL: dict[str, Callable[[nn.Module], nn.Module]] = {
    "source": source_statistics,
    "batch": batch_statistics,
    "alpha": alpha_statistics,
    "ema": ema_statistics,
    "robust": robust_statistics,
    "running": running_statistics,
}


@pytest.mark.parametrize("watch", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_one_value_per_channel_is_normalised_by_the_source(name: str, watch: bool) -> None:
    bn, x = layer(nn.BatchNorm1d), torch.tensor([[0.3, -2.0, 5.0]], dtype=torch.float64)
    model = ALL[name](nn.Sequential(bn))
    policies(model)[0].observing = watch
    before = {k: v.clone() for k, v in policies(model)[0].moving().items()}
    close(model(x), expected(bn, x, *source(bn)))
    advance(model)
    for key, value in policies(model)[0].moving().items():
        torch.testing.assert_close(value, before[key])


@pytest.mark.parametrize("name", ["ema", "robust", "running"])
def test_one_value_per_channel_moves_no_statistics(name: str) -> None:
    """Once the statistics have left the source, a batch that has none neither uses the source's nor returns to them."""
    bn, rng = layer(nn.BatchNorm1d), torch.Generator().manual_seed(1)
    model, x = ALL[name](nn.Sequential(bn)), torch.randn(6, 3, generator=rng, dtype=torch.float64) + 4
    policy = policies(model)[0]
    with observing(model):
        model(x)
        advance(model)
        mean, var = policy.mean.numpy().copy(), policy.var.numpy().copy()
        assert np.abs(mean - bn.running_mean.numpy()).min() > 0.05
        y = model(x[:1])
        advance(model)
    used = source(bn) if name == "running" else (mean, var)  # running, as batch, normalises by the source
    close(y, expected(bn, x[:1], *used))
    close(policy.mean, mean)
    close(policy.var, var)


@pytest.mark.parametrize("name", ALL)
def test_without_scale_and_shift(name: str) -> None:
    bn = layer(nn.BatchNorm2d, affine=False)
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    mean, var = moments(x) if name in ("batch",) else source(bn)
    if name in ("alpha", "ema"):
        (m_b, v_b), w = moments(x), 0.1
        mean, var = (1 - w) * mean + w * m_b, (1 - w) * var + w * v_b
    close(ALL[name](nn.Sequential(bn))(x), expected(bn, x, mean, var))


@pytest.mark.parametrize("name", ALL)
def test_gradients_flow_as_through_the_formula(name: str) -> None:
    """By finite differences over the input and gamma; eq. "gradients included" of alpha, ema and robust."""
    bn, rng = layer(nn.BatchNorm1d), torch.Generator().manual_seed(1)
    model = ALL[name](nn.Sequential(bn))
    x = torch.randn(4, 3, generator=rng, dtype=torch.float64, requires_grad=True)
    gamma = policies(model)[0].layer.weight.requires_grad_(True)
    with observing(model):
        assert torch.autograd.gradcheck(lambda x, g: model(x), (x, gamma))


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("kind", ["2d", "activation"])
def test_half_precision_stays_half_and_statistics_do_not(name: str, kind: str) -> None:
    """Under autocast x is narrower than the statistics: the output has the type of x, they keep theirs."""
    made, shape = KINDS[kind]
    model = ALL[name](nn.Sequential(layer(made).float()))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with observing(model), torch.no_grad():
        wide, narrow = model(x), model(x.bfloat16())
    assert narrow.dtype == torch.bfloat16
    torch.testing.assert_close(narrow.float(), wide, rtol=0.03, atol=0.05)
    advance(model)
    assert {v.dtype for v in policies(model)[0].moving().values()} <= {torch.float32}


@pytest.mark.parametrize("name", ALL)
def test_the_model_it_came_from_is_untouched(name: str) -> None:
    bn = layer(BatchNormAct)
    model = nn.Sequential(bn)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    tree = ALL[name](model)
    x = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    with observing(tree):
        tree(x)
    advance(tree)
    assert type(model[0]) is BatchNormAct
    assert all(v.equal(before[k]) for k, v in model.state_dict().items())
    close(model(x), expected(bn, x, *source(bn)))


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (alpha_statistics, "alpha"),
        (ema_statistics, "decay"),
        (robust_statistics, "alpha"),
        (running_statistics, "momentum"),
    ],
)
@pytest.mark.parametrize("weight", [-0.1, 1.1])
def test_weights_lie_between_0_and_1(policy: Callable[..., nn.Module], message: str, weight: float) -> None:
    with pytest.raises(ValueError, match=rf"{message} is the weight .* got {weight}"):
        policy(nn.Sequential(nn.BatchNorm1d(2)), weight)


def test_layers_without_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="track_running_stats=False"):
        ema_statistics(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))
