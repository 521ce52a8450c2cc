"""testtime space: what it prints and writes, on a preset of seconds."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from space_speck import SPECK

from testtime.cli import main
from testtime.space import analyses, demo
from testtime.space.analyses import ANALYSES, FLOOR, Analysis, Entry
from testtime.space.generate import predicted, span
from testtime.space.masking import Stream
from testtime.space.model import FourM
from testtime.space.pictures import hidden
from testtime.space.presets import PRESETS

pytest.importorskip("embreex", reason="pip install -e '.[scenes]'")
pytest.importorskip("vector_quantize_pytorch", reason="pip install -e '.[space]'")


def test_list_names_presets_and_analyses(capsys):
    assert main(["space", "list"]) == 0
    out = capsys.readouterr().out
    for name in (*PRESETS, *ANALYSES):
        assert f"  {name} " in out


def test_bench_runs_an_analysis_and_goes_on(tmp_path, monkeypatch, capsys):
    short = Analysis(
        "main", "Short?", "table 1", lambda preset: [Entry("Scratch", "mIoU", FLOOR)], seeds=(0, 1)
    )
    monkeypatch.setitem(PRESETS, "speck", SPECK)
    monkeypatch.setitem(ANALYSES, "main", short)
    command = ["space", "bench", "main", "--preset", "speck", "--out", str(tmp_path), "--jobs", "1"]
    assert main(command) == 0
    out = capsys.readouterr().out
    about = json.loads((tmp_path / "speck" / "main" / "results.json").read_text())
    assert about["command"] == ["testtime", *command]
    assert [r["seed"] for r in about["results"]] == [0, 1]
    values = [r["mIoU"] for r in about["results"]]
    assert f"{np.mean(values):.1f} ±{np.std(values, ddof=1):.1f}" in out
    before = (tmp_path / "speck" / "main" / "results.json").read_bytes()
    assert main(command) == 0
    assert (tmp_path / "speck" / "main" / "results.json").read_bytes() == before


@pytest.mark.slow
def test_every_analysis_ends_with_its_table_and_its_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "speck", replace(SPECK, frames=64, tests=12))
    for name, analysis in ANALYSES.items():
        command = ["space", "bench", name, "--preset", "speck", "--seeds", "0", "--out", str(tmp_path)]
        assert main(command) == 0, name
        assert analysis.title in capsys.readouterr().out
        folder = tmp_path / "speck" / name
        values = [r["value"] for r in json.loads((folder / "results.json").read_text())["results"]]
        assert len(values) == len(analysis.entries(PRESETS["speck"]))
        assert np.isfinite(values).all(), name
        assert "<svg" in (folder / "report.html").read_text(), name


def test_bench_takes_encoders_of_others(tmp_path, monkeypatch):
    transformers = pytest.importorskip("transformers", reason="pip install -e '.[interop]'")
    config = transformers.ViTConfig(
        hidden_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        image_size=32,
        patch_size=8,
    )
    transformers.ViTModel(config).save_pretrained(tmp_path / "vit")
    transformers.ViTImageProcessor().save_pretrained(tmp_path / "vit")
    short = Analysis(
        "main", "Short?", "table 1", lambda preset: [Entry("Scratch", "mIoU", FLOOR)], seeds=(0,)
    )
    monkeypatch.setitem(PRESETS, "speck", SPECK)
    monkeypatch.setitem(ANALYSES, "main", short)
    name = f"huggingface:{tmp_path / 'vit'}"
    command = ["space", "bench", "main", "--preset", "speck", "--out", str(tmp_path), "--encoders", name]
    assert main(command) == 0
    results = json.loads((tmp_path / "speck" / "main" / "results.json").read_text())["results"]
    assert [r["row"] for r in results] == ["Scratch", name]
    assert 0 <= results[1]["mIoU"] <= 100


def test_demo_draws_what_the_model_expects(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo.run_demo, "__defaults__", (SPECK, 0, 2, print))
    assert main(["space", "demo", "--out", str(tmp_path), "--jobs", "1"]) == 0
    assert [r["row"] for r in json.loads((tmp_path / "results.json").read_text())["results"]] == [
        analyses.FLOOR.name,
        analyses.SENSED.name,
        analyses.WHOLE.name,
    ]
    assert "data:image/png;base64," in (tmp_path / "report.html").read_text()
    sheet = np.asarray(Image.open(tmp_path / "pictures" / "light.png"))
    assert sheet.shape[1] == 6 + 10 * (112 + 6)  # picture, shown, five modalities, label, two segmentations


def test_ingest_takes_a_folder_of_pictures(tmp_path, capsys):
    walk, out = tmp_path / "walk", tmp_path / "out"
    walk.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(walk / f"{i}.png")
    command = [
        "space",
        "ingest",
        str(walk),
        "--out",
        str(out),
        "--size",
        "16",
        "--patch",
        "8",
        "--crops",
        "2",
    ]
    assert main([*command, "--levels", "3", "3", "--steps", "2"]) == 0
    text = capsys.readouterr().out
    assert text.strip().endswith(str(out / "sheet.png"))
    assert {p.name for p in (out / "tokenizers").iterdir()} == {"tok_rgb", "tok_edge"}
    assert json.loads((out / "shards" / "shards.json").read_text())["frames"] == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "no-such"], "no analysis 'no-such'; there are main"),
        (["bench", "main", "--preset", "huge"], "no preset 'huge'; there are tiny"),
        (["report", "nowhere"], "nowhere holds no results.json"),
        (["ingest", "nowhere", "--out", "out"], "nowhere: no such file or folder"),
    ],
)
def test_mistakes(arguments, message, capsys):
    assert main(["space", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_prediction_is_the_argmax_of_every_place():
    streams = [
        Stream("rgb", "pixels", 4),
        Stream("tok_depth", "grid", 4, 5),
        Stream("boxes", "sequence", 6, 9),
    ]
    torch.manual_seed(0)
    model = FourM(streams, SPECK.size, (16, 16), 8).eval()
    x = torch.rand(2, 3, 16, 16)
    ids = predicted(model, "tok_depth", x)
    again = predicted(model, "tok_depth", x, shown=torch.tensor([[0, 1, 2, 3], [3, 2, 1, 0]]))
    assert torch.equal(ids, again)  # all patches shown, in whatever order
    given = predicted(model, "tok_depth", x, given=("tok_depth", torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]])))
    other = predicted(
        model, "tok_depth", 1 - x, given=("tok_depth", torch.tensor([[0, 1, 2, 3], [4, 3, 2, 1]]))
    )
    assert torch.equal(given, other)  # the picture is not looked at
    assert span(model, "tok_depth") == range(4, 8)
    with pytest.raises(ValueError, match="no stream 'tok_sound'; the model has rgb, tok_depth, boxes"):
        predicted(model, "tok_sound", x)
    with pytest.raises(ValueError, match="of kind 'sequence'"):
        predicted(model, "boxes", x)


def test_hidden_patches_are_grey():
    image = torch.zeros(3, 16, 16)
    pixels = hidden(image, torch.tensor([3]), 8)
    assert (pixels[8:, 8:] == 0).all()
    assert (pixels[:8] == 128).all()
