"""Studies: every row of every table runs, cells are files, a second call goes on, a row that fails leaves the others alone."""

import json
from dataclasses import replace
from typing import final

import pytest
import torch
from speck import SPECK

from testtime import Adapter
from testtime.methods import Source
from testtime.multitask.presets import GROUPS, PRESETS, Noisy
from testtime.multitask.protocol import Protocol
from testtime.multitask.studies import BASE, OURS, STUDIES
from testtime.multitask.study import Row, Study, read_cells, run_study, slug

pytest.importorskip("PIL", reason="pip install -e '.[images]'")
pytest.importorskip("embreex", reason="pip install -e '.[scenes]'")

SHORT = Protocol(steps=2, batch=4)


@pytest.fixture
def speck(monkeypatch):
    monkeypatch.setitem(PRESETS, "speck", SPECK)
    return SPECK


def fails(model, rate, seed):
    raise RuntimeError("no such luck")


def study(monkeypatch, *rows, **facts):
    one = Study("speck", "a speck", rows, seeds=(0, 1), protocol=SHORT, **facts)
    monkeypatch.setitem(STUDIES, "speck", one)
    return one


def test_cells_are_files_and_a_second_call_goes_on(speck, monkeypatch, tmp_path):
    ours = replace(OURS, rates=(1e-3, 1e-2))
    one = study(monkeypatch, BASE, ours, Row("Broken", "plain", BASE.model, fails))
    said = []
    failures = run_study(one, speck, tmp_path / "speck", say=said.append)
    assert said == ["data: source", "data: validation", "data: target"]
    assert [f.split(": ", 1)[1] for f in failures] == ["RuntimeError: no such luck"] * 2
    cells = read_cells(tmp_path / "speck")
    assert set(cells) == {(row, "target", seed) for row in ("Base", "S4T") for seed in (0, 1)}
    base = cells["Base", "target", 0]
    assert base["steps"] == [0, 1, 2]
    assert all(len(set(series)) == 1 for series in base["values"].values())  # what is not adapted stays
    rate = json.loads((tmp_path / "speck" / "rate-s4t.json").read_text())
    assert set(rate["tried"]) == {"0.001", "0.01"}
    assert (
        cells["S4T", "target", 1]["rate"] == rate["rate"] == float(max(rate["tried"], key=rate["tried"].get))
    )
    assert cells["Base", "target", 0]["parameters"] < cells["S4T", "target", 0]["parameters"]

    weights = tmp_path / "models" / "speck-s4t-0" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    (tmp_path / "speck" / "cells" / "s4t--target--1.json").unlink()
    run_study(one, speck, tmp_path / "speck", say=said.append)
    assert weights.stat().st_mtime_ns == before
    assert read_cells(tmp_path / "speck")["S4T", "target", 1]["values"] == cells["S4T", "target", 1]["values"]

    run_study(one, speck, tmp_path / "speck", rows=["S4T"], seeds=[0], say=said.append)
    about = json.loads((tmp_path / "speck" / "study.json").read_text())
    assert about["rows"] == ["Base", "S4T"]
    assert about["domains"]["target"]["style"] == "other"


@final
class Explodes(Adapter):
    """Answers what is not finite once it has learned at a rate above 1."""

    needs = ()

    def __init__(self, model, rate, seed):
        super().__init__(model, seed)
        self.rate = rate

    def step(self, x):
        return self.model(x)

    def _look(self, x):
        return {k: y * (torch.inf if self.clock and self.rate > 1 else 1) for k, y in self.model(x).items()}


def test_a_rate_at_which_a_method_diverges_is_out(speck, monkeypatch, tmp_path):
    one = study(monkeypatch, BASE, Row("Explodes", "plain", BASE.model, Explodes, (2.0, 1e-4)))
    assert run_study(one, speck, tmp_path / "speck", seeds=[0], say=lambda _: None) == []
    found = json.loads((tmp_path / "speck" / "rate-explodes.json").read_text())
    assert found["rate"] == 1e-4
    assert found["tried"]["2.0"] is None
    one = study(monkeypatch, BASE, Row("Wild", "plain", BASE.model, Explodes, (2.0, 3.0)))
    failures = run_study(one, speck, tmp_path / "speck", seeds=[0], say=lambda _: None)
    assert "Wild diverges at every rate" in failures[0]


@pytest.mark.parametrize("row", STUDIES["table1"].rows, ids=lambda row: row.name)
def test_every_row_of_table_1_runs(row, speck, monkeypatch, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "rows"
    one = study(monkeypatch, *dict.fromkeys((BASE, replace(row, rates=row.rates[:1]))))
    assert run_study(one, speck, folder / slug(row.name), seeds=[0], say=lambda _: None) == []
    cell = read_cells(folder / slug(row.name))[row.name, "target", 0]
    assert set(cell["values"]) == {"semseg", "depth", "normals", "edge"}
    moved = cell["values"]["depth"][0] != cell["values"]["depth"][-1]
    assert moved == (row.adapter is not BASE.adapter)


def test_the_variants_differ_in_what_their_names_say():
    def branch(study_name, row_name):
        row = next(r for r in STUDIES[study_name].rows if r.name == row_name)
        return row.model(SPECK.network(), SPECK).branch

    assert branch("components", "TBS").ratio == 0
    assert list(branch("components", "TBS").embed) == ["z"]
    assert len(branch("components", "TBS + projection").embed) == 4
    assert branch("components", "TBS + masks, image reconstruction").reconstruct
    assert branch("masks", "(d) hide tasks").strategy == "hide"
    assert branch("masks", "(c) same for all").layout == "per_task"
    assert branch("ratio", "0.95").ratio == 0.95
    assert list(branch("single", "only depth").tasks) == ["depth"]
    for one in STUDIES.values():  # a name of a source model means one model
        sources = {}
        for row in one.rows:
            torch.manual_seed(0)
            described = str(row.model(SPECK.network(), SPECK))
            assert sources.setdefault(row.source, described) == described, (one.name, row.name)


def test_the_order_of_the_target_is_the_seeds(speck, monkeypatch, tmp_path):
    one = study(monkeypatch, BASE, Row("BN only", "plain", BASE.model, STUDIES["table1"].rows[1].adapter))
    run_study(one, speck, tmp_path / "speck", say=lambda _: None)
    cells = read_cells(tmp_path / "speck")
    assert cells["BN only", "target", 0]["values"] != cells["BN only", "target", 1]["values"]


def test_noise_is_a_share_of_each_images_deviation(speck, tmp_path):
    target, noisy = (speck.domain(name) for name in ("target", "target + noise 0.4"))
    target.prepare(tmp_path)
    clean, rough = target.read(tmp_path), noisy.read(tmp_path)
    assert isinstance(rough, Noisy)
    assert clean.classes == tuple(GROUPS)
    difference = rough[1].image - clean[1].image
    inside = (rough[1].image > 0) & (rough[1].image < 1)
    assert difference[inside].std().item() == pytest.approx(0.4 * clean[1].image.std().item(), rel=0.15)
    assert torch.equal(rough[1].image, rough[1].image)
    assert torch.equal(rough[1].labels["semseg"], clean[1].labels["semseg"])


def test_names_are_checked(speck):
    with pytest.raises(ValueError, match="has the domains"):
        speck.domain("moon")
    with pytest.raises(FileNotFoundError, match="run the study first"):
        read_cells("/nowhere")
    assert slug("S4T's network, BN only") == "s4t_s_network__bn_only"
    assert isinstance(BASE.adapter(SPECK.network(), 0.0, 0), Source)
