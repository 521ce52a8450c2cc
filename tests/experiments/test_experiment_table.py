"""Tables: means, spreads, best, pairs; every form of output from one object."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import pytest

from testtime.experiments import Column, Record, Row, Table
from testtime.report import Page, Section, page_html

ROWS = [
    Row("Source", "base"),
    Row("BN-adapt", "control"),
    Row("TENT", note="on fewer images."),
    Row("Labels", "ceiling"),
    Row("CoTTA"),
]
ERROR = Column("error", lambda r: r.get("error"), better="lower", published={"TENT": 18.25}, group="fog")
TIME = Column("time", lambda r: r.get("time"), unit="", places=2, better=None, note="of a batch.")
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


def test_means_spreads_and_rows_without_a_record() -> None:
    table = made()
    assert [row.label for row in table.rows] == ["Source", "BN-adapt", "TENT", "Labels"]
    assert (table.value("BN-adapt", ERROR), table.spread("BN-adapt", ERROR)) == (22.0, math.sqrt(7.0))
    assert (table.value("Source", TIME), table.spread("Labels", ERROR)) == ((1.0 + 2.0 + 5.0) / 3, 0.0)
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
    assert math.isnan(table.paired("TENT", "CoTTA", ERROR).mean)


def test_text_markdown_csv_and_json_hold_the_same_numbers() -> None:
    table = made(missing=[], notes=["A note."])
    assert table.text().splitlines() == [
        "Errors",
        "            fog",
        "          error                 time",
        "              %",
        "Source     31.0 ±1.0            2.67 ±2.08",
        "BN-adapt   22.0 ±2.6            2.67 ±2.08",
        "TENT†      21.7 ±2.5 (18.25) *  2.67 ±2.08",
        "Labels      5.0                 2.67 ±2.08",
        "3 seeds, mean ± standard deviation; * is the best.",
        "In parentheses: published.",
        "† on fewer images.",
        "time: of a batch.",
        "A note.",
    ]
    lines = table.markdown().splitlines()
    assert lines[0] == "| | fog error, % | time |"
    assert lines[4] == "| TENT† | **21.7** ±2.5 (18.25) | 2.67 ±2.08 |"
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
