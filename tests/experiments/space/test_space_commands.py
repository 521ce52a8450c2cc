"""testtime run space-..., and the commands that testtime space had: what they print and write, on a preset of seconds."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from space_speck import SPECK

from testtime.cli import main
from testtime.experiments import find_experiment, read_run
from testtime.experiments.space.analyses import ANALYSES, FLOOR, SENSED, WHOLE, Entry, entries
from testtime.experiments.space.listing import EXPERIMENTS
from testtime.experiments.space.presets import PRESETS

pytest.importorskip("embreex", reason="pip install -e '.[scenes]'")
pytest.importorskip("vector_quantize_pytorch", reason="pip install -e '.[space]'")


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setitem(PRESETS, "speck", SPECK)
    monkeypatch.setitem(ANALYSES, "main", [Entry("Scratch", "mIoU", FLOOR)])
    monkeypatch.setitem(EXPERIMENTS["main"], "seeds", [0, 1])


def test_list_names_experiments(capsys):
    assert main(["list", "space"]) == 0
    out = capsys.readouterr().out
    for name in ANALYSES:
        assert f"  space-{name} " in out


def test_bench_runs_an_experiment_and_goes_on(short, tmp_path, capsys):
    command = ["space", "bench", "main", "--preset", "speck", "--out", str(tmp_path), "--jobs", "1"]
    assert main(command) == 0
    out, folder = capsys.readouterr().out, tmp_path / "speck" / "main"
    run = read_run(folder)
    now = ["testtime", "run", "space-main", "--out", str(folder), "--jobs", "1", "--set", "preset=speck"]
    assert run.about["sessions"][0]["command"] == now
    values = [record.result["mIoU"] for record in run.records()]
    assert [record.seed for record in run.records()] == [0, 1]
    assert f"{np.mean(values):.1f} ±{np.std(values, ddof=1):.1f}" in out
    assert str(folder / "report.html") in out
    before = {path: path.read_bytes() for path in (folder / "results").iterdir()}
    assert main(command) == 0
    assert {path: path.read_bytes() for path in (folder / "results").iterdir()} == before
    (folder / "report.html").unlink()
    assert main(["space", "report", str(folder)]) == 0
    assert "Scratch" in (folder / "report.html").read_text()


@pytest.mark.slow
def test_bench_takes_encoders_of_other_libraries(short, tmp_path):
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
    name, out = f"huggingface:{tmp_path / 'vit'}", str(tmp_path / "run")
    command = ["run", "space-main", "--seeds", "0", "--out", out]
    assert main([*command, "--set", "preset=speck", f'encoders=["{name}"]']) == 0
    records = read_run(out).records()
    assert [record.row for record in records] == ["Scratch", name]
    assert 0 <= records[1].result["mIoU"] <= 100


def test_demo_draws_what_the_model_expects(tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "demo", SPECK)
    out = tmp_path / "demo"
    assert main(["space", "demo", "--out", str(out), "--jobs", "1"]) == 0
    run = read_run(out)
    assert [record.row for record in run.records()] == [FLOOR.name, SENSED.name, WHOLE.name]
    text = (out / "report.html").read_text()
    assert text.count("data:image/png;base64,") == 2  # on light and on dark ground
    sheet = np.asarray(Image.open(io.BytesIO(base64.b64decode(run.other("pictures")["light"]))))
    assert sheet.shape[1] == 6 + 10 * (112 + 6)  # picture, shown, five modalities, label, two segmentations


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store")


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ANALYSES if name != "own"])  # see test_own_space.py
def test_every_experiment_ends_with_its_table_and_its_page(name, store, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(PRESETS, "speck", replace(SPECK, frames=64, tests=12))
    command = ["run", f"space-{name}", "--seeds", "0", "--out", str(tmp_path), "--store", str(store)]
    assert main([*command, "--set", "preset=speck"]) == 0
    assert find_experiment(f"space-{name}").title in capsys.readouterr().out
    run = read_run(tmp_path)
    values = [record.result[record.about["measure"]] for record in run.records()]
    assert len(values) == len(entries(name, PRESETS["speck"]))
    assert np.isfinite(values).all()
    assert "<svg" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "no-such"], "no experiment 'space-no-such'"),
        (["bench", "main", "--preset", "huge"], "no preset 'huge'; there are tiny"),
        (["report", "nowhere"], "nowhere is not the folder of a run"),
        (["ingest", "nowhere", "--out", "out"], "nowhere: no such file or folder"),
    ],
)
def test_mistakes(arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["space", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_ingest_takes_a_folder_of_pictures(tmp_path, capsys):
    walk, out = tmp_path / "walk", tmp_path / "out"
    walk.mkdir()
    rng = np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8)).save(walk / f"{i}.png")
    sizes = ["--size", "16", "--patch", "8", "--crops", "2", "--levels", "3", "3", "--steps", "2"]
    assert main(["space", "ingest", str(walk), "--out", str(out), *sizes]) == 0
    text = capsys.readouterr().out
    assert text.strip().endswith(str(out / "sheet.png"))
    assert {p.name for p in (out / "tokenizers").iterdir()} == {"tok_rgb", "tok_edge"}
    assert json.loads((out / "shards" / "shards.json").read_text())["frames"] == 3
