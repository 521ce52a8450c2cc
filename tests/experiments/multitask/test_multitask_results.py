"""The tables of a study: every figure recomputed from the cells."""

import math
from pathlib import Path

import pytest
from written_study import HIGHER, START, result, values, write_study

from testtime.experiments import Table, read_run
from testtime.experiments.multitask.results import Judged, columns, study_tables


def gain(metrics: dict[str, float], base: dict[str, float]) -> float:
    parts = [(1 if HIGHER[t] else -1) * (metrics[t] - base[t]) / base[t] for t in base]
    return 100 * sum(parts) / len(parts)


def judged(folder: Path) -> Judged:
    return Judged.read(read_run(folder))


def mean(table: Table, row: str, name: str) -> float:
    return table.value(row, table.column(name))


def test_delta_is_against_the_base_of_the_same_seed_and_domain(tmp_path: Path) -> None:
    found = judged(write_study(tmp_path / "run", noise=(0.0, 0.4)))
    assert found.domains == ["target", "target + noise 0.4"]
    for domain, strength in (("target", 1.0), ("target + noise 0.4", 0.7)):
        for one in found.records:
            if (one.row, one.column) == ("S4T", domain):
                curves = values("S4T", one.seed, 40, strength)
                base = {task: start * (1 + 0.01 * one.seed) for task, start in START.items()}
                deltas = [gain({t: c[i] for t, c in curves.items()}, base) for i in range(41)]
                assert one.result.last == pytest.approx(deltas[-1])
                assert one.result.last == pytest.approx(0.9 * strength * (16 + 0.5 * one.seed))
                assert one.result.oracle == pytest.approx(max(deltas))
                assert one.result.oracle > one.result.last
    table = found.table()
    assert mean(table, "S4T", "Δ last") == pytest.approx(0.9 * 0.85 * 16.5)
    by_seed = {seed: pytest.approx(0.9 * 0.85 * (16 + seed / 2)) for seed in (0, 1, 2)}
    assert table.values["S4T", "Δ last"] == by_seed
    ranked = [row.label for row in table.sorted_by("Δ last").rows]
    assert (ranked[0], ranked[-1]) == ("S4T", "Base")
    assert [row.label for row in table.rows if row.role == "control"] == ["BN only", "S4T's network, BN only"]
    over = found.by_domain()
    assert mean(over, "S4T", "target") == pytest.approx(0.9 * 16.5)
    assert mean(over, "S4T", "target + noise 0.4") == pytest.approx(0.9 * 0.7 * 16.5)


def test_beyond_is_against_the_control_on_the_same_network(tmp_path: Path) -> None:
    table = judged(write_study(tmp_path / "run", seeds=(0,))).table()
    assert mean(table, "S4T", "Δ beyond") == pytest.approx(0.9 * (16 - 9))
    assert mean(table, "TENT", "Δ beyond") == pytest.approx(0.9 * (5 - 8))
    assert mean(table, "Base", "Δ beyond") == pytest.approx(-0.9 * 8)
    without = judged(write_study(tmp_path / "other", ("Base", "S4T"), seeds=(0,))).table()
    assert math.isnan(mean(without, "S4T", "Δ beyond"))


def test_own_is_against_the_rows_own_start(tmp_path: Path) -> None:
    cell = result("S4T", 0) | {
        "values": {t: [START[t] * 1.2, START[t] * 1.5] for t in HIGHER},
        "steps": [0, 1],
    }
    found = judged(write_study(tmp_path / "run", ("Base", "S4T"), (0,), **{"S4T--target--0": cell}))
    outcome = next(one.result for one in found.records if one.row == "S4T")
    base = dict(START)
    assert outcome.gains[0] == pytest.approx(gain({t: v * 1.2 for t, v in base.items()}, base))
    own = gain({t: v * 1.5 for t, v in base.items()}, {t: v * 1.2 for t, v in base.items()})
    assert outcome.own == pytest.approx(own)


def test_a_metric_that_is_missing_is_nan(tmp_path: Path) -> None:
    cell = result("S4T", 0)
    cell["values"]["depth"] = [math.nan] * 41
    base = result("Base", 0)
    base["values"]["depth"] = [math.nan] * 41
    written = {"S4T--target--0": cell, "Base--target--0": base}
    found = judged(write_study(tmp_path / "run", ("Base", "S4T"), (0,), **written))
    outcome = next(one.result for one in found.records if one.row == "S4T")
    assert math.isnan(outcome.curve.values["depth"][1])
    assert outcome.last == pytest.approx(0.9 * 16)  # over the three tasks that were measured


def test_cells_without_a_base_are_not_judged(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "run", ("Base", "S4T"), (0, 1), **{"Base--target--1": None})
    assert {(one.row, one.seed) for one in judged(folder).records} == {("Base", 0), ("S4T", 0)}


def test_synchrony_of_what_moves_and_of_what_does_not(tmp_path: Path) -> None:
    found = judged(write_study(tmp_path / "run", ("Base", "S4T"), (0,)))
    outcomes = {one.row: one.result for one in found.records}
    moving, base = outcomes["S4T"], outcomes["Base"]
    peaks = [12, 14, 16, 18]
    middle = sum(peaks) / 4
    assert moving.step_variance == pytest.approx(math.sqrt(sum((p - middle) ** 2 for p in peaks) / 4))
    assert 0 < moving.similarity < 1
    assert moving.warping > 0
    assert math.isnan(base.step_variance)
    assert math.isnan(base.warping)
    assert math.isnan(base.similarity)


def test_the_text_table(tmp_path: Path) -> None:
    (table,) = study_tables(read_run(write_study(tmp_path / "run")))
    lines = table.text().splitlines()
    assert lines[0] == "target, after step 40"
    assert lines[1].split() == [
        *("segmentation", "depth", "normals", "edges", "Δ", "last", "Δ", "oracle", "Δ", "own", "Δ", "beyond"),
        *("Δ", "before", "SV", "DTW", "CS", "size", "time"),
    ]
    ours = next(line for line in lines if line.startswith("S4T "))
    assert "+14.9 ±0.5" in ours
    assert "+16.3 ±0.5" in ours
    assert f"{20 * 1.01 * 1.1485:.1f}" in ours
    assert "3 seeds, mean ± standard deviation; * is the best." in lines
    best = {column.name: table.best(column) for column in table.columns}
    assert best["Δ last"] == best["depth"] == "S4T"
    assert table.cell("S4T", table.column("depth"))[0] == "0.860"
    assert best["size"] is None  # no direction
    assert best["SV"] is None  # all alike


def test_an_unfinished_study_names_what_is_missing_and_no_best(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "run", seeds=(0, 1), **{"TENT--target--1": None})
    (table,) = study_tables(read_run(folder))
    assert table.missing == ["TENT, target, seed 1"]
    assert all(table.best(column) is None for column in table.columns)
    assert "Not finished, 1 without a result: TENT, target, seed 1." in table.text()


def test_columns_say_which_direction_is_better() -> None:
    better = {column.name: column.better for column in columns()}
    assert (better["segmentation"], better["edges"]) == ("higher", "higher")
    assert (better["depth"], better["normals"], better["SV"], better["DTW"]) == ("lower",) * 4
    assert (better["CS"], better["size"], better["time"]) == ("higher", None, None)
