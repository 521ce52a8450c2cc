"""Methods on logits of each pixel: every loss, filter and answer recomputed in numpy, pixel by pixel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime import Adapter
from testtime.methods import EATA, ETA, OSTTA, PL, RPL, SAR, BNAdapt, Core, CoTTA, EcoTTA, Tent, ViDA
from testtime.methods.vida import ViDAOptions
from testtime.norm import alpha_statistics
from testtime.parts import entropy, marginal_entropy, sgd, soft_cross_entropy
from testtime.source.passes import class_loss

CLASSES = 4
Array = np.ndarray


class Segmenter(nn.Module):
    """A convolution of 3 x 3 and a BatchNorm on its logits: simple enough to be written again in numpy."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.conv = nn.Conv2d(3, CLASSES, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(CLASSES)
        with torch.no_grad():
            self.conv.weight.mul_(3)
            self.norm.weight.copy_(torch.tensor([2.0, 3.0, 1.5, 2.5]))
            self.norm.bias.copy_(torch.tensor([0.3, -0.2, 0.1, 0.0]))
            self.norm.running_mean.fill_(0.375)
            self.norm.running_var.fill_(2.0)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


def net() -> nn.Module:
    return Segmenter().double().eval()


def images(seed: int = 0, n: int = 2) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(n, 3, 5, 7, generator=rng, dtype=torch.float64)


def moments(x: Array) -> tuple[Array, Array]:
    return x.mean((0, 2, 3)), x.var((0, 2, 3))


def convolved(x: Array) -> Array:
    weight = net().conv.weight.detach().numpy()  # type: ignore[union-attr, operator]
    h, w = x.shape[2:]
    wide = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    parts = [(i, j, wide[:, :, i : i + h, j : j + w]) for i in range(3) for j in range(3)]
    return sum(np.einsum("nchw,dc->ndhw", part, weight[:, :, i, j]) for i, j, part in parts)


def logits(x: Array, alpha: float = 1.0, scale: float = 1.0) -> Array:
    """The network under statistics of which a share ``alpha`` is the batch's, its gamma multiplied."""
    y = convolved(x)
    mean, var = moments(y)
    mean, var = 0.375 + alpha * (mean - 0.375), 2.0 + alpha * (var - 2.0)
    norm: Any = net().norm
    gamma, beta = (v.detach().numpy()[:, None, None] for v in (norm.weight, norm.bias))
    return (y - mean[:, None, None]) / np.sqrt(var[:, None, None] + 1e-5) * gamma * scale + beta


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def surprise(p: Array) -> Array:
    """Entropy (N, H, W) of probabilities (N, C, H, W)."""
    return -(p * np.log(p)).sum(1)


def pixels(p: Array) -> Array:
    """(N, C, H, W) as a list of predictions."""
    return np.array(
        [p[n, :, i, j] for n in range(p.shape[0]) for i in range(p.shape[2]) for j in range(p.shape[3])]
    )


def losses_of(adapter: Adapter, batches: Sequence[Tensor]) -> tuple[list[float], list[Any]]:
    """The scalar losses that an adapter updates on, and its answers."""
    found, update = [], adapter.update

    def watched(loss: Any, rate: float = 1.0) -> None:
        if isinstance(loss, Tensor):
            found.append(loss.item())
        update(loss, rate)

    adapter.update = watched  # type: ignore[method-assign, assignment]
    return found, [adapter(x) for x in batches]


STILL = sgd(0.0)


def test_losses_of_the_field_are_per_pixel() -> None:
    z, other = logits(images().numpy()), logits(images(1).numpy())
    p, q = softmax(z), softmax(other)
    np.testing.assert_allclose(entropy(torch.tensor(z)).numpy(), surprise(p), atol=1e-12)
    cross = -(q * np.log(p)).sum(1)
    np.testing.assert_allclose(
        soft_cross_entropy(torch.tensor(z), torch.tensor(other)).numpy(), cross, atol=1e-12
    )
    mean = pixels(p).mean(0)
    assert marginal_entropy(torch.tensor(z)).item() == pytest.approx(-(mean * np.log(mean)).sum(), abs=1e-12)


def test_alpha_bn_blends_the_statistics_of_all_pixels() -> None:
    x = images()
    for alpha in (0.0, 0.1, 0.7, 1.0):
        y = BNAdapt(net(), norm=lambda m, a=alpha: alpha_statistics(m, a))(x)
        np.testing.assert_allclose(y.logits.numpy(), logits(x.numpy(), alpha), atol=1e-10)


def test_tent_takes_the_mean_entropy_of_all_pixels() -> None:
    found, (y,) = losses_of(Tent(net(), STILL), [images()])
    p = softmax(logits(images().numpy()))
    np.testing.assert_allclose(y.logits.numpy(), logits(images().numpy()), atol=1e-10)
    assert found == [pytest.approx(surprise(p).mean(), abs=1e-12)]


def test_pl_keeps_confident_pixels() -> None:
    p = softmax(logits(images().numpy())).max(1)
    kept = p > 0.8
    assert 0 < kept.sum() < kept.size
    found, (y,) = losses_of(PL(net(), STILL, threshold=0.8), [images()])
    assert found == [pytest.approx(-np.log(p[kept]).mean(), abs=1e-12)]
    np.testing.assert_array_equal(y.selected["minimised"].numpy(), kept)


def test_rpl_takes_all_pixels() -> None:
    p = softmax(logits(images().numpy())).max(1)
    found, _ = losses_of(RPL(net(), STILL, q=0.8), [images()])
    assert found == [pytest.approx(((1 - p**0.8) / 0.8).mean(), abs=1e-12)]


@pytest.mark.parametrize("fisher", [False, True])
def test_eta_and_eata_filter_pixels(fisher: bool) -> None:
    batches, e0 = [images(0), images(1)], 0.5 * np.log(CLASSES)
    if fisher:
        adapter: Adapter = EATA(net(), CLASSES, STILL, margin=0.5, d_margin=0.8)
        adapter.prepare([images(5)])
    else:
        adapter = ETA(net(), CLASSES, STILL, margin=0.5, d_margin=0.8)
    found, answers = losses_of(adapter, batches)
    mean = None
    for x, loss, y in zip(batches, found, answers, strict=True):
        p = pixels(softmax(logits(x.numpy())))
        h = -(p * np.log(p)).sum(1)
        kept = h < e0
        if mean is not None:
            cosine = p @ mean / (np.linalg.norm(p, axis=1) * np.linalg.norm(mean))
            assert 0 < (kept & (cosine < 0.8)).sum() < kept.sum()
            kept &= cosine < 0.8
        assert loss == pytest.approx((np.exp(e0 - h[kept]) * h[kept]).mean(), abs=1e-10)
        np.testing.assert_array_equal(y.selected["minimised"].numpy(), kept.reshape(2, 5, 7))
        mean = p[kept].mean(0) if mean is None else 0.9 * mean + 0.1 * p[kept].mean(0)
    np.testing.assert_allclose(adapter.average.mean.numpy(), mean, atol=1e-12)  # type: ignore[union-attr]


def test_sar_keeps_reliable_pixels() -> None:
    adapter = SAR(net(), CLASSES, STILL, margin=0.5, rho=0.0, floor=0.0, skip=())
    y = adapter(images())
    h = surprise(softmax(logits(images().numpy())))
    kept = h < 0.5 * np.log(CLASSES)
    assert 0 < kept.sum() < kept.size
    np.testing.assert_array_equal(y.selected["minimised"].numpy(), kept)
    assert adapter.average.item() == pytest.approx(h[kept].mean(), abs=1e-10)


@pytest.mark.parametrize("balanced", [False, True])
def test_core_correlates_classes_over_pixels(balanced: bool) -> None:
    found, _ = losses_of(Core(net(), STILL, balanced), [images()])
    p = pixels(softmax(logits(images().numpy(), alpha=0.1)))
    r = sum(np.outer(row, row) for row in p) / len(p)
    if balanced:
        r = r / r.sum(1, keepdims=True) / CLASSES
    assert found == [pytest.approx(r.sum() - np.trace(r), abs=1e-10)]


def test_ostta_keeps_pixels_whose_confidence_has_not_fallen() -> None:
    adapter = OSTTA(net(), STILL, alpha=0.3)
    with torch.no_grad():
        adapter._adapted[0].mul_(0.7), adapter._adapted[0][1].mul_(2.0)
    found, (y,) = losses_of(adapter, [images()])
    source = softmax(logits(images().numpy()))
    scales = np.array([0.7, 1.4, 0.7, 0.7])[:, None, None]
    adapted = softmax(logits(images().numpy(), scale=scales))
    label = source.argmax(1)
    kept = np.zeros(label.shape, bool)
    for n, i, j in np.ndindex(*label.shape):
        kept[n, i, j] = adapted[n, label[n, i, j], i, j] >= source[n, label[n, i, j], i, j]
    assert 0 < kept.sum() < kept.size
    mean = pixels(adapted).mean(0)
    expected = surprise(adapted)[kept].mean() + 0.3 * (mean * np.log(mean)).sum()
    assert found == [pytest.approx(expected, abs=1e-10)]
    np.testing.assert_array_equal(y.selected["minimised"].numpy(), kept)


def test_ecotta_lowers_the_entropy_of_certain_pixels() -> None:
    adapter = EcoTTA(net(), sgd(0.0), hold=0.5, margin=0.6, passes=1)
    adapter.prepare([images(5, n=4)])
    found, (y,) = losses_of(adapter, [images()])
    p = softmax(y.logits.numpy())
    kept = surprise(p) < 0.6 * np.log(CLASSES)
    assert 0 < kept.sum() < kept.size
    np.testing.assert_array_equal(y.selected["minimised"].numpy(), kept)
    # The group is the convolution; the norm after it is frozen, under source statistics.
    norm: Any = net().norm
    gamma, beta = (v.detach().numpy()[:, None, None] for v in (norm.weight, norm.bias))
    adapted_map = (y.logits.numpy() - beta) / gamma * np.sqrt(2.0 + 1e-5) + 0.375
    gap = np.abs(adapted_map - convolved(images().numpy())).mean()
    assert found == [pytest.approx(surprise(p)[kept].mean() + 0.5 * gap, abs=1e-9)]


def test_the_warm_up_of_ecotta_ignores_unlabelled_pixels() -> None:
    z = torch.tensor(logits(images().numpy()))
    labels = torch.from_numpy(np.random.default_rng(0).integers(0, CLASSES, (2, 5, 7)))
    labels[:, :2] = 255
    p, known = softmax(z.numpy()), (labels != 255).numpy()
    expected = [-np.log(p[n, labels[n, i, j], i, j]) for n, i, j in np.argwhere(known)]
    assert class_loss(z, labels).item() == pytest.approx(np.mean(expected), abs=1e-12)
    assert class_loss(z, torch.full_like(labels, 255)).item() == 0
    with pytest.raises(ValueError, match="label 9 is none of the 4 classes and not ignored"):
        class_loss(z, torch.full_like(labels, 9))
    with pytest.raises(ValueError, match="resize the labels to the logits"):
        class_loss(z, labels[:, :3])


def mirrored_mean(x: Array) -> Array:
    """The teacher's mean over the image and its mirror image, whose logits are mirrored back."""
    return (logits(x) + logits(x[..., ::-1])[..., ::-1]) / 2


def test_cotta_learns_from_the_undone_views_of_each_pixel() -> None:
    x = images().numpy()
    found, (y,) = losses_of(CoTTA(net(), STILL, threshold=1.0, scales=(1.0,)), [images()])
    target = mirrored_mean(x)
    assert np.abs(target - logits(x)).max() > 0.1
    np.testing.assert_allclose(y.logits.numpy(), target, atol=1e-10)
    loss = -(softmax(target) * np.log(softmax(logits(x)))).sum(1).mean()
    assert found == [pytest.approx(loss, abs=1e-10)]
    symmetric, _ = losses_of(CoTTA(net(), STILL, threshold=1.0, scales=(1.0,), symmetric=True), [images()])
    other = -(softmax(logits(x)) * np.log(softmax(target))).sum(1).mean()
    assert symmetric == [pytest.approx((loss + other) / 2, abs=1e-10)]


def test_cotta_uses_views_where_the_mean_confidence_of_pixels_is_low() -> None:
    confidence = softmax(logits(images().numpy())).max(1).mean()
    for threshold, expected in ((confidence - 1e-6, logits), (confidence + 1e-6, mirrored_mean)):
        y = CoTTA(net(), STILL, threshold=threshold, scales=(1.0,))(images())
        np.testing.assert_allclose(y.logits.numpy(), expected(images().numpy()), atol=1e-10)


def test_vida_weighs_its_adapters_by_the_variance_over_undone_views() -> None:
    x = images().numpy()
    views = np.stack([logits(x), logits(x[..., ::-1])[..., ::-1]])
    u = 0.1 * views.var(0, ddof=1).mean()
    for threshold, low, high in ((u - 1e-6, 1 - u, 1 + u), (u + 1e-6, 1 + u, 1 - u)):
        adapter = ViDA(net(), STILL, 1, 2, threshold=threshold, options=ViDAOptions(scales=(1.0,)))
        found, (y,) = losses_of(adapter, [images()])
        layer = next(m for m in adapter.teacher.model.modules() if hasattr(m, "low_down"))
        assert (layer.low, layer.high) == (pytest.approx(low, abs=1e-10), pytest.approx(high, abs=1e-10))
        np.testing.assert_allclose(y.logits.numpy(), logits(x), atol=1e-10)  # B = 0: the network as it was
        assert found == [pytest.approx(surprise(softmax(logits(x))).mean(), abs=1e-10)]
