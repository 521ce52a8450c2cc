"""Every policy against numpy, over every kind of BatchNorm layer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

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
    iabn,
    observing,
    robust_statistics,
    running_statistics,
    source_statistics,
    unmix_tns,
)
from testtime.parts import generator

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


def moments(x: Tensor, unbiased: bool = False) -> tuple[np.ndarray, np.ndarray]:
    flat = x.detach().numpy().swapaxes(0, 1).reshape(x.shape[1], -1)
    return flat.mean(1), flat.var(1, ddof=int(unbiased))


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


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha(case: Case, alpha: float, unbiased: bool) -> None:
    bn, x, _ = case
    (m_s, v_s), (m_b, v_b) = source(bn), moments(x, unbiased)
    mean, var = (1 - alpha) * m_s + alpha * m_b, (1 - alpha) * v_s + alpha * v_b
    close(alpha_statistics(nn.Sequential(bn), alpha, unbiased)(x), expected(bn, x, mean, var))


@pytest.mark.parametrize("unbiased", [False, True])
def test_ema(case: Case, unbiased: bool) -> None:
    bn, one, other = case
    model, (mean, var) = ema_statistics(nn.Sequential(bn), 0.8, unbiased), source(bn)
    for x in (one, other):
        m_b, v_b = moments(x, unbiased)
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


def apart(x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Mean and biased variance of each instance (N, C)."""
    flat = x.detach().numpy().reshape(*x.shape[:2], -1)
    return flat.mean(2), flat.var(2)


def expected_each(bn: _BatchNorm, x: Tensor, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
    """Every instance by its own statistics (N, C)."""
    rows = [expected(bn, x[i : i + 1], mean[i], var[i]) for i in range(len(x))]
    return np.concatenate(rows)


def shrunk(d: np.ndarray, by: np.ndarray) -> np.ndarray:
    return np.sign(d) * np.maximum(np.abs(d) - by, 0)


@pytest.mark.parametrize("k", [0.5, 4.0])
def test_iabn(case: Case, k: float) -> None:
    """NOTE, eq. 2 to 6; k = 0.5 corrects most channels, k = 4 few."""
    bn, one, other = case
    model, (mean, var) = iabn(nn.Sequential(bn), k=k, momentum=0.2), source(bn)
    places = one[0, 0].numel()

    def wanted(x: Tensor, mean: np.ndarray, var: np.ndarray) -> np.ndarray:
        if places == 1:
            return expected(bn, x, mean, var)
        m_i, v_i = apart(x)
        v_i = v_i * places / (places - 1)
        m = mean + shrunk(m_i - mean, k * np.sqrt((var + EPS) / places))
        v = var + shrunk(v_i - var, k * (var + EPS) * np.sqrt(2 / (places - 1)))
        return expected_each(bn, x, m, v)

    for x in (one, other):
        close(model(x), wanted(x, mean, var))
        advance(model)  # looking moved nothing
        n, (m_b, v_b) = x.numel() / x.shape[1], moments(x)
        v_b = v_b * n / (n - 1)
        with observing(model):
            close(model(x), wanted(x, m_b, v_b))
        advance(model)
        mean, var = 0.8 * mean + 0.2 * m_b, 0.8 * var + 0.2 * v_b
    close(model(one), wanted(one, mean, var))


def test_unmix(case: Case) -> None:
    """The paper's equations, one instance and one component at a time."""
    bn, one, other = case
    model = unmix_tns(nn.Sequential(bn), components=5, temperature=0.3, momentum=0.2, full_batch=8)
    policy = policies(model)[0]
    means, variances = policy.mean.numpy().copy(), policy.var.numpy().copy()
    if one[0, 0].numel() == 1:
        close(model(one), expected(bn, one, *source(bn)))
        assert policy.proposal is None
        return
    for x in (one, other):
        (m_i, v_i), rate = apart(x), 1 - 0.8 ** (len(x) / 8)
        mean, var = np.zeros_like(m_i), np.zeros_like(v_i)
        moved = [(np.zeros(3), np.zeros(3)) for _ in range(5)]
        for b in range(len(x)):
            cos = [m_i[b] @ m / np.linalg.norm(m_i[b]) / np.linalg.norm(m) for m in means]
            p = np.exp(np.array(cos) / 0.3) / np.exp(np.array(cos) / 0.3).sum()
            mixed_m = [(1 - p[k]) * means[k] + p[k] * m_i[b] for k in range(5)]
            mixed_v = [(1 - p[k]) * variances[k] + p[k] * v_i[b] for k in range(5)]
            mean[b] = np.mean(mixed_m, 0)
            var[b] = np.mean(mixed_v, 0) + np.mean(np.square(mixed_m), 0) - mean[b] ** 2
            for k in range(5):
                moved[k][0][:] += rate / len(x) * p[k] * (m_i[b] - means[k])
                moved[k][1][:] += rate / len(x) * p[k] * (v_i[b] - variances[k])
        for _ in range(2):  # a second forward in the same step observes nothing more
            close(model(x), expected_each(bn, x, mean, var))
        advance(model)
        means = means + np.array([m for m, _ in moved])
        variances = variances + np.array([v for _, v in moved])
    close(policy.mean, means)
    close(policy.var, variances)


def test_unmix_starts_as_the_source() -> None:
    """The mixture of many components has the source's mean and variance, whatever their spread; layers differ."""
    bn = layer(nn.BatchNorm2d)
    for alpha in (0.0, 0.3, 1.0):
        one, two = policies(
            unmix_tns(nn.Sequential(bn, layer(nn.BatchNorm2d)), components=20000, alpha=alpha)
        )
        means, variances = one.mean.numpy(), one.var.numpy()
        np.testing.assert_allclose(variances, np.tile((1 - alpha) * bn.running_var.numpy(), (20000, 1)))
        np.testing.assert_allclose(means.mean(0), bn.running_mean.numpy(), atol=0.03)
        np.testing.assert_allclose(variances.mean(0) + means.var(0), bn.running_var.numpy(), rtol=0.03)
        assert one.mean.equal(two.mean) == (alpha == 0)
    close(policies(unmix_tns(nn.Sequential(bn), components=4))[0].mean.mean(dim=0), bn.running_mean.numpy())
    (single,) = policies(unmix_tns(nn.Sequential(bn), components=1))
    close(single.mean[0], bn.running_mean.numpy())
    close(single.var[0], bn.running_var.numpy())


def test_the_published_draw_of_unmix_is_not_centred() -> None:
    bn = layer(nn.BatchNorm2d)
    (drawn,) = policies(unmix_tns(nn.Sequential(bn), components=4, centred=False))
    (centred,) = policies(unmix_tns(nn.Sequential(bn), components=4))
    noise = torch.randn(4, 3, generator=generator(0, 0, "components"), dtype=torch.float64).numpy()
    wide = np.sqrt(bn.running_var.numpy() * 0.5 * 4 / 3)
    close(drawn.mean, bn.running_mean.numpy() + wide * noise)
    close(centred.mean, bn.running_mean.numpy() + wide * (noise - noise.mean(0)))
    assert drawn.var.equal(centred.var)


def test_unmix_serves_single_images_and_seeds_differ() -> None:
    bn, x = layer(nn.BatchNorm2d), torch.randn(4, 3, 5, 5, dtype=torch.float64)
    model, other = unmix_tns(nn.Sequential(bn)), unmix_tns(nn.Sequential(bn), seed=1)
    torch.testing.assert_close(torch.cat([model(x[i : i + 1]) for i in range(4)]), model(x))
    assert not policies(model)[0].mean.equal(policies(other)[0].mean)


def policies(model: nn.Module) -> list[NormPolicy]:
    return [m for m in model.modules() if isinstance(m, NormPolicy)]


ALL: dict[str, Callable[[nn.Module], nn.Module]] = {
    "source": source_statistics,
    "batch": batch_statistics,
    "alpha": alpha_statistics,
    "ema": ema_statistics,
    "robust": robust_statistics,
    "running": running_statistics,
    "iabn": partial(iabn, momentum=0.1),
    "unmix": unmix_tns,
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


@pytest.mark.parametrize("name", ["ema", "robust", "running", "iabn"])
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
    used = (
        source(bn) if name in ("running", "iabn") else (mean, var)
    )  # running, as batch, normalises by the source
    close(y, expected(bn, x[:1], *used))
    close(policy.mean, mean)
    close(policy.var, var)


@pytest.mark.parametrize("name", ["iabn", "unmix"])
def test_of_each_instance_without_scale_and_shift(name: str) -> None:
    bare, full = layer(nn.BatchNorm2d, affine=False), layer(nn.BatchNorm2d, affine=False)
    full.weight, full.bias = nn.Parameter(torch.ones(3).double()), nn.Parameter(torch.zeros(3).double())
    x = torch.randn(4, 3, 5, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(ALL[name](nn.Sequential(bare))(x), ALL[name](nn.Sequential(full))(x))


@pytest.mark.parametrize("name", [name for name in ALL if name not in ("iabn", "unmix")])
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


def test_unmix_and_iabn_say_what_they_expect() -> None:
    net = nn.Sequential(nn.BatchNorm1d(2))
    with pytest.raises(ValueError, match=r"k counts standard errors .* got -1"):
        iabn(net, k=-1)
    with pytest.raises(ValueError, match=r"momentum is the weight .* got 1.1"):
        iabn(net, momentum=1.1)
    with pytest.raises(ValueError, match=r"alpha and momentum are shares .* got 1.5 and 0.1"):
        unmix_tns(net, alpha=1.5)
    with pytest.raises(ValueError, match=r"above 0, got 0, 0.07, 64"):
        unmix_tns(net, components=0)


def test_layers_without_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="track_running_stats=False"):
        ema_statistics(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)))
