"""Tokenizers: the quantisers recomputed in numpy, and fits that learn, resume and are kept."""

from __future__ import annotations

import json
import math
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

from testtime.errors import WeightsError
from testtime.space import tokenizers
from testtime.space.modalities import DEPTH, EDGES, NORMALS, RGB, boxes, classes, features
from testtime.space.tokenizers import (
    FSQTokenizer,
    Tokenizer,
    VQOptions,
    VQTokenizer,
    load_tokenizer,
    perplexity,
)

pytest.importorskip("vector_quantize_pytorch")

SMALL = {"size": (16, 16), "patch": 8, "width": 16, "depth": 1}


def vq(modality=RGB, **kw) -> VQTokenizer:
    own = {"latent": 8, **{f.name: kw.pop(f.name) for f in fields(VQOptions) if f.name in kw}}
    return VQTokenizer(modality, **{**SMALL, "codebook": 24, "options": VQOptions(**own), **kw})


def fsq(modality=RGB, **kw) -> FSQTokenizer:
    return FSQTokenizer(modality, **{**SMALL, "levels": (4, 3, 5), **kw})


def frames(count: int = 24, channels: int = 3, size: int = 16, seed: int = 0) -> Tensor:
    """Pictures of four flat quarters each, in [0, 1]."""
    flat = torch.rand(count, channels, 2, 2, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(flat, size=(size, size))


def same(a: Tokenizer, b: Tokenizer) -> bool:
    other = b.state_dict()
    return all(torch.equal(v, other[k]) for k, v in a.state_dict().items())


# --- quantisers


def test_vq_takes_the_code_of_the_largest_cosine():
    tokenizer = vq()
    x = frames()
    with torch.no_grad():
        z = tokenizer.encoder(x * 2 - 1).flatten(2).transpose(1, 2).numpy().astype(float)
    book = tokenizer.quantizer.codebook.numpy().astype(float)
    assert np.abs(np.linalg.norm(book, axis=1) - 1).max() < 1e-5
    cosine = z @ book.T / np.linalg.norm(z, axis=2, keepdims=True)
    assert np.array_equal(tokenizer.encode(x).numpy(), cosine.argmax(2))


def test_ids_found_in_blocks_are_those_of_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenizers, "COSINES", 32 * 5)  # five tokens at a time
    tokenizer = VQTokenizer(RGB, size=(32, 48), patch=8, codebook=32, width=16)
    x = torch.rand(9, 3, 32, 48, generator=torch.Generator().manual_seed(0))  # in blocks of three
    kept = x.clone()
    with torch.no_grad():
        latents = tokenizer._latents(tokenizer._prepared(x))
        expected = tokenizer._quantised(latents, learning=False)[1].flatten(1)
    ids = tokenizer.encode(x)
    assert torch.equal(ids, expected)
    assert ids.dtype == torch.int64
    assert len(ids.unique()) > 5
    assert torch.equal(x, kept)
    trained = tokenizer._latents(tokenizer._prepared(x))  # with gradients, nothing is computed in place
    assert trained.requires_grad
    assert torch.equal(trained, latents)


def test_fsq_rounds_each_number_to_its_levels():
    levels = np.array([4, 3, 5])
    tokenizer = fsq(levels=levels.tolist())
    x = frames()
    with torch.no_grad():
        last = tokenizer.encoder[-1]
        last.weight *= 4  # reach all levels
        z = tokenizer.encoder(x * 2 - 1).flatten(2).transpose(1, 2).numpy().astype(float)
    half = (levels - 1) * 1.001 / 2
    offset = np.where(levels % 2 == 0, 0.5, 0.0)
    digits = np.rint(np.tanh(z + np.arctanh(offset / half)) * half - offset) + levels // 2
    assert digits.min(axis=(0, 1)).tolist() == [0, 0, 0]
    assert digits.max(axis=(0, 1)).tolist() == [3, 2, 4]
    ids = (digits * np.array([1, 4, 12])).sum(2)
    assert np.array_equal(tokenizer.encode(x).numpy(), ids)


def test_fsq_codes_and_ids_are_each_others_inverse():
    tokenizer = fsq()
    ids = torch.arange(60).view(15, 2, 2)
    codes = tokenizer._codes(ids)
    digits = np.stack([ids.numpy() % 4, ids.numpy() // 4 % 3, ids.numpy() // 12], 1)
    assert np.allclose(codes.numpy(), (digits - [[[2]], [[1]], [[2]]]) / np.array([[[2]], [[1]], [[2]]]))
    # A latent that lies on a code is that code: undo the tanh of the quantiser.
    levels = torch.tensor([4.0, 3.0, 5.0]).view(3, 1, 1)
    half, offset = (levels - 1) * 1.001 / 2, torch.where(levels % 2 == 0, 0.5, 0.0)
    z = torch.atanh((codes * (levels // 2) + offset) / half) - torch.atanh(offset / half)
    assert torch.equal(tokenizer._quantised(z, learning=False)[1].long(), ids)


def test_vq_codes_are_their_own_nearest():
    tokenizer = vq()
    ids = torch.arange(24).view(6, 2, 2)
    codes = tokenizer._codes(ids)
    assert torch.equal(codes.permute(0, 2, 3, 1).reshape(24, 8), tokenizer.quantizer.codebook)
    assert torch.equal(tokenizer._quantised(3 * codes, learning=False)[1], ids)


def test_a_step_moves_the_codes_by_running_sums_and_counts():
    tokenizer = vq(codebook=6, decay=0.9)
    book = tokenizer.quantizer._codebook
    book.cluster_size.fill_(3.0)
    book.embed_avg.copy_(3 * book.embed)
    tokenizer._set_batch(1)  # 4 tokens, 6 codes: below 4 / 6 / 32 a code is dead
    assert book.threshold_ema_dead_code == book.reset_cluster_size == pytest.approx(4 / 6 / 32)
    z = torch.randn(5, 8, 2, 2, generator=torch.Generator().manual_seed(1), requires_grad=True)
    old = book.embed[0].numpy().astype(float).copy()
    codes, ids, commitment = tokenizer._quantised(z, learning=True)

    flat = z.detach().permute(0, 2, 3, 1).reshape(20, 8).numpy().astype(float)
    unit = flat / np.linalg.norm(flat, axis=1, keepdims=True)
    chosen = (unit @ old.T).argmax(1)
    assert np.array_equal(ids.flatten().numpy(), chosen)
    told = codes.detach().permute(0, 2, 3, 1).reshape(20, 8).numpy()
    assert np.allclose(told, old[chosen], atol=1e-6)
    assert commitment.item() == pytest.approx(((unit - old[chosen]) ** 2).mean(), rel=1e-5)
    one = np.eye(6)[chosen]
    count, total = 0.9 * 3 + 0.1 * one.sum(0), 0.9 * 3 * old + 0.1 * one.T @ unit
    assert np.allclose(book.cluster_size[0].numpy(), count, atol=1e-5)
    assert np.allclose(book.embed[0].numpy(), total / np.linalg.norm(total, axis=1, keepdims=True), atol=1e-5)

    codes.square().sum().backward()  # straight through: the gradient of the codes is that of the unit latents
    direct = z.detach().clone().requires_grad_()
    (F.normalize(direct, dim=1) * 2 * codes.detach()).sum().backward()
    assert torch.allclose(z.grad, direct.grad, atol=1e-5)


def test_a_dead_code_becomes_a_latent_of_the_batch():
    tokenizer = vq(codebook=6)
    tokenizer._set_batch(5)
    book = tokenizer.quantizer._codebook
    book.cluster_size.fill_(3.0)
    book.embed_avg.copy_(3 * book.embed)
    book.cluster_size[0, 2] = 0.0
    z = -10 * book.embed[0, 2].view(1, 8, 1, 1).expand(5, 8, 2, 2) + torch.randn(
        5, 8, 2, 2, generator=torch.Generator().manual_seed(0)
    )
    tokenizer._quantised(z, learning=True)
    unit = F.normalize(z, dim=1).permute(0, 2, 3, 1).reshape(20, 8)
    assert (unit - book.embed[0, 2]).abs().sum(1).min() < 1e-5


def test_perplexity_and_report_are_recomputed():
    ids = torch.tensor([[0, 3, 3], [3, 1, 1]])
    p = np.array([1, 2, 0, 3]) / 6
    assert perplexity(ids, 9) == pytest.approx(math.exp(-sum(q * math.log(q) for q in p if q)))
    for tokenizer in (vq(), fsq()):
        x = frames()
        report = tokenizer.report(x)
        ids = tokenizer.encode(x)
        share = np.bincount(ids.flatten().numpy()) / ids.numel()
        share = share[share > 0]
        assert report.perplexity == pytest.approx(np.exp(-(share * np.log(share)).sum()))
        assert report.used == pytest.approx(len(share) / tokenizer.vocabulary)
        y = (x * 2 - 1).numpy().astype(float)
        assert report.unit == "mse"
        assert report.error == pytest.approx(((tokenizer.decode(ids).numpy() - y) ** 2).mean(), rel=1e-5)
        assert report.constant == pytest.approx((y - y.mean((0, 2, 3), keepdims=True)).var(), rel=1e-5)
        assert f"{report.error:.4g}" in str(report)


# --- fits


@pytest.mark.parametrize("make", [vq, fsq])
def test_a_fit_learns_and_is_a_function_of_its_seed(make):
    x = frames()
    before = make().report(x)
    state = torch.random.get_rng_state()
    a, b, c = make(), make(), make()
    assert same(a, b)
    report = a.fit(x, 60, 8, 1e-2)
    assert report.error < 0.5 * before.error
    assert report.error < 0.5 * report.constant
    assert report.perplexity > 4
    b.fit(x, 60, 8, 1e-2)
    c.fit(x, 60, 8, 1e-2, seed=1)
    assert same(a, b)
    assert not same(a, c)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not same(make(), make(seed=1))


@pytest.mark.parametrize("make", [vq, fsq])
def test_a_fit_that_was_cut_short_goes_on_as_if_it_was_not(make, tmp_path: Path):
    x = frames()
    whole = make()
    whole.fit(x, 12, 8)

    class Cut(Exception):
        pass

    class Frames:
        """Fails in the ninth step."""

        left = 8 * 8

        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, i: int) -> Tensor:
            self.left -= 1
            if self.left < 0:
                raise Cut
            return x[i]

    with pytest.raises(Cut):
        make().fit(Frames(), 12, 8, folder=tmp_path, every=5)
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint.safetensors", "losses.jsonl"}
    with pytest.raises(ValueError, match="another training: steps is 12 there and 13 here"):
        make().fit(x, 13, 8, folder=tmp_path)
    resumed = make()
    report = resumed.fit(x, 12, 8, folder=tmp_path, every=5)
    assert same(resumed, whole)
    log = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [0, 11]
    assert log[0].keys() == {"step", "loss", "reconstruction", "commitment", "lr", "rate"}
    assert {p.name for p in tmp_path.iterdir()} == {"tokenizer.safetensors", "losses.jsonl"}
    ready = make()
    before = {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    assert ready.fit(x, 12, 8, folder=tmp_path) == report
    assert same(ready, whole)
    assert {p.name: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before  # nothing was trained


def test_a_function_gives_the_batch_of_a_step():
    steps: list[int] = []

    def batch(step: int) -> Tensor:
        steps.append(step)
        return frames(8, seed=step)

    fsq().fit(batch, 3)
    assert steps[:3] == [0, 1, 2]


@pytest.mark.parametrize("make", [vq, fsq])
def test_what_is_saved_gives_the_same_ids(make, tmp_path: Path):
    x = frames()
    tokenizer = make(NORMALS, network="transformer", width=32)
    tokenizer.fit(x, 3, 8)
    tokenizer.save(tmp_path / "t.safetensors")
    loaded = load_tokenizer(tmp_path / "t.safetensors")
    assert type(loaded) is type(tokenizer)
    assert (loaded.modality, loaded.grid, loaded.arguments) == (NORMALS, (2, 2), tokenizer.arguments)
    ids = tokenizer.encode(x)
    assert torch.equal(loaded.encode(x), ids)
    assert torch.equal(loaded.decode(ids), tokenizer.decode(ids))


def test_another_files_tensors_are_not_taken(tmp_path: Path):
    fsq().save(tmp_path / "t.safetensors")
    tensors = load_file(tmp_path / "t.safetensors")
    facts = {"step": "0", "described": json.dumps(fsq()._facts())}
    tensors["model.encoder.0.renamed"] = tensors.pop("model.encoder.0.weight")
    save_file(tensors, tmp_path / "t.safetensors", facts)
    with pytest.raises(WeightsError, match="2 tensors differ"):
        load_tokenizer(tmp_path / "t.safetensors")
    save_file(tensors, tmp_path / "t.safetensors")
    with pytest.raises(WeightsError, match="metadata lack 'kind'"):
        load_tokenizer(tmp_path / "t.safetensors")
    with pytest.raises(FileNotFoundError, match="expected a tokenizer"):
        load_tokenizer(tmp_path / "nothing.safetensors")


# --- modalities


def test_classes_are_named_and_unknown_stays_unknown():
    labels = (frames(24, 1)[:, 0] * 3).long()
    labels[:, :8, :8] = 255
    tokenizer = fsq(classes("semseg", 3))
    report = tokenizer.fit(labels, 80, 8, 1e-2)
    told = tokenizer.decode(tokenizer.encode(labels))
    known = labels != 255
    assert report.unit == "% wrong"
    assert report.error == pytest.approx(100 * (told != labels)[known].float().mean().item())
    most = max((labels == k).sum().item() for k in range(3))
    assert report.constant == pytest.approx(100 * (1 - most / known.sum().item()), rel=1e-5)
    assert report.error < 0.3 * report.constant
    assert (told == 255)[~known].float().mean() > 0.9
    assert set(told.unique().tolist()) <= {0, 1, 2, 255}


def test_feature_maps_are_resized_and_keep_their_scale():
    torch.manual_seed(0)
    basis = F.normalize(torch.randn(6, 12), dim=1)
    x = 50 + 100 * basis[torch.randint(6, (24, 4, 4))].permute(0, 3, 1, 2)
    tokenizer = vq(features("clip", 12), size=(4, 4), patch=1, width=32)
    report = tokenizer.fit(x, 60, 8, 1e-2)
    told = tokenizer.decode(tokenizer.encode(x))
    assert told.shape == (24, 12, 4, 4)
    a, b = told.double().numpy(), x.double().numpy()
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    assert report.unit == "1 - cosine"
    assert report.error == pytest.approx(1 - cosine.mean(), abs=1e-5)
    assert report.error < 0.3 * report.constant
    big = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert tokenizer.encode(big).shape == (24, 16)
    exact = fsq(features("clip", 12), size=(2, 2), patch=1)
    flat = frames(4, 12)[..., :1, :1]
    assert torch.equal(exact.encode(flat.expand(-1, -1, 7, 5)), exact.encode(flat.expand(-1, -1, 2, 2)))


def test_losses_are_those_of_the_modalities():
    a, b = frames(2), frames(2, seed=1)
    assert vq(RGB)._loss(a, b).item() == pytest.approx(((a - b) ** 2).mean().item())
    for modality in (DEPTH, EDGES):
        d = 4 * (a - b)[:, :1].abs()
        smooth = torch.where(d < 1, d**2 / 2, d - 0.5).mean().item()
        assert vq(modality)._loss(4 * a[:, :1], 4 * b[:, :1]).item() == pytest.approx(smooth)


def test_the_mean_is_where_nothing_was_measured():
    tokenizer = vq(DEPTH)
    nothing = torch.full((1, 1, 16, 16), torch.nan)
    assert torch.equal(tokenizer.encode(nothing), tokenizer.encode(torch.full((1, 1, 16, 16), 3.0)))
    assert tokenizer.report(torch.cat([nothing, 5 * frames(3, 1)])).error > 0


@pytest.mark.parametrize(
    ("size", "patch"), [((128, 128), 16), ((28, 42), 14), ((12, 8), 4), ((6, 6), 3), ((32, 32), 32)]
)
def test_every_patch_has_its_token_and_every_token_its_patch(size: tuple[int, int], patch: int):
    tokenizer = vq(size=size, patch=patch)
    h, w = tokenizer.grid
    assert (h * patch, w * patch) == size
    ids = tokenizer.encode(torch.rand(1, 3, *size))
    assert ids.shape == (1, h * w)
    assert tokenizer.decode(ids).shape == (1, 3, *size)


def test_errors_say_what_to_do(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="is a sequence"):
        vq(boxes("det", 100))
    with pytest.raises(ValueError, match="expected patch=1, got 8"):
        vq(features("clip", 8))
    with pytest.raises(ValueError, match="multiple of patch"):
        vq(size=(17, 16))
    with pytest.raises(ValueError, match="multiple of 8"):
        vq(width=12)
    with pytest.raises(ValueError, match="'convolution' or 'transformer'"):
        vq(network="mlp")
    with pytest.raises(ValueError, match="at least 3"):
        fsq(levels=(2, 3))
    with pytest.raises(ValueError, match=r"expected \(N, 3, 16, 16\), got \(2, 3, 8, 8\)"):
        vq().encode(frames(2, size=8))
    with pytest.raises(ValueError, match="expected whole numbers below 3, got torch.float32"):
        vq(classes("semseg", 3)).encode(frames(2)[:, 0])
    with pytest.raises(ValueError, match=r"expected ids \(N, 4\)"):
        vq().decode(torch.zeros(1, 2, 2, dtype=torch.long))
    with pytest.raises(ValueError, match=r"0 ... 23, got 0 ... 24"):
        vq().decode(torch.tensor([[0, 1, 2, 24]]))
    with pytest.raises(ValueError, match="no frames"):
        vq().fit(frames(0))
    with pytest.raises(ArithmeticError, match="lower the learning rate"):
        fsq().fit(frames(2), 3, 2, lr=1e30)
    monkeypatch.setitem(sys.modules, "vector_quantize_pytorch", None)
    with pytest.raises(ImportError, match=r"testtime\[space\]"):
        vq()


NAN, INF = float("nan"), float("inf")


def spoilt(value: float, channels: int = 3) -> Tensor:
    x = frames(2, channels)
    x[0, 0, 0, 0] = value
    return x


@pytest.mark.parametrize(
    ("modality", "value", "message"),
    [
        (
            RGB,
            torch.full((2, 3, 16, 16), 255, dtype=torch.uint8),
            r"rgb: expected floats in \[0, 1\], got torch.uint8",
        ),
        (RGB, torch.zeros(2, 3, 16, 16, dtype=torch.int64), r"rgb: expected floats in \[0, 1\]"),
        (RGB, 255 * frames(2), r"floats in \[0, 1\], got values from .* divide 8-bit images by 255"),
        (RGB, frames(2) - 1, r"floats in \[0, 1\], got values"),
        (RGB, spoilt(NAN), "rgb: expected finite floats .* got NaN in 1 of 1536"),
        (RGB, spoilt(INF), "rgb: expected finite floats .* got infinity"),
        (EDGES, 255 * frames(2, 1), r"edge: expected floats in \[0, 1\]"),
        (NORMALS, 127 * frames(2), r"normals: expected floats in \[-1, 1\]"),
        (NORMALS, spoilt(-INF), "got infinity"),
        (DEPTH, spoilt(INF, 1), "depth: expected finite floats, got infinity"),
        (DEPTH, torch.full((2, 1, 16, 16), 900), "depth: expected floats, got torch.int64"),
        (
            classes("c", 5),
            torch.full((2, 16, 16), 7),
            "c: expected ids below 5, or 255 where none is known, got 7",
        ),
        (classes("c", 5), torch.full((2, 16, 16), -2), "got -2"),
        (classes("c", 5), torch.zeros(2, 16, 16), "c: expected whole numbers below 5, got torch.float32"),
    ],
)
@pytest.mark.parametrize("make", [vq, fsq])
def test_values_of_another_type_or_range_are_refused(modality, value, message, make, tmp_path):
    tokenizer = make(modality)
    before = {k: v.clone() for k, v in tokenizer.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        tokenizer.encode(value)
    with pytest.raises(ValueError, match=message):
        tokenizer.fit(value, steps=2, batch=2, folder=tmp_path)
    assert all(torch.equal(v, before[k]) for k, v in tokenizer.state_dict().items())
    assert not list(tmp_path.iterdir())


def test_features_that_are_not_finite_are_refused():
    tokenizer = fsq(features("clip", 8), size=(4, 4), patch=1)
    for value in (NAN, INF):
        with pytest.raises(ValueError, match="clip: expected finite floats"):
            tokenizer.encode(torch.full((1, 8, 4, 4), value))


@pytest.mark.parametrize("modality", [EDGES, DEPTH, NORMALS])
def test_pixels_that_are_not_known_are_the_middle_of_the_range(modality):
    tokenizer = fsq(modality)
    x = frames(3, modality.channels)
    x[0, :, :3, :3] = torch.nan
    x[1] = torch.nan
    ids = tokenizer.encode(x)
    assert 0 <= int(ids.min()) <= int(ids.max()) < tokenizer.vocabulary
    assert tokenizer._prepared(x)[1].abs().max() == 0
    if modality is EDGES:
        assert torch.equal(ids, tokenizer.encode(x.nan_to_num(0.5)))
    assert math.isfinite(tokenizer.fit(x, steps=2, batch=3).error)


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"batch": 0}, {"every": 0}, {"lr": 0.0}, {"lr": NAN}, {"lr": INF}],
    ids=str,
)
def test_fits_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="steps, batch and every are at least 1 and lr is above 0"):
        fsq().fit(frames(2), **wrong)


@pytest.mark.parametrize(
    ("make", "wrong"),
    [
        (vq, {"codebook": 1}),
        (vq, {"latent": 0}),
        (vq, {"depth": -1}),
        (vq, {"width": 0}),
        (vq, {"size": (0, 0)}),
        (vq, {"decay": 1.0}),
        (vq, {"decay": NAN}),
        (vq, {"commitment": -1.0}),
        (vq, {"commitment": INF}),
        (fsq, {"levels": (4.5, 3)}),
        (fsq, {"levels": ()}),
    ],
)
def test_tokenizers_that_cannot_be_are_refused(make, wrong):
    with pytest.raises(ValueError, match="got"):
        make(**wrong)


def test_ids_that_are_no_whole_numbers_are_refused():
    with pytest.raises(ValueError, match="as whole numbers, got .* torch.float32"):
        fsq().decode(torch.zeros(1, 4))


@pytest.mark.parametrize(
    "wrong",
    [
        {"width": 10**9},
        {"size": 3},
        {"levels": [2.5]},
        {"modality": {"name": "x"}},
        {"modality": 5},
        {"width": "8"},
        {"depth": -1},
    ],
    ids=str,
)
def test_files_of_tokenizers_that_lie_are_refused(tmp_path, wrong):
    path = tmp_path / "t.safetensors"
    fsq().save(path)
    facts = {**fsq()._facts(), **wrong}
    save_file(load_file(path), path, {"step": "0", "described": json.dumps(facts)})
    with pytest.raises(WeightsError, match=r"t\.safetensors is not of a tokenizer"):
        load_tokenizer(path)
    path.write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=r"t\.safetensors is not of a tokenizer"):
        load_tokenizer(path)
