"""Tables: means, spreads, best, pairs; every form of output from one object; the committed results through these classes."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest

from testtime.experiments import Column, Record, Row, Table
from testtime.files import read_json
from testtime.report import Page, Section, page_html

RESULTS = Path(__file__).parents[2] / "results"
ROWS = [
    Row("Source", "base"),
    Row("BN-adapt", "control"),
    Row("TENT", note="on fewer images."),
    Row("Labels", "ceiling"),
    Row("CoTTA"),
]
ERROR = Column("error", lambda r: r.get("error"), better="lower", published={"TENT": 18.25}, group="fog")
TIME = Column(
    "time", lambda r: r.get("time"), unit="", places=2, better=None, reduce="median", note="of a batch."
)
ERRORS = {
    "Source": [30.0, 32.0, 31.0],
    "BN-adapt": [20.0, 25.0, 21.0],
    "TENT": [19.0, 24.0, 22.0],
    "Labels": [5.0, 5.0, 5.0],
}


def records(times: bool = True) -> list[Record]:
    found = []
    for row, values in ERRORS.items():
        for seed, value in enumerate(values):
            found.append(Record(row, "fog", seed, {"error": value, "time": 1.0 + seed**2 if times else None}))
    return found


def made(**changes: Any) -> Table:
    return Table.of("Errors", ROWS, [ERROR, TIME], records(), **changes)


def test_means_spreads_medians_and_rows_without_a_record() -> None:
    table = made()
    assert [row.label for row in table.rows] == ["Source", "BN-adapt", "TENT", "Labels"]
    assert (table.value("BN-adapt", ERROR), table.spread("BN-adapt", ERROR)) == (22.0, math.sqrt(7.0))
    assert (table.value("Source", TIME), table.spread("Labels", ERROR)) == (2.0, 0.0)
    assert math.isnan(Table.of("", ROWS, [TIME], records(times=False)).value("Source", TIME))
    assert table.column("fog error") is ERROR
    with pytest.raises(ValueError, match="expected columns of different names, got fog error, fog error"):
        Table.of("", ROWS, [ERROR, ERROR], records())


def test_records_of_one_seed_are_averaged_and_a_column_reads_its_setting_alone() -> None:
    three = [
        Record("a", "x", 0, 1.0),
        Record("a", "x", 0, 2.0),
        Record("a", "y", 0, 6.0),
        Record("a", "y", 1, 8.0),
    ]
    columns = [Column("all", float), Column("x", float, of="x"), Column("z", float, of="z")]
    table = Table.of("", [Row("a")], columns, three)
    assert table.values["a", "all"] == {0: 3.0, 1: 8.0}
    assert table.values["a", "x"] == {0: 1.5}
    assert table.values["a", "z"] == {}


def test_the_best_is_alone_in_print_no_ceiling_and_none_before_all_cells_are_there() -> None:
    tie = made()
    assert (tie.leaders(ERROR), tie.best(ERROR)) == (["TENT"], "TENT")  # 21.7 of 22.0
    assert (tie.leaders(TIME), tie.best(TIME)) == ([], None)
    close = Column("error", lambda r: r["error"], better="lower", places=0)
    table = Table.of("", ROWS, [close], records())
    assert (table.leaders(close), table.best(close)) == (["BN-adapt", "TENT"], None)
    unfinished = made(missing=["TENT, fog, seed 3"])
    assert (unfinished.leaders(ERROR), unfinished.best(ERROR)) == ([], None)
    alone = Table.of("", ROWS, [ERROR], [Record("TENT", "fog", 0, {"error": 1.0})])
    assert alone.best(ERROR) is None
    reverse = Column("accuracy", lambda r: r["error"])
    assert Table.of("", ROWS, [reverse], records()).best(reverse) == "Source"


def test_rows_are_compared_on_the_seeds_that_both_have() -> None:
    some = [r for r in records() if (r.row, r.seed) != ("BN-adapt", 1)] + [
        Record("TENT", "fog", 7, {"error": 0.0})
    ]
    table = Table.of("Errors", ROWS, [ERROR], some)
    pair = table.paired("TENT", "BN-adapt", ERROR)
    assert pair.differences == {0: -1.0, 2: 1.0}
    assert (pair.mean, pair.spread, pair.better, pair.worse) == (0.0, math.sqrt(2.0), 1, 1)
    against = made().against("Source")
    assert against.title == "Errors, against Source"
    assert against.values["BN-adapt", "fog error"] == {0: -10.0, 1: -7.0, 2: -10.0}
    assert against.cell("BN-adapt", against.columns[0]) == ("-9.0", "±1.7", "")
    assert [row.label for row in against.rows] == ["BN-adapt", "TENT", "Labels"]
    assert math.isnan(table.paired("TENT", "CoTTA", ERROR).mean)


def test_text_markdown_csv_and_json_hold_the_same_numbers() -> None:
    table = made(missing=[], notes=["A note."])
    assert table.text().splitlines() == [
        "Errors",
        "            fog",
        "          error                 time",
        "              %",
        "Source     31.0 ±1.0            2.00 ±2.08",
        "BN-adapt   22.0 ±2.6            2.00 ±2.08",
        "TENT†      21.7 ±2.5 (18.25) *  2.00 ±2.08",
        "Labels      5.0                 2.00 ±2.08",
        "3 seeds, mean ± standard deviation; * is the best.",
        "In parentheses: published.",
        "† on fewer images.",
        "time: of a batch.",
        "A note.",
    ]
    lines = table.markdown().splitlines()
    assert lines[0] == "| | fog error, % | time |"
    assert lines[4] == "| TENT† | **21.7** ±2.5 (18.25) | 2.00 ±2.08 |"
    rows = list(csv.reader(io.StringIO(table.csv())))
    assert rows[0] == ["row", "role", "fog error (%)", "fog error (%) ±", "time", "time ±"]
    assert rows[3][:2] == ["TENT", "method"]
    assert float(rows[3][2]) == pytest.approx(65 / 3)
    found = table.json()
    cell = found["rows"][2]["cells"]["fog error"]
    assert cell["seeds"] == {"0": 19.0, "1": 24.0, "2": 22.0}
    assert (cell["mean"], cell["published"], cell["best"]) == (pytest.approx(65 / 3), 18.25, True)
    assert [row["role"] for row in found["rows"]] == ["base", "control", "method", "ceiling"]
    assert json.loads(json.dumps(found))["columns"][0]["better"] == "lower"
    assert "Not finished, 7 without a result: 0; 1; 2; 3; 4; ...." in made(missing=list("0123456")).text()


def test_the_rows_are_sorted_with_those_without_a_value_last() -> None:
    more = [*records(), Record("CoTTA", "fog", 0, {})]
    table = Table.of("", ROWS, [ERROR, TIME], more).sorted_by("fog error")
    assert [row.label for row in table.rows] == ["Labels", "TENT", "BN-adapt", "Source", "CoTTA"]


def test_the_block_of_a_page_marks_the_same_row_as_the_best() -> None:
    section = Section("result", "Result", "The result", [made().block()])
    html = page_html(Page("Errors", "testtime", "", [section]))
    (best,) = [line for line in html.split("<tr") if 'class="best"' in line]
    assert "TENT" in best
    assert "21.7" in best
    assert "18.2" in best
    block = made(missing=["one"]).block()
    assert (block.best, [row.role for row in block.rows]) == (False, ["base", "control", "method", "ceiling"])
    assert [row.mark for row in block.rows] == ["", "", "†", ""]


def printed(table: Table, row: str) -> list[str]:
    return [" ".join(filter(None, table.cell(row, column)[:2])) for column in table.columns]


def test_the_committed_table_of_open_sets_comes_back() -> None:
    about = read_json(RESULTS / "cifar10-open/run.json", "")
    found = [read_json(p, "") for p in sorted((RESULTS / "cifar10-open/cells").glob("*/result.json"))]
    columns = [
        Column(name, lambda r, key=key: r["average"][key], of=setting["name"], group=setting["name"])  # type: ignore[misc]
        for setting in about["columns"]
        for name, key in (("ACC", "accuracy"), ("AUROC", "auroc"), ("H", "h_score"))
    ]
    overall = Column("mean H", lambda r: r["average"]["h_score"])
    rows = [Row(row["label"]) for row in about["rows"]]
    cells = [Record(cell["label"], cell["column"], cell["seed"], cell) for cell in found]
    table = Table.of(about["title"], rows, [overall, *columns], cells)
    means = [table.cell("PAF+KIP", column)[0] for column in columns]
    assert means == ["79.4", "77.1", "78.2", "79.5", "78.9", "79.2", "79.4", "87.1", "83.1"]
    assert [table.best(column) for column in columns[-3:]] == ["PAF+KIP"] * 3
    assert table.best(columns[0]) == "CoTTA"
    assert table.leaders(columns[5]) == ["CoTTA"]


def test_the_committed_tables_of_a_place_come_back() -> None:
    found = read_json(RESULTS / "space/retrieval/results.json", "")["results"]
    names = list(dict.fromkeys(r["column"] for r in found))
    rows = [Row(label) for label in dict.fromkeys(r["row"] for r in found)]
    cells = [Record(r["row"], r["column"], r["seed"], r) for r in found]
    table = Table.of("", rows, [Column(name, lambda r: r["value"], of=name) for name in names], cells)
    assert printed(table, "TST-MM (all)") == [
        "4.0 ±1.0",
        "15.0 ±2.0",
        "23.3 ±1.5",
        "2.3 ±0.6",
        "10.0 ±1.0",
        "21.3 ±2.1",
    ]
    # The place between floor and ceiling is a column too: it is linear, so that its mean is that of the means.
    found = read_json(RESULTS / "space/propagate/results.json", "")["results"]
    rows = [Row(label) for label in dict.fromkeys(r["row"] for r in found)]
    cells = [Record(r["row"], r["column"], r["seed"], r) for r in found]
    measured = Column("mIoU", lambda r: r["value"])
    low, high = (Table.of("", rows, [measured], cells).value(rows[i].label, measured) for i in (0, -1))
    between = Column("between", lambda r: (r["value"] - low) / (high - low), unit="", places=2)
    table = Table.of("", rows, [measured, between], cells)
    assert [table.cell(row.label, between)[0] for row in rows] == ["0.00", "0.19", "0.16", "0.20", "1.00"]
    assert printed(table, "TST-MAE")[0] == "54.8 ±3.4"


def test_the_committed_table_of_tasks_comes_back_from_results_that_know_their_base() -> None:
    folder = RESULTS / "multitask/table1"
    about = read_json(folder / "study.json", "")
    found = [read_json(path, "", finite=False) for path in sorted((folder / "cells").glob("*.json"))]
    base = {c["seed"]: c for c in found if c["row"] == about["rows"][0]}

    def gain(cell: dict[str, Any]) -> float:
        gains = []
        for task, series in cell["values"].items():
            start = base[cell["seed"]]["values"][task][0]
            sign = 1 if cell["higher_is_better"][task] else -1
            gains.append(sign * 100 * (series[-1] - start) / start)
        return sum(gains) / len(gains)

    rows = [Row(label, "base" if i == 0 else "method") for i, label in enumerate(about["rows"])]
    columns = [
        Column("depth", lambda c: c["values"]["depth"][-1], unit="RMSE, m", places=3, better="lower"),
        Column("Δ last", gain, signed=True),
    ]
    table = Table.of(
        about["title"], rows, columns, [Record(c["row"], c["domain"], c["seed"], c) for c in found]
    )
    assert printed(table, "TENT") == ["0.645 ±0.009", "+9.1 ±0.9"]
    assert printed(table, "TTT++'s network, BN only") == ["0.639 ±0.034", "+10.4 ±3.2"]
    assert printed(table, "Base") == ["0.752 ±0.005", "0.0"]
    assert table.best(columns[1]) == "TTT++'s network, BN only"
