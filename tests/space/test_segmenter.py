"""Encoder and head, recomputed."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from testtime.data import IGNORE
from testtime.space.modalities import SENSORY
from testtime.space.segmenter import ConvNeXtBlock, ConvNeXtHead, PatchEncoder, Segmenter


def segmenter(seed=0, modalities=("rgb",), depth=2):
    torch.manual_seed(seed)
    encoder = PatchEncoder([SENSORY[m] for m in modalities], (16, 16), 4, dim=12, depth=depth, heads=3)
    return Segmenter(encoder, ConvNeXtHead(12, (4, 4), 3, width=8, sub=2, depth=1))


def test_the_head_is_that_of_the_formula():
    torch.manual_seed(0)
    dim, (h, w), width, sub = 6, (2, 3), 4, 2
    head = ConvNeXtHead(dim, (h, w), 5, width, sub, depth=0).double()
    tokens = torch.randn(2, h * w, dim, dtype=torch.float64)
    spread = tokens.numpy() @ head.spread.weight.detach().numpy().T
    maps = np.zeros((2, width, h * sub, w * sub))
    for n in range(2):
        for token in range(h * w):
            for place in range(sub * sub):
                y, x = token // w * sub + place // sub, token % w * sub + place % sub
                maps[n, :, y, x] = spread[n, token, place * width : (place + 1) * width]
    expected = np.einsum("nchw,kc->nkhw", maps, head.answer.weight.detach().numpy()[:, :, 0, 0])
    np.testing.assert_allclose(head(tokens).detach().numpy(), expected, atol=1e-12)
    paper = ConvNeXtHead(512, (14, 14), 20)
    assert paper.spread.out_features == 6144
    assert len(paper.blocks) == 4


def test_a_convnext_block_is_that_of_the_formula():
    torch.manual_seed(1)
    block = ConvNeXtBlock(3).double()
    with torch.no_grad():
        for p in block.parameters():
            p.normal_()
    x = torch.randn(1, 3, 5, 4, dtype=torch.float64)
    w = {k: v.detach().numpy() for k, v in block.named_parameters()}
    padded, y = np.pad(x.numpy(), ((0, 0), (0, 0), (3, 3), (3, 3))), np.zeros((1, 3, 5, 4))
    for c in range(3):
        for i in range(5):
            for j in range(4):
                window = padded[0, c, i : i + 7, j : j + 7]
                y[0, c, i, j] = (window * w["depthwise.weight"][c, 0]).sum() + w["depthwise.bias"][c]
    y = y.transpose(0, 2, 3, 1)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    y = (y * w["norm.weight"] + w["norm.bias"]) @ w["fc1.weight"].T + w["fc1.bias"]
    y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
    y = (y @ w["fc2.weight"].T + w["fc2.bias"]).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(block(x).detach().numpy(), x.numpy() + y, atol=1e-10)


def test_patches_are_those_of_the_normalised_channels():
    encoder = PatchEncoder([SENSORY["rgb"], SENSORY["normals"]], (8, 8), 4, dim=12, depth=0, heads=3).double()
    rgb, normals = torch.rand(1, 3, 8, 8).double(), torch.rand(1, 3, 8, 8).double()
    normals[0, :, 0, 0] = torch.nan
    x = np.concatenate([rgb.numpy()[0] * 2 - 1, np.nan_to_num(normals.numpy()[0])])
    weight, rows = encoder.patches.weight.detach().numpy(), []
    for i in (0, 4):
        for j in (0, 4):
            rows.append(weight @ x[:, i : i + 4, j : j + 4].reshape(-1))
    y = np.stack(rows) + encoder.position.numpy()
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-6)
    found = encoder({"rgb": rgb, "normals": normals}).detach().numpy()[0]
    np.testing.assert_allclose(found, y, atol=1e-6)
    assert sum(p.numel() for p in PatchEncoder().blocks.parameters()) == 8 * (
        4 * 512**2 + 3 * 512 * 1365 + 2 * 512
    )


def test_logits_are_bilinear():
    model = segmenter()
    x = torch.rand(1, 3, 16, 16)
    coarse = model.head(model.encoder(x))
    torch.testing.assert_close(model(x), F.interpolate(coarse, (16, 16), mode="bilinear"))


def test_the_loss_is_the_mean_over_known_pixels_and_the_rest_has_no_gradient():
    model = segmenter().double()
    image = torch.rand(2, 3, 16, 16, dtype=torch.float64)
    label = torch.randint(0, 3, (2, 16, 16))
    label[0, :, :9] = IGNORE
    logits = model(image).detach().numpy()
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    known = [(n, i, j) for n in range(2) for i in range(16) for j in range(16) if label[n, i, j] != IGNORE]
    expected = -np.mean([log_p[n, label[n, i, j], i, j] for n, i, j in known])
    assert model.loss(image, label).item() == pytest.approx(expected, rel=1e-6)  # computed in float32

    free = nn.Parameter(torch.zeros(2, 3, 16, 16))
    model.forward = lambda x: free
    model.loss(image, label).backward()
    assert (free.grad[0, :, :, :9] == 0).all()
    assert (free.grad[0, :, :, 9:] != 0).all()
    assert model.loss(image, torch.full_like(label, IGNORE)).item() == 0
