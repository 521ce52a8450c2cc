"""The committed results of the family: values that the log and the page of table 1 print."""

import re
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from testtime.experiments import Table, find_experiment, read_run

RESULTS = Path(__file__).parents[3] / "results" / "multitask"
pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="the results are in the repository alone")


@cache
def tables(name: str) -> list[Table]:
    run = read_run(RESULTS / name)
    return list(find_experiment(run.about["experiment"]).tables(run))


def printed(table: Table, row: str, key: str) -> str:
    return " ".join(filter(None, table.cell(row, table.column(key))[:2]))


@pytest.mark.parametrize("folder", sorted(RESULTS.iterdir()), ids=lambda folder: folder.name)
def test_every_folder_is_a_run_of_its_experiment(folder: Path) -> None:
    run = read_run(folder)
    assert run.about["experiment"] == f"multitask-{folder.name}"
    assert run.outdated == []
    assert bool(run.missing) == (folder.name == "components")  # two seeds of three of its rows were never run
    assert tables(folder.name)


@pytest.mark.parametrize(
    ("study", "row", "column", "value"),
    [
        ("table1", "S4T", "Δ last", "+8.4 ±3.1"),
        ("table1", "S4T", "Δ oracle", "+10.3 ±1.9"),
        ("table1", "S4T", "Δ own", "+10.3 ±2.5"),
        ("table1", "S4T's network, BN only", "Δ last", "+8.4 ±3.1"),
        ("table1", "S4T's network, not adapted", "Δ beyond", "-10.1 ±2.6"),
        ("table1", "TTT++", "Δ last", "+10.0 ±3.8"),
        ("table1", "TTT++", "DTW", "163.63 ±47.69"),
        ("table1", "ActMAD", "Δ beyond", "-3.5 ±3.2"),
        ("table1", "ClusT3", "SV", "6.68 ±5.14"),
        ("table1", "NC-TTT", "CS", "0.97 ±0.02"),
        ("table1", "TIPI", "segmentation", "24.1 ±0.9"),
        ("table1", "Base", "depth", "0.752 ±0.005"),
        ("components", "S4T, released loss and channel order", "Δ beyond", "-0.8 ±0.9"),
        ("components", "TBS + projection's network, BN only", "Δ last", "+12.9"),
        ("ratio", "0.9", "Δ last", "+11.6"),
        ("single", "only edge", "Δ last", "+11.3"),
        ("online", "S4T", "Δ last", "+10.6"),
    ],
)
def test_values_of_the_tables(study: str, row: str, column: str, value: str) -> None:
    assert printed(tables(study)[0], row, column) == value


def test_noise_by_domain() -> None:
    *_, over, clean = tables("noise")
    noise = [f"target + noise {scale}" for scale in ("0.1", "0.2", "0.3", "0.4")]
    assert [printed(over, "S4T", name).split()[0] for name in ("target", *noise)] == [
        *("+8.4", "+10.1", "+17.8", "+30.6", "+46.6")
    ]
    against = [printed(clean, "S4T", name).split()[0] for name in ("target", *noise)]
    assert against == ["+8.4", "+7.8", "+6.6", "+4.5", "+1.5"]


def test_labels_win_where_statistics_are_frozen() -> None:
    over = tables("ceilings")[-1]
    first = [f"first batch, {n}" for n in ("1 step", "5 steps", "40 steps")]
    found = {row.label: [printed(over, row.label, name) for name in first] for row in over.rows}
    assert found["BN only"] == ["+5.1", "+14.3", "+15.9"]
    assert found["labels of the batch"] == ["+5.0", "+13.2", "+18.3"]
    assert found["labels, BN frozen"] == ["+6.1", "+13.0", "+16.8"]
    online = next(table for table in tables("ceilings") if table.title.startswith("online, 5 steps"))
    assert printed(online, "labels of the batch", "Δ last") == "+31.7"  # on the batch whose labels it has
    assert printed(online, "labels of the batch", "Δ before") == "+13.7"
    assert printed(online, "BN only", "Δ before") == "+17.0"


def test_labels_win_in_a_real_room_and_s4t_is_its_control() -> None:
    (table,) = tables("7scenes")
    rows = (
        "BN only",
        "TENT",
        "S4T's network, BN only",
        "S4T",
        "S4T, BN frozen",
        "labels of the batch",
        "labels, BN frozen",
    )
    assert [printed(table, row, "Δ last") for row in rows] == [
        *("+12.3", "+12.4", "+9.1", "+9.1", "+5.6", "+35.0", "+34.5")
    ]
    assert printed(table, "S4T", "Δ beyond") == "0.0"


def test_gradients_of_s4t_oppose_labels_in_three_of_four_tasks() -> None:
    found = {table.title: table for table in tables("gradients")}
    cosines = found["source's statistics: cosine with the gradient of labels"]
    tasks = ("semseg", "depth", "normals", "edge", "all", "equal")
    rows = {
        "S4T": ["-0.51", "-0.78", "-0.25", "+0.61", "+0.44", "-0.38"],
        "heads learn the synchronizer": ["+0.76", "+0.71", "-0.16", "+0.52", "+0.43", "+0.61"],
        "labels through the synchronizer": ["+0.68", "+0.85", "+0.82", "+0.68", "+0.83", "+0.88"],
    }
    assert {row: [printed(cosines, row, task) for task in tasks] for row in rows} == rows
    shares = found["source's statistics: share of the task in the gradient"]
    assert printed(shares, "S4T", "edge") == "+0.90"
    adapted = found["re-estimated statistics: predictions of heads and synchronizer"]
    assert [printed(adapted, row, "semseg") for row in ("heads", "synchronizer")] == ["20.76", "11.67"]


def test_the_reversed_loss_gains_where_statistics_are_frozen() -> None:
    (table,) = tables("synchronizer")
    rows = "S4T", "S4T, reversed", "S4T, reversed and equal", "labels through the synchronizer", "labels"
    found = [printed(table, f"{row}, BN frozen", "Δ own") for row in rows]
    assert found == ["+1.4 ±0.2", "+3.6 ±1.2", "-11.6 ±1.6", "+5.0 ±0.2", "+19.9 ±2.7"]


def test_values_of_the_analyses() -> None:
    (affinity,), (cost,), (direction,), (masked,) = map(
        tables, ("affinity", "cost", "direction", "masked-loss")
    )
    column = affinity.columns[0]
    assert [round(affinity.value(row.label, column), 4) for row in affinity.rows] == [0.0385, 0.0114, 0.0114]
    assert printed(cost, "S4T", "step") == "8.5"
    assert printed(cost, "TENT", "step") == "3.3"
    assert printed(cost, "S4T", "against the base") == "+57.3"
    seeds = direction.values["S4T", "all"]
    assert [round(seeds[seed], 2) for seed in (0, 1, 2)] == [0.13, -0.14, -0.09]
    assert masked.value("semseg", masked.column("masked share 0")) == pytest.approx(1.0954554986953735)


def test_rates_that_were_tried() -> None:
    found: Any = read_run(RESULTS / "table1").other("rate of S4T")
    assert found["rate"] == 1e-4
    assert [round(gain, 2) for gain in found["tried"].values()] == [7.82, 7.83, 7.74, 6.89, 2.43]


def test_the_page_in_docs_is_that_of_the_results() -> None:
    page = (RESULTS.parents[1] / "docs" / "reports" / "multitask.html").read_text()
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]*>", "", page))
    assert "Of the rows that learn, TTT++ has the highest ΔTTT after step 40: +10.0 ±3.8 % (3 seeds)" in text
    assert page.count("data:image/png;base64,") == 6
