"""What a model knows without a transfer: decoded classes and depth, recomputed pixel by pixel."""

import numpy as np
import pytest
import torch

from testtime.data import DenseSet, Sample
from testtime.space.distilled import decoded
from testtime.space.generate import predicted
from testtime.space.masking import Stream
from testtime.space.modalities import DEPTH
from testtime.space.model import FourM, Size


class Rooms(DenseSet):
    name, tasks, classes = "rooms", ("semseg", "depth"), ("wall", "floor", "bed")

    def __len__(self):
        return 3

    def __getitem__(self, index):
        rng = torch.Generator().manual_seed(index)
        named, depth = torch.randint(0, 3, (16, 16), generator=rng), torch.rand(1, 16, 16, generator=rng)
        depth[0, 0, 0] = torch.nan
        return Sample(torch.rand(3, 16, 16, generator=rng), {"semseg": named, "depth": depth})


class Blocks:
    """A tokenizer of one id for each of four patches: its class, or the first of its values."""

    size = (16, 16)

    def __init__(self, number):
        self.number = number

    def encode(self, value):
        value = DEPTH.normalised(value)[:, 0] if value.dim() == 4 else value
        return (value[:, 1::8, 1::8].flatten(1) * (1 if self.number == 3 else 2) + 0.0).long() % self.number

    def decode(self, ids):
        found = ids.view(-1, 2, 2).repeat_interleave(8, 1).repeat_interleave(8, 2)
        return found if self.number == 3 else found[:, None] / 2


class Even:
    def classes(self, x):
        return (x[:, 0] > 0.5).long()


def iou(found, truth):
    shares = [
        ((found == c) & (truth == c)).sum() / ((found == c) | (truth == c)).sum()
        for c in range(3)
        if (truth == c).any()
    ]
    return 100 * float(np.mean(shares))


def test_every_figure_is_that_of_its_pixels():
    torch.manual_seed(0)
    streams = [
        Stream("rgb", "pixels", 4),
        Stream("tok_classes", "grid", 4, 3),
        Stream("tok_depth", "grid", 4, 5),
    ]
    model = FourM(streams, Size(1, 1, 12, 3), (16, 16), 8).eval()
    tokenizers = {"classes": Blocks(3), "depth": Blocks(5)}
    found = decoded(model, tokenizers, Even(), Rooms(), batch=2)
    x, labels = Rooms().batch(range(3))
    named = tokenizers["classes"].decode(predicted(model, "tok_classes", x)).numpy()
    taught, truth = Even().classes(x), labels["semseg"].numpy()
    assert found["decoded mIoU"] == pytest.approx(iou(named, truth))
    assert found["agreement"] == pytest.approx(iou(named, taught.numpy()))
    coded = tokenizers["classes"].decode(tokenizers["classes"].encode(taught)).numpy()
    assert found["token mIoU"] == pytest.approx(iou(coded, truth))
    depth, known = DEPTH.normalised(labels["depth"]).numpy(), ~np.isnan(labels["depth"].numpy())
    for name, ids in (
        ("depth error", predicted(model, "tok_depth", x)),
        ("token depth error", tokenizers["depth"].encode(labels["depth"])),
    ):
        gap = abs(tokenizers["depth"].decode(ids).numpy() - depth)[known]
        assert found[name] == pytest.approx(gap.mean(), rel=1e-5)
    assert list(found["IoU"]) == ["wall", "floor", "bed"]
