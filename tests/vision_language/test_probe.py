"""Ridge regression against numpy, and the features of the MobileNet against a forward by hand."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from testtime.models.mobilenet import MobileNet
from testtime.models.preprocessed import Preprocessed
from testtime.vision_language.probe import MobileNetFeatures, Probe, ridge


def test_ridge_is_the_least_squares_of_an_augmented_system():
    rng = np.random.default_rng(0)
    x, y, w = rng.normal(size=(20, 4)), rng.normal(size=(20, 3)), rng.random(20)
    matrix, bias = (v.numpy() for v in ridge(torch.tensor(x), torch.tensor(y), 0.1, torch.tensor(w)))
    rows = np.c_[x, np.ones(20)] * np.sqrt(w)[:, None]
    penalty = np.c_[np.sqrt(0.1 * w.sum()) * np.eye(4), np.zeros(4)]  # the bias is free
    expected = np.linalg.lstsq(
        np.r_[rows, penalty], np.r_[y * np.sqrt(w)[:, None], np.zeros((4, 3))], rcond=None
    )[0]
    np.testing.assert_allclose(np.r_[matrix, bias[None]], expected, atol=1e-10)


def test_features_are_two_stages_on_one_grid():
    torch.manual_seed(0)
    network = Preprocessed(MobileNet(0.25, 10), (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)).eval()
    x = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        found = MobileNetFeatures(network, size=64)(x)
        inner = network.model
        z = (x - torch.tensor([0.4, 0.5, 0.6]).view(3, 1, 1)) / torch.tensor([0.2, 0.3, 0.4]).view(3, 1, 1)
        middle = inner.stage2(inner.stage1(z))
        last = F.interpolate(inner.stage3(middle), (4, 4), mode="bilinear")
    torch.testing.assert_close(found, torch.cat([middle, last], 1).flatten(2).mT)


def test_a_probe_maps_tokens_and_their_mean():
    matrix, bias = torch.randn(3, 5), torch.randn(5)
    probe, x = Probe(nn.Flatten(2), matrix.double(), bias), torch.rand(2, 4, 1, 3)
    np.testing.assert_allclose(
        probe.patches(x).numpy(), x[:, :, 0].numpy() @ matrix.numpy() + bias.numpy(), rtol=1e-5
    )
    torch.testing.assert_close(probe(x), probe.patches(x).mean(1))


def test_bad_input_is_refused():
    with pytest.raises(TypeError, match="MobileNet"):
        MobileNetFeatures(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="bias \\(D,\\)"):
        Probe(nn.Flatten(), torch.zeros(3, 2), torch.zeros(3))
