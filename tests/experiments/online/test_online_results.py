"""The committed results: their figures, and that documentation and results agree."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

from testtime.experiments import Run, find_experiment, read_run
from testtime.experiments.online.comparison import Comparison
from testtime.experiments.online.results import Results

ROOT = Path(__file__).parents[3]
FIELD = ["field-continual", "field-reset", "field-mixed", "field-correlated"]


def committed(name: str) -> Run:
    return read_run(ROOT / "results" / name)


def row(name: str, label: str) -> list[str]:
    """The printed means of a row of the main table."""
    run = committed(name)
    (table,) = find_experiment(run.about["experiment"]).tables(run)
    return [table.cell(label, column)[0] for column in table.columns]


@pytest.mark.parametrize(
    ("name", "cells", "label", "values"),
    [
        ("cifar10-open", 117, "PAF+KIP", "80.2 79.4 77.1 78.2 79.5 78.9 79.2 79.4 87.1 83.1"),
        ("cifar10-open", 117, "RoTTA", "65.8 63.3 66.0 64.6 63.9 70.6 67.1 63.2 68.6 65.8"),
        ("cifar10-ablation", 15, "primary", "75.1 87.5 80.8"),
        ("cifar10-soft-hard", 12, "min hard, max soft", "79.4 86.1 82.6"),
        ("cifar10-batch-size", 18, "TENT", "67.2 62.6 58.1 60.3 69.7 67.3 68.5 72.8 73.0 72.9"),
        ("length-250", 3, "PAF+KIP", "79.7 79.1 79.4"),
    ],
)
def test_tables_have_the_figures_of_the_runs(name: str, cells: int, label: str, values: str) -> None:
    run = committed(name)
    assert len(run.about["cells"]) == cells
    assert (run.missing, run.outdated, run.request.precision) == ([], [], "bfloat16")
    assert row(name, label) == values.split()


def test_costs_are_those_that_were_measured_in_the_cells() -> None:
    found = Results(committed("cifar10-open"))
    assert found.cells("PAF+KIP", "CIFAR-100")[0]["cost"]["declared"] == [3, 1]
    assert found.cost("PAF+KIP", "state_bytes") == 22176
    assert len(found.cells("STAMP", "Textures")[0]["scores"]["known"]) == 40
    assert sum(found.cells("STAMP", "Textures")[0]["scores"]["unknown"]) == pytest.approx(1, abs=1e-3)
    assert found.cells("STAMP", "Textures")[1]["scores"] == {}  # of the first seed alone


def test_the_field_side_by_side() -> None:
    found = Comparison([committed(name) for name in FIELD])
    errors, more, opened = found.tables()
    assert list(found.streams) == ["continual", "continual, open", "reset", "mixed", "correlated"]
    assert [one.label for one in found.rows][:4] == ["CoTTA", "PETAL", "STAMP", "PAF+KIP"]
    printed = [errors.cell("PAF+KIP", column)[:2] for column in errors.columns]
    assert printed == [
        ("26.2", "±0.3"), ("24.9", ""), ("25.9", ""), ("41.2", "±0.2"), ("37.1", "±0.7"), ("3", ""), ("1", ""), ("5.5", "")
    ]  # fmt: skip
    assert [errors.cell("MEMO", column)[0] for column in errors.columns] == [
        "41.3",
        "–",
        "–",
        "–",
        "–",
        "33",
        "32",
        "342.9",
    ]
    assert [more.cell("Core", column)[0] for column in more.columns][5:] == [
        "5.2",
        "55.1",
        "0.0",
        "5.7",
        "43.9",
    ]
    assert [opened.cell("NOTE", column)[0] for column in opened.columns] == ["66.0", "63.7"]
    assert found.worse_than_source()["Core"] == ["continual, open", "mixed", "correlated"]
    assert found.without_benefit()["SAR"] == "EcoTTA"
    assert len(found.without_benefit()) == 25


@pytest.mark.parametrize("page", ["results.md", "field.md"])
def test_the_tables_of_the_documentation_are_those_of_the_results(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    refresh = runpy.run_path(str(ROOT / "scripts" / "refresh_tables.py"))
    assert len(re.findall("<!-- table", text)) >= 3
    assert refresh["refreshed"](text) == text
