"""The analyses, on a network of seconds: what they write is what the measures say."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from speck import SIZE, SPECK

from testtime.experiments import Request, Run, find_experiment, read_run, run_experiment
from testtime.experiments.multitask.planning import PRESETS, at_rate
from testtime.experiments.multitask.studies import Study
from testtime.multitask.houses import Houses
from testtime.multitask.protocol import Protocol
from testtime.report import page_html

pytest.importorskip("PIL", reason="pip install -e '.[images]'")
pytest.importorskip("embreex", reason="pip install -e '.[scenes]'")
pytest.importorskip("altair", reason="pip install -e '.[report]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("multitask")


@pytest.fixture
def ran(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run an analysis on the smallest preset; return the experiment, the run, and the text of its page."""
    monkeypatch.setitem(PRESETS, "speck", SPECK)

    def run(name: str, seeds: tuple[int, ...] = (0,), rows: tuple[str, ...] = ()) -> tuple[Any, Run, str]:
        study = Study("multitask-table1")
        study.protocol = Protocol(steps=2, batch=4)
        if rows:
            study.rows = [row for row in study.rows if row.label in rows]
        else:
            study.rows = [at_rate(row, row.about["rates"][0]) for row in study.rows]
        analysis = find_experiment(f"multitask-{name}")
        monkeypatch.setattr(analysis, "study", study)
        if name == "cost":
            monkeypatch.setattr(analysis, "options", {"rounds": 3})
        request = Request(analysis.name, seeds, precision="float32", settings={"preset": "speck"})
        summary = run_experiment(analysis, request, folder / name, say=lambda line: None)
        assert summary.failed == {}
        found = read_run(folder / name)
        text = re.sub(r"<[^>]*>", "", page_html(analysis.page(found)))
        return analysis, found, re.sub(r"\s+", " ", unescape(text))

    return run


@pytest.mark.slow
def test_affinity_gap_is_the_distance_to_the_tuned_network(ran: Any) -> None:
    analysis, run, text = ran("affinity")
    found = {one.row: np.array(one.result["affinity"]) for one in run.records()}
    tuned = found.pop("tuned on the target's style")
    assert set(found) == {"before adaptation", "after S4T's network, BN only", "after S4T"}
    (table,) = analysis.tables(run)
    for name, matrix in found.items():
        distance = np.abs(matrix - tuned)[~np.eye(4, dtype=bool)].mean()
        assert table.value(name, table.columns[0]) == pytest.approx(distance, rel=1e-5)
        assert f"{distance:.3f}" in text
    assert np.allclose(np.diag(tuned), 1, atol=1e-5)
    assert not np.allclose(found["before adaptation"], found["after S4T"])
    assert "the mean gap goes from" in text


def test_masks_are_measured_on_houses_no_network_has_seen(ran: Any, folder: Path) -> None:
    analysis, run, text = ran("masked-loss")
    (one,) = run.records()
    losses = one.result["losses"]
    assert list(losses) == ["0", "0.25", "0.5", "0.7", "0.8", "0.9", "0.95"]
    assert losses["0"]["depth"] != losses["0.9"]["depth"]
    shares = [100 * losses["0.9"][name] / losses["0"][name] for name in losses["0"]]
    assert f"between {min(shares):.0f} and {max(shares):.0f} %" in text
    (table,) = analysis.tables(run)
    assert table.value("depth", table.column("masked share 0.9")) == losses["0.9"]["depth"]
    assert run.about["about"]["houses"]["first"] == 4000
    new = Houses(4000, SPECK["target"]["houses"], SPECK["source"]["frames"], SIZE)
    assert len(new.read(folder / "store" / "cache")) == 4


def test_cost_counts_parameters_and_times_every_row_in_one_unit_alone(ran: Any) -> None:
    analysis, run, text = ran("cost")
    rows = {row.label for row in analysis.study.rows if row.role != "ceiling" and "network" not in row.label}
    assert {row.label for row in run.rows} == rows
    assert len({cell["unit"] for cell in run.about["cells"]}) == 1
    (table,) = analysis.tables(run)
    size = {row: table.value(row, table.column("parameters")) for row in rows}
    assert size["Base"] == size["TENT"] < size["S4T"]
    assert all(table.value(row, table.column("step")) > 0 for row in rows)
    assert f"S4T adds {100 * (size['S4T'] / size['Base'] - 1):.1f} % of parameters" in text
    assert "0.3657" in text  # the paper's, beside ours
    request = Request(analysis.name, (0,), precision="float32", settings={"preset": "speck"}, token="1")
    (unit,) = analysis.plan(request).units
    assert unit.alone
    assert unit.address not in run.results  # a measurement of time belongs to its run


def test_directions_of_every_row_that_learns(ran: Any) -> None:
    analysis, run, text = ran("direction", (0, 1), ("Base", "TENT", "S4T"))
    records = run.records()
    assert {(one.row, one.seed) for one in records} == {
        (row, seed) for row in ("TENT", "S4T") for seed in (0, 1)
    }
    for one in records:
        assert set(one.result["cosines"]) == {"semseg", "depth", "normals", "edge", "all"}
        assert all(-1 <= cosine <= 1 for cosine in one.result["cosines"].values())
    mean = np.mean([one.result["cosines"]["all"] for one in records if one.row == "S4T"])
    assert f"S4T's is {mean:+.2f}" in text
    (table,) = analysis.tables(run)
    assert table.value("S4T", table.column("all")) == pytest.approx(mean)


def test_gradients_are_compared_for_both_statistics(ran: Any) -> None:
    analysis, run, text = ran("gradients")
    found = {one.row: one.result for one in run.records()}
    assert set(found) == {"source's statistics", "re-estimated statistics"}
    tables = {table.title: table for table in analysis.tables(run)}
    assert len(tables) == 6
    for row, result in found.items():
        cosines = result["pulls"]["S4T"]["cosines"]
        assert set(cosines) == {"semseg", "depth", "normals", "edge", "all", "equal"}
        table = tables[f"{row}: cosine with the gradient of labels"]
        assert table.value("S4T", table.column("depth")) == cosines["depth"]
        assert sum(result["pulls"]["S4T"]["shares"].values()) == pytest.approx(1, abs=1e-3)
        metrics = tables[f"{row}: predictions of heads and synchronizer"]
        assert (
            metrics.value("synchronizer", metrics.column("depth"))
            == result["qualities"]["synchronizer"]["depth"]
        )
    both = [found[row]["pulls"]["S4T"]["cosines"]["all"] for row in found]
    assert (
        f"has a cosine of {both[0]:+.2f} with that of the labels, and with re-estimated ones {both[1]:+.2f}"
        in text
    )


def test_analyses_have_no_rows_of_own_methods() -> None:
    analysis = find_experiment("multitask-direction")
    with pytest.raises(ValueError, match="has no rows of own methods; multitask-table1 has"):
        analysis.plan(Request(analysis.name, methods=("mine:Method",)))


def test_rows_of_an_analysis_without_a_method_are_chosen_by_their_labels() -> None:
    analysis = find_experiment("multitask-affinity")
    plan = analysis.plan(Request(analysis.name, (0,), ("before adaptation",), precision="float32"))
    assert [row.label for row in plan.rows] == ["before adaptation"]
