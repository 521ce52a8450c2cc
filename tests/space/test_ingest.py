"""Ingestion of a space: misalignment found where there is some, every stage kept, and the contact sheet."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from small_house import Changed, small_house

from testtime.errors import DataError
from testtime.scenes import SceneSet
from testtime.space.alignment import alignment
from testtime.space.frames import SpaceFrames
from testtime.space.ingest import IngestOptions, TokenizerRecipe, ingest, summary
from testtime.space.modalities import EDGES, RGB, boxes, classes, features, truncated
from testtime.space.sequences import Box, BoxVocabulary
from testtime.space.shards import Shards
from testtime.space.sources import SensorSet
from testtime.space.tokenizers import Tokenizer, load_tokenizer, perplexity
from testtime.space.walkthrough import Walkthrough

pytest.importorskip("vector_quantize_pytorch")
pytest.importorskip("cv2")

QUICK = TokenizerRecipe(levels=(8, 6, 5), width=16, steps=20, batch=8)


@pytest.fixture(scope="module")
def scenes() -> SceneSet:
    return small_house()


@pytest.fixture(scope="module")
def taken(scenes, tmp_path_factory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("taken")
    return out, ingest(scenes, out, 32, 8, crops=3, recipe=QUICK, options=IngestOptions(rows=2), seed=5)


def test_tokens_are_those_of_the_tokenizers_that_were_written(taken, scenes):
    out, report = taken
    shards = Shards(out / "shards")
    assert [s.name for s in shards.streams] == ["rgb", "tok_rgb", "tok_depth", "tok_normals", "tok_edge"]
    assert (len(shards), shards.size, shards.crops) == (10, (32, 32), 3)
    stored = load_file(out / "shards" / "shard-00000.safetensors")
    picture = scenes[0].image[:, :, 8:56]
    small = torch.nn.functional.interpolate(picture[None], (32, 32), mode="bilinear", antialias=True)[0]
    assert float((stored["rgb"][0, 0] / 255 - small).abs().max()) < 0.5 / 255 + 1e-6
    rgb = load_tokenizer(out / "tokenizers" / "tok_rgb" / "tokenizer.safetensors")
    assert torch.equal(rgb.encode(small[None])[0], stored["tok_rgb"][0, 0].long())
    # Of the report the perplexity can be told from the shards: the tokenizer learned from the same crops.
    for name in ("depth", "normals", "edge"):
        assert report["modalities"][name]["perplexity"] == pytest.approx(
            perplexity(stored[f"tok_{name}"].long(), 240), rel=1e-4
        )
    assert report["modalities"]["rgb"]["error"] < report["modalities"]["rgb"]["constant"]


def test_the_report_says_what_was_found(taken, scenes):
    out, report = taken
    assert report == json.loads((out / "report.json").read_text())
    assert report["frames"] == 10
    assert report["normals"] == "sensed"
    assert report["warnings"] == []
    assert report["alignment"]["depth"]["score"] == alignment(scenes, "depth").score
    assert report["alignment"]["normals of depth"]["angle"] < 1
    depth = torch.stack([scenes[i].labels["depth"] for i in (0, 1, 3, 4, 5, 6, 8, 9)])
    assert report["alignment"]["metres"]["median"] == pytest.approx(float(depth.median()), abs=2e-3)
    table = summary(report)
    assert "10 frames of" in table
    assert "normals: a median of 0." in table
    for name in ("rgb", "depth", "normals", "edge"):
        row = next(line for line in table.splitlines() if line.startswith(f"{name} "))
        assert row.split()[1] == "240"


def test_the_sheet_shows_each_modality_and_what_its_tokens_tell(taken, scenes):
    out, _ = taken
    sheet = np.asarray(Image.open(out / "sheet.png"))
    factor, gap, side, top = 5, 6, 92, 86 + 18
    width = 32 * factor
    rows = ((torch.arange(32) + 0.5) * 48 / 32).long()

    def shown(column: int, row: int, frame: int) -> np.ndarray:
        x, y = side + column * (width + gap), top + frame * (2 * width + 68) + row * (width + 19)
        return sheet[y + 2 : y + width : factor, x + 2 : x + width : factor]

    normals = scenes[9].labels["normals"][:, :, 8:56][:, rows[:, None], rows]
    expected = ((normals + 1) * 127.5).round().permute(1, 2, 0).numpy()
    assert np.array_equal(shown(2, 0, 1), expected.astype(np.uint8))
    tokenizer = load_tokenizer(out / "tokenizers" / "tok_normals" / "tokenizer.safetensors")
    told = tokenizer.decode(tokenizer.encode(normals[None]))[0]
    told = ((told / told.norm(dim=0, keepdim=True) + 1) * 127.5).round().permute(1, 2, 0)
    assert np.abs(shown(2, 1, 1).astype(int) - told.numpy()).max() <= 1
    depth = scenes[0].labels["depth"][:, :, 8:56][:, rows[:, None], rows]
    nearest = np.argmin(truncated(depth[None])[0, 0].numpy())
    assert shown(1, 0, 0).reshape(-1, 3)[nearest].tolist() == [68, 1, 84]
    edges = SpaceFrames(scenes, ["edge"], edge_side=32)[0]["edge"]  # 32 x 43
    small = F.interpolate(edges[None, :, :, 5:38], (32, 32), mode="bilinear", antialias=True)[0, 0]
    assert np.abs(shown(3, 0, 0) - 255 * small[..., None].numpy()).max() <= 1


def test_what_is_there_is_kept(taken, scenes, monkeypatch):
    out, report = taken
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    monkeypatch.setattr(Tokenizer, "fit", lambda *a, **k: pytest.fail("learned again"))
    monkeypatch.setattr("testtime.space.ingest.alignment", lambda *a, **k: pytest.fail("looked again"))
    monkeypatch.setattr("testtime.space.shards._write", lambda *a, **k: pytest.fail("tokenised again"))
    assert ingest(scenes, out, 32, 8, crops=3, recipe=QUICK, options=IngestOptions(rows=2), seed=5) == report
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == files
    with pytest.raises(DataError, match=r"holds something else \(seed: 5 there, 6 asked\)"):
        ingest(scenes, out, 32, 8, crops=3, recipe=QUICK, options=IngestOptions(rows=2), seed=6)
    with pytest.raises(DataError, match=r"holds something else \(frames: 10 there, 9 asked"):
        ingest(
            scenes,
            out,
            32,
            8,
            crops=3,
            recipe=QUICK,
            options=IngestOptions(rows=2, limit=9),
            seed=5,
        )


def test_a_killed_work_ends_the_same(taken, scenes, tmp_path, monkeypatch):
    out, report = taken
    fit, count = Tokenizer.fit, [0]

    def killed(self, *args, **kw):
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        return fit(self, *args, **kw)

    monkeypatch.setattr(Tokenizer, "fit", killed)
    with pytest.raises(KeyboardInterrupt):
        ingest(scenes, tmp_path, 32, 8, crops=3, recipe=QUICK, options=IngestOptions(rows=2), seed=5)
    assert not (tmp_path / "report.json").exists()
    assert (
        ingest(scenes, tmp_path, 32, 8, crops=3, recipe=QUICK, options=IngestOptions(rows=2), seed=5)
        == report
    )
    assert count[0] == 5
    files = {p.relative_to(out) for p in out.rglob("*") if p.is_file()}
    assert files == {p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file()}
    a, b = (load_file(folder / "shards" / "shard-00000.safetensors") for folder in (out, tmp_path))
    assert all(torch.equal(v, b[k]) for k, v in a.items())


def test_a_folder_of_pictures_is_enough(scenes, tmp_path):
    for i in range(4):
        picture = (scenes[i].image * 255).round().byte().permute(1, 2, 0).numpy()
        (tmp_path / "walk").mkdir(exist_ok=True)
        Image.fromarray(picture).save(tmp_path / "walk" / f"{i}.png")
    report = ingest(tmp_path / "walk", tmp_path / "out", 16, 8, crops=1, recipe=replace(QUICK, steps=3))
    assert list(report["modalities"]) == [RGB.name, EDGES.name]
    assert report["normals"] == "there is no depth"
    assert report["alignment"] == {}
    assert "pictures only" in summary(report)
    assert Image.open(tmp_path / "out" / "sheet.png").size[0] >= 620
    assert [s.name for s in Shards(tmp_path / "out" / "shards").streams] == ["rgb", "tok_rgb", "tok_edge"]


def test_faults_are_in_report_summary_and_on_the_sheet(scenes, tmp_path):
    lines: list[str] = []
    data = Changed(scenes, lambda x: 1000 * x.roll(2, -1), only="depth")
    quick = replace(QUICK, kind="vq", codebook=32, steps=2)
    report = ingest(
        data,
        tmp_path,
        16,
        8,
        crops=1,
        recipe=quick,
        sensors=["depth"],
        options=IngestOptions(rows=1),
        log=lines.append,
    )
    shift, unit = report["warnings"]
    assert "shifted by (-2, 0) pixels" in shift
    assert "m; check that the unit is metres" in unit
    assert f"warning: {shift}" in lines
    assert f"warning: {unit}" in summary(report)
    assert list(report["modalities"]) == ["rgb", "depth"]
    assert report["modalities"]["depth"]["vocabulary"] == 32
    colours = np.asarray(Image.open(tmp_path / "sheet.png")).reshape(-1, 3)
    assert (colours == (176, 42, 30)).all(1).sum() > 100


def test_pseudo_labels_of_every_kind_are_taken_in(scenes, tmp_path):
    vocabulary = BoxVocabulary(["thing"], bins=17, sentinels=12)
    pseudo = {
        "shade": lambda x: (x.mean(1) * 3).long().clamp(0, 2),
        "means": lambda x: torch.nn.functional.avg_pool2d(x, 8),
        "boxes": lambda x: [[Box(0.25, 0.25, 0.75, 0.5, "thing", 0.9)] for _ in x],
    }
    kinds = {
        "shade": classes("shade", 3),
        "means": features("means", 3),
        "boxes": boxes("boxes", len(vocabulary)),
    }
    report = ingest(
        *(scenes, tmp_path, 16, 8),
        crops=1,
        recipe=replace(QUICK, steps=2),
        sensors=[],
        options=IngestOptions(rows=1, pseudo=pseudo, modalities=kinds, vocabulary=vocabulary, box_tokens=8),
    )
    assert [m["form"] for m in report["modalities"].values()] == ["image", "classes", "features", "sequence"]
    stored = Shards(tmp_path / "shards").read([3], [0])
    assert stored["tok_means"].shape == stored["tok_shade"].shape == (1, 4)
    # The square in the middle is 48 of 64 wide: 16 to 48 of 64 are 8 to 40 of 48.
    found = vocabulary.decode(stored["boxes"][0][stored["boxes"][0] >= 0].long())
    assert [(b.x0, b.y0, b.x1, b.y1) for b in found] == [(3 / 16, 4 / 16, 13 / 16, 8 / 16)]
    with pytest.raises(ValueError, match="expected the modality of each pseudo-label"):
        ingest(scenes, tmp_path / "b", 16, 8, options=IngestOptions(pseudo=pseudo))


def test_bad_arguments_are_refused(scenes, tmp_path):
    with pytest.raises(ValueError, match="expected a size in multiples of patch"):
        ingest(scenes, tmp_path, 20, 8)
    with pytest.raises(ValueError, match="but no heat"):
        ingest(scenes, tmp_path, 16, 8, sensors=["heat"])
    assert SpaceFrames(SensorSet(scenes), ["edge"])[0]["edge"].shape == (1, 48, 64)


def test_other_depth_or_intrinsics_in_the_folder_of_an_ingested_walk_are_refused(tmp_path):
    rng = np.random.default_rng(0)
    for i in range(2):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"frame_{i}.png")
    (tmp_path / "depth").mkdir()

    def write(scale: int) -> None:
        for i in range(2):
            metres = np.linspace(1000, 2000, 32 * 32).reshape(32, 32) * scale
            Image.fromarray(metres.astype(np.uint16)).save(tmp_path / "depth" / f"frame_{i}.png")

    def take(fov: float) -> dict:
        walk = Walkthrough(tmp_path, tmp_path / "depth", fov=fov)
        return ingest(walk, tmp_path / "out", 32, 8, crops=1, recipe=replace(QUICK, steps=2))

    write(1)
    first = take(60.0)
    assert take(60.0) == first
    with pytest.raises(DataError, match="holds something else"):
        take(90.0)
    write(2)
    with pytest.raises(DataError, match="holds something else"):
        take(60.0)
    path = tmp_path / "out" / "ingest.json"
    about = json.loads(path.read_text())
    del about["sensed"]  # as before November 2026
    path.write_text(json.dumps(about))
    assert take(60.0) == first
