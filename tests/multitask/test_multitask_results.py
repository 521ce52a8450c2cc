"""The table of a study: every figure recomputed from the cells."""

import json
import math
from pathlib import Path

import pytest
from written_study import HIGHER, START, values, write_study

from testtime.multitask.results import _curve, columns, read_results, text_table, write_command


def gain(metrics: dict[str, float], base: dict[str, float]) -> float:
    parts = [(1 if HIGHER[t] else -1) * (metrics[t] - base[t]) / base[t] for t in base]
    return 100 * sum(parts) / len(parts)


def test_delta_is_against_the_base_of_the_same_seed_and_domain(tmp_path: Path) -> None:
    results = read_results(write_study(tmp_path / "run", domains=("near", "far")))
    assert results.domains == ["near", "far"]
    assert results.seeds == [0, 1, 2]
    for domain, strength in (("near", 1.0), ("far", 0.7)):
        for outcome in results.of("S4T", domain):
            curves = values("S4T", outcome.seed, 40, strength)
            base = {task: start * (1 + 0.01 * outcome.seed) for task, start in START.items()}
            deltas = [gain({t: c[i] for t, c in curves.items()}, base) for i in range(41)]
            assert outcome.last == pytest.approx(deltas[-1])
            assert outcome.last == pytest.approx(0.9 * strength * (16 + 0.5 * outcome.seed))
            assert outcome.oracle == pytest.approx(max(deltas))
            assert outcome.oracle > outcome.last
    assert results.mean("S4T", lambda o: o.last) == pytest.approx(0.9 * 0.85 * 16.5)
    assert results.by_seed("S4T", lambda o: o.last) == pytest.approx(
        [0.9 * 0.85 * (16 + s / 2) for s in (0, 1, 2)]
    )
    assert results.ranked[0] == "S4T"
    assert results.ranked[-1] == "Base"
    assert results.controls == ["BN only", "S4T's network, BN only"]


DAMAGE = ["", "{", "[]", '{"row": 3}', "[" * 10_000, "\x00"]


@pytest.mark.parametrize("text", DAMAGE)
@pytest.mark.parametrize("name", ["study.json", "rate-s4t.json", "cells/s4t--target--0.json"])
def test_damaged_files_are_named(name: str, text: str, tmp_path: Path) -> None:
    folder = write_study(tmp_path / "run")
    (folder / name).write_text(text)
    with pytest.raises(ValueError, match=rf"{name} is damaged .*; delete it and run the same command again"):
        read_results(folder)


def test_values_that_do_not_fit_are_named_and_missing_ones_are_nan(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "run")
    path = folder / "cells" / "s4t--target--0.json"
    cell = json.loads(path.read_text())
    for series in (3, ["1"], [1.0]):
        path.write_text(json.dumps({**cell, "values": {**cell["values"], "depth": series}}))
        with pytest.raises(ValueError, match=r"s4t--target--0\.json is damaged .*depth"):
            read_results(folder)
    cell["values"]["depth"][1] = None
    assert math.isnan(_curve(cell).values["depth"][1])


def test_own_is_against_the_rows_own_start(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "run", rows=("Base", "S4T"), seeds=(0,))
    path = folder / "cells" / "s4t--target--0.json"
    cell = json.loads(path.read_text())
    cell["values"] = {t: [START[t] * 1.2, START[t] * 1.5] for t in HIGHER}
    cell["steps"] = [0, 1]
    path.write_text(json.dumps(cell))
    (outcome,) = read_results(folder).of("S4T")
    base = dict(START)
    assert outcome.gains[0] == pytest.approx(gain({t: v * 1.2 for t, v in base.items()}, base))
    assert outcome.own == pytest.approx(
        gain({t: v * 1.5 for t, v in base.items()}, {t: v * 1.2 for t, v in base.items()})
    )


def test_synchrony_of_what_moves_and_of_what_does_not(tmp_path: Path) -> None:
    results = read_results(write_study(tmp_path / "run", rows=("Base", "S4T"), seeds=(0,)))
    (moving,), (base,) = results.of("S4T"), results.of("Base")
    peaks = [12, 14, 16, 18]
    middle = sum(peaks) / 4
    assert moving.step_variance == pytest.approx(math.sqrt(sum((p - middle) ** 2 for p in peaks) / 4))
    assert 0 < moving.similarity < 1
    assert moving.warping > 0
    assert math.isnan(base.step_variance)
    assert math.isnan(base.warping)
    assert math.isnan(base.similarity)


def test_the_text_table(tmp_path: Path) -> None:
    results = read_results(write_study(tmp_path / "run"))
    lines = text_table(results).splitlines()
    assert lines[0] == "target, 3 seeds, after step 40"
    assert lines[1].split() == [
        *("segmentation", "depth", "normals", "edges", "Δ", "last", "Δ", "oracle", "Δ", "own", "Δ", "beyond"),
        *("SV", "DTW", "CS", "size", "time"),
    ]
    ours = next(line for line in lines if line.startswith("S4T "))
    assert "+14.9 ±0.5" in ours
    assert "+16.3 ±0.5" in ours
    assert f"{20 * 1.01 * 1.1485:.1f}" in ours
    assert "chosen with the test labels" in lines[-2]
    assert "less that of BN re-estimation" in lines[-1]
    best = {c.head: c.best(results) for c in columns(results)}
    assert best["Δ last"] == "+14.9"
    assert best["depth"] == "0.860"
    assert best["size"] == ""  # no direction
    assert best["SV"] == ""  # all alike


def test_what_the_loss_adds_is_measured_against_the_control_on_the_same_network(tmp_path: Path) -> None:
    results = read_results(write_study(tmp_path / "run", seeds=(0,)))
    (ours,), (tent,), (base,) = results.of("S4T"), results.of("TENT"), results.of("Base")
    assert ours.beyond == pytest.approx(0.9 * (16 - 9))  # "S4T's network, BN only" has 9, "BN only" 8
    assert tent.beyond == pytest.approx(0.9 * (5 - 8))
    assert base.beyond == pytest.approx(-0.9 * 8)
    alone = read_results(write_study(tmp_path / "alone", rows=("Base", "S4T"), seeds=(0,)))
    assert math.isnan(alone.of("S4T")[0].beyond)


def test_cells_that_are_not_there_are_named_and_a_seed_without_base_is_left_out(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "run", rows=("Base", "S4T"))
    (folder / "cells" / "base--target--2.json").unlink()
    (folder / "cells" / "s4t--target--1.json").unlink()
    results = read_results(folder)
    assert [(o.row, o.seed) for o in results.of("S4T")] == [("S4T", 0)]
    assert results.missing == ["S4T, target, seed 1"]
    assert "Not there yet: S4T, target, seed 1." in text_table(results)
    for path in folder.glob("cells/base*"):
        path.unlink()
    with pytest.raises(ValueError, match="base row 'Base' has no cell"):
        read_results(folder)


def test_a_folder_that_is_no_study_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no study\.json"):
        read_results(tmp_path)


def test_rates_and_command_are_read(tmp_path: Path) -> None:
    folder = write_study(tmp_path / "run")
    write_command(folder, ["multitask", "bench", "table1"])
    results = read_results(folder)
    assert results.rates["S4T"]["rate"] == 0.01
    assert set(results.rates) == {"S4T"}
    assert results.command["command"] == ["testtime", "multitask", "bench", "table1"]
    assert "torch" in results.command["versions"]
