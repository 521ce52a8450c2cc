"""Dense metrics recomputed in numpy, with pixels that they ignore."""

import numpy as np
import pytest
import torch
from torch import Tensor

from testtime.metrics import BCE, RMSE, AveragePrecision, EdgeF, MeanAngle, MeanIoU

NAN = float("nan")


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def fed(meter, output: Tensor, label: Tensor, batch: int = 0):
    """The meter after the images, in batches."""
    for y, t in zip(output.split(batch or len(output)), label.split(batch or len(label)), strict=True):
        meter.update(y, t)
    return meter


def holes(label: Tensor, share: float = 0.2, seed: int = 9) -> Tensor:
    """The label, unknown in some pixels (all channels) and in the whole last image."""
    gone = torch.rand(len(label), 1, *label.shape[2:], generator=rng(seed)) < share
    gone[-1] = True
    return label.masked_fill(gone, NAN)


# Segmentation


@pytest.mark.parametrize("absent", ["skip", "zero"])
@pytest.mark.parametrize("batch", [1, 3, 4])
def test_miou_is_pooled_over_all_pixels_that_are_known(absent, batch):
    output = torch.randn(4, 5, 6, 7, generator=rng())
    label = torch.randint(0, 4, (4, 6, 7), generator=rng(1))
    label[label == 1] = 255
    label[3] = 255
    answer, truth = output.argmax(1).numpy(), label.numpy()
    ious = []
    for k in range(5):
        both = ((answer == k) & (truth == k)).sum()
        either = (((answer == k) | (truth == k)) & (truth != 255)).sum()
        ious.append(both / either if (truth == k).any() else NAN)
    assert np.isnan(ious).tolist() == [False, True, False, False, True]
    expected = np.nanmean(ious) if absent == "skip" else np.nansum(ious) / 5
    meter = fed(MeanIoU(5, absent=absent), output, label, batch)
    assert meter.value() == pytest.approx(100 * expected)
    np.testing.assert_allclose(meter.by_class, 100 * np.array(ious))


def test_miou_of_the_truth_and_of_nothing():
    label = torch.tensor([[[0, 1, 255]]])
    output = torch.nn.functional.one_hot(label % 3, 3).permute(0, 3, 1, 2).float()
    assert fed(MeanIoU(3), output, label).value() == 100
    assert fed(MeanIoU(3, absent="zero"), output, label).value() == pytest.approx(200 / 3)
    for absent in ("skip", "zero"):
        assert np.isnan(MeanIoU(3, absent=absent).value())
        assert np.isnan(fed(MeanIoU(3, absent=absent), output, torch.full_like(label, 255)).value())


def test_miou_refuses_what_it_cannot_count():
    with pytest.raises(ValueError, match="label 7 is none of the 3 classes"):
        MeanIoU(3).update(torch.zeros(1, 3, 2, 2), torch.full((1, 2, 2), 7))
    with pytest.raises(ValueError, match="expected output"):
        MeanIoU(3).update(torch.zeros(1, 4, 2, 2), torch.zeros(1, 2, 2, dtype=torch.int64))
    with pytest.raises(ValueError, match="absent must be"):
        MeanIoU(3, absent="one")


# Depth


@pytest.mark.parametrize("batch", [1, 2, 5])
@pytest.mark.parametrize("align", ["none", "median", "lsq"])
def test_rmse_with_each_alignment(align, batch):
    output = 1 + torch.rand(5, 1, 6, 7, generator=rng())
    label = holes(2 + 3 * torch.rand(5, 1, 6, 7, generator=rng(1)))
    squares = []
    for start in range(0, 5, batch):
        y, d = output[start : start + batch].double().numpy(), label[start : start + batch].double().numpy()
        known = ~np.isnan(d)
        if align == "median":
            for i in range(len(y)):
                if known[i].any():
                    y[i] *= np.nanmedian(d[i]) / np.median(y[i][known[i]])
        y, d = y[known], d[known]
        if align == "lsq" and len(y):
            design = np.stack([y, np.ones_like(y)], 1)
            y = design @ np.linalg.lstsq(design, d, rcond=None)[0]
        squares.extend((y - d) ** 2)
    before = output.clone()
    assert fed(RMSE(align), output, label, batch).value() == pytest.approx(np.sqrt(np.mean(squares)))
    assert output.equal(before)


def test_least_squares_cannot_exceed_the_deviation_of_the_labels():
    label = torch.rand(8, 1, 5, 5, generator=rng()).double()
    deviation = label.numpy().std()
    constant = fed(RMSE("lsq"), torch.full_like(label, 7), label).value()
    assert constant == pytest.approx(deviation)
    for seed in range(5):
        wild = 1e6 * torch.randn(8, 1, 5, 5, generator=rng(seed)).double()
        assert fed(RMSE("lsq"), wild, label).value() <= deviation
        assert fed(RMSE("none"), wild, label).value() > 1000
    # The edges of S4T's table 1: any answer to a map with 2.1 % of edges scores about 0.1434.
    edges = (torch.arange(1000).view(1, 1, 10, 100) < 21).double()
    assert fed(RMSE("lsq"), torch.zeros_like(edges), edges).value() == pytest.approx(0.14338, abs=1e-5)
    assert fed(RMSE("lsq"), -3 * label + 2, label).value() == pytest.approx(0, abs=1e-7)


def test_median_scale_forgives_the_scale_and_needs_a_positive_one():
    label = 1 + torch.rand(2, 1, 5, 5, generator=rng()).double()
    scaled = label * torch.tensor([0.2, 7.0]).view(2, 1, 1, 1)
    assert fed(RMSE("median"), scaled, label).value() == pytest.approx(0, abs=1e-12)
    assert fed(RMSE("median"), -label, label).value() == fed(RMSE(), -label, label).value()


def test_regressions_refuse_what_they_cannot_measure():
    label = torch.ones(1, 1, 2, 2)
    label[..., 0] = NAN
    wrong = torch.zeros(1, 1, 2, 2)
    wrong[..., 0, 0] = torch.inf
    assert fed(RMSE(), wrong, label).value() == 1
    wrong[..., 0, 1] = torch.inf
    for meter in (RMSE(), BCE(), AveragePrecision(), EdgeF()):
        with pytest.raises(ValueError, match="not finite at 1 of 2"):
            meter.update(wrong, label)
        with pytest.raises(ValueError, match="one shape"):
            meter.update(torch.zeros(1, 1, 4, 4), label)
    with pytest.raises(ValueError, match="not finite at 1 of 1"):
        MeanAngle().update(torch.full((1, 3, 1, 1), NAN), torch.ones(1, 3, 1, 1))
    with pytest.raises(ValueError, match="align must be"):
        RMSE("shift")
    for meter in (BCE(), AveragePrecision(), EdgeF()):
        with pytest.raises(ValueError, match=r"\[0, 1\]"):
            meter.update(torch.zeros(1, 1, 2, 2), torch.full((1, 1, 2, 2), 255.0))


def test_nothing_measured_is_nan():
    for meter in (RMSE(), RMSE("median"), RMSE("lsq"), BCE(), AveragePrecision(), EdgeF()):
        assert np.isnan(meter.value())
        meter.update(torch.zeros(1, 1, 4, 4), torch.full((1, 1, 4, 4), NAN))
        assert np.isnan(meter.value())
    angle = MeanAngle()
    angle.update(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), NAN))
    assert np.isnan(angle.value())


# Normals


@pytest.mark.parametrize("batch", [1, 4])
def test_mean_angle_is_the_arc_cosine_over_pixels(batch):
    output = 5 * torch.randn(4, 3, 6, 7, generator=rng()).double()
    label = torch.nn.functional.normalize(torch.randn(4, 3, 6, 7, generator=rng(1)).double(), dim=1)
    label = holes(label)
    label[0, 1, 0, 0] = NAN
    a = output.numpy() / np.linalg.norm(output.numpy(), axis=1, keepdims=True)
    angle = np.degrees(np.arccos((a * label.numpy()).sum(1)))
    assert fed(MeanAngle(), output, label, batch).value() == pytest.approx(np.nanmean(angle))


def test_angles_are_exact_where_the_arc_cosine_is_not():
    up = torch.tensor([0.0, 0, 1]).double().view(1, 3, 1, 1)
    for degrees in (0.0, 1e-7, 90.0, 180.0 - 1e-7, 180.0):
        turned = torch.tensor([np.sin(np.radians(degrees)), 0, np.cos(np.radians(degrees))]).view(1, 3, 1, 1)
        assert fed(MeanAngle(), 3 * turned, up).value() == pytest.approx(degrees, rel=1e-6, abs=1e-12)
    assert fed(MeanAngle(), 0 * up, up).value() == 90
