"""Depth up to a scale: loss and errors recomputed in numpy, and that a head learns it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from testtime.data import DenseSet, Sample
from testtime.space.depths import depth_errors, evaluate_depth, scale_free_loss, train_depth
from testtime.space.segmenter import ConvNeXtHead, PatchEncoder, Segmenter
from testtime.space.transfer import TransferRecipe


class Ramps(DenseSet):
    """Pictures whose brightness is the logarithm of their depth, some of which is unknown."""

    name, tasks = "ramps", ("depth",)

    def __len__(self):
        return 6

    def __getitem__(self, index):
        log = torch.rand(1, 2, 2, generator=torch.Generator().manual_seed(index)).repeat_interleave(8, 1)
        log = log.repeat_interleave(8, 2)
        depth = (1 + index) * log.exp()
        depth[:, :2] = torch.nan
        return Sample(log.expand(3, -1, -1).clone(), {"depth": depth})


def test_the_loss_is_the_variance_of_the_difference_of_logarithms():
    rng = np.random.default_rng(0)
    output, depth = rng.normal(size=(3, 1, 4, 5)), np.exp(rng.normal(size=(3, 1, 4, 5)))
    depth[0, 0, 0] = np.nan
    depth[1, 0, 1] = 0
    depth[2] = np.nan
    expected = []
    for z, y in zip(output[:2, 0], depth[:2, 0], strict=True):
        d = (z - np.log(np.where(y > 0, y, np.nan)))[y > 0]
        expected.append((d**2).mean() - d.mean() ** 2)
    z = torch.tensor(output, requires_grad=True)
    found = scale_free_loss(z, torch.tensor(depth))
    assert found.item() == pytest.approx(np.mean(expected))
    found.backward()
    assert z.grad.isfinite().all()
    assert scale_free_loss(z + 3, torch.tensor(depth) * 7).item() == pytest.approx(np.mean(expected))


def test_errors_are_relative_after_scaling_by_the_median():
    rng = np.random.default_rng(1)
    output, depth = rng.normal(size=(1, 3, 3)), np.exp(rng.normal(size=(1, 3, 3)))
    depth[0, 0, 1:] = np.nan  # seven are known: the median is one of them
    known = np.isfinite(depth)
    y = depth[known]
    guess = np.exp(output[known]) * np.median(y / np.exp(output[known]))
    errors, close = depth_errors(torch.tensor(output), torch.tensor(depth))
    np.testing.assert_allclose(errors, np.abs(guess - y) / y)
    np.testing.assert_array_equal(close, np.maximum(guess / y, y / guess) < 1.25)
    assert len(depth_errors(torch.zeros(1, 2, 2), torch.full((1, 2, 2), torch.nan))[0]) == 0


def test_a_head_learns_depth_better_than_a_constant(tmp_path):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Segmenter(
            PatchEncoder(size=(16, 16), patch=8, dim=12, depth=1, heads=3),
            ConvNeXtHead(12, (2, 2), 1, 4, 2, 1),
        )
    before = evaluate_depth(model, Ramps())
    recipe = TransferRecipe(
        epochs=60, warmup=1, batch=6, lr=1e-2, layer_decay=1.0, scale=(1.0, 1.0), drop_path=0
    )
    train_depth(model, Ramps(), recipe, tmp_path)
    after = evaluate_depth(model, Ramps())
    constant = "relative depth error of a constant"
    assert after[constant] == before[constant]
    assert after["relative depth error"] < 0.5 * after[constant]
    assert after["within 25 %"] > before["within 25 %"]


def test_other_inputs_are_refused():
    from testtime.space.modalities import SENSORY

    encoder = PatchEncoder([SENSORY["rgb"], SENSORY["depth"]], (16, 16), 8, 12, 1, 3)
    with pytest.raises(ValueError, match="expected images with depth and an encoder of pictures"):
        evaluate_depth(Segmenter(encoder, ConvNeXtHead(12, (2, 2), 1, 4, 2, 1)), Ramps())
