"""The analyses, on a network of seconds: what they write is what the measures say."""

import json
from dataclasses import replace

import numpy as np
import pytest
from speck import SIZE, SPECK

from testtime.multitask import analyse as module
from testtime.multitask.analyse import ANALYSES, analyse
from testtime.multitask.presets import PRESETS, Domain
from testtime.multitask.protocol import Protocol
from testtime.multitask.studies import RATIOS, STUDIES

pytest.importorskip("PIL", reason="pip install -e '.[images]'")
pytest.importorskip("embreex", reason="pip install -e '.[scenes]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("multitask")


@pytest.fixture
def speck(monkeypatch):
    study = replace(
        STUDIES["table1"],
        protocol=Protocol(steps=2, batch=4),
        rows=tuple(replace(row, rates=row.rates[:1]) for row in STUDIES["table1"].rows),
    )
    monkeypatch.setitem(STUDIES, "table1", study)
    monkeypatch.setattr(module, "STUDY", study)
    monkeypatch.setitem(PRESETS, "speck", SPECK)
    return SPECK


def result(folder, name):
    return json.loads((folder / f"analyse-{name}" / "result.json").read_text())


def test_affinity_gap_is_the_distance_to_the_tuned_network(speck, folder):
    page = analyse(
        "affinity", speck, folder, argv=["multitask", "analyse", "affinity"], say=lambda line: None
    )
    found = result(folder, "affinity")
    tuned = np.array(found["tuned"])
    assert found["tasks"] == list(speck.tasks)
    assert set(found["mean_gap"]) == {"before adaptation", "after S4T's network, BN only", "after S4T"}
    for name, gap in found["mean_gap"].items():
        distance = np.abs(np.array(found["affinity"][name]) - tuned)
        assert gap == pytest.approx(distance[~np.eye(4, dtype=bool)].mean(), rel=1e-5)
    assert np.allclose(np.diag(tuned), 1, atol=1e-5)
    text = page.read_text()
    for gap in found["mean_gap"].values():
        assert f"{gap:.3f}" in text
    assert json.loads((page.parent / "command.json").read_text())["command"][1:] == [
        "multitask",
        "analyse",
        "affinity",
    ]


def test_masks_are_measured_on_houses_no_network_has_seen(speck, folder):
    page = analyse("masks", speck, folder, say=lambda line: None)
    found = result(folder, "masks")
    assert found["ratios"] == list(RATIOS)
    assert set(found["losses"]) == {f"{r:g}" for r in RATIOS}
    assert found["losses"]["0"]["depth"] != found["losses"]["0.9"]["depth"]
    ratio = found["losses"]["0.9"]["depth"] / found["losses"]["0"]["depth"]
    assert f"{100 * ratio:.0f}" in page.read_text()
    new = Domain(4000, SPECK.domain("target").houses, SPECK.domain("source").frames, SIZE)
    assert f"On {len(new.read(folder))} images" in page.read_text()  # they are there


def test_cost_counts_parameters_and_times_every_row(speck, folder, monkeypatch):
    said = []
    page = analyse("cost", speck, folder, say=said.append)
    rows = result(folder, "cost")["rows"]
    assert set(rows) == {r.name for r in module.STUDY.rows if "network" not in r.name}
    assert rows["Base"]["parameters"] == rows["TENT"]["parameters"] < rows["S4T"]["parameters"]
    assert all(cost["times_a_prediction"] > 0 for cost in rows.values())
    assert f"S4T: {rows['S4T']['parameters']:,} parameters" in said[-1]
    assert "0.3657" in page.read_text()  # the paper's, beside ours


def test_directions_of_every_row_that_learns(speck, folder, monkeypatch):
    rows = [r for r in module.STUDY.rows if r.name in ("Base", "TENT", "S4T")]
    rows = [replace(r, rates=(*r.rates, 1e-3)) if r.name != "Base" else r for r in rows]
    monkeypatch.setattr(module, "STUDY", replace(module.STUDY, rows=tuple(rows), seeds=(0, 1)))
    page = analyse("direction", speck, folder, say=lambda line: None)
    found = result(folder, "direction")
    assert set(found["cosines"]) == {"TENT", "S4T"}
    for cosines in found["cosines"].values():
        assert len(cosines) == 2
        assert all(-1 <= c <= 1 for one in cosines for c in one.values())
    mean = np.mean([one["all"] for one in found["cosines"]["S4T"]])
    assert f"S4T's is {mean:+.2f}" in page.read_text()


def test_no_such_analysis(speck, folder):
    with pytest.raises(
        ValueError, match="no analysis 'nonsense'; there are affinity, masks, cost, direction"
    ):
        analyse("nonsense", speck, folder)
    assert list(ANALYSES) == ["affinity", "masks", "cost", "direction"]
