"""Readers of series: values of written files, and a clear error for each damage."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from testtime.errors import DataError
from testtime.forecasting import Series, read_buses, read_csv, read_ett, read_libcity, windows_of

ROWS = [f"2024-01-01 {hour:02d}:00,{hour},{-2 * hour}" for hour in range(10)]


def written(folder: Path, lines: list[str], name: str = "mine.csv") -> Path:
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_csv_file_is_read_with_its_times_and_parts(tmp_path: Path) -> None:
    series = read_csv(written(tmp_path, ["time,a,b", *ROWS]))
    assert (series.name, series.columns, series.train, series.validation) == ("mine", ("a", "b"), 6, 2)
    assert (series.start, series.step) == (datetime(2024, 1, 1, tzinfo=UTC), timedelta(hours=1))
    assert series.values.tolist() == [[h, -2 * h] for h in range(10)]
    assert series.period() == 24
    v = np.array([[h, -2.0 * h] for h in range(10)])
    expected = (v - v[:6].mean(0)) / v[:6].std(0)
    assert np.allclose(series.standardised().numpy(), expected, atol=1e-6)
    assert read_csv(tmp_path / "mine.csv", columns=["b"]).values[:, 0].tolist() == [-2 * h for h in range(10)]
    assert series.digest() != read_csv(tmp_path / "mine.csv", columns=["b"]).digest()


@pytest.mark.parametrize(
    ("times", "months", "period"),
    [
        ([f"{2023 + m // 12}-{m % 12 + 1:02}-15" for m in range(14)], 1, 12),
        (["2023-11-30", "2023-12-31", "2024-01-31", "2024-02-29", "2024-03-31"], 1, 12),
        (["2023-12-31", "2024-03-31", "2024-06-30", "2024-09-30"], 3, 4),
        (["2022-05-01 06:00", "2023-05-01 06:00", "2024-05-01 06:00"], 12, 1),
    ],
    ids=["monthly", "last days", "quarterly", "yearly"],
)
def test_calendar_months_are_equal_steps(times: list[str], months: int, period: int, tmp_path: Path) -> None:
    series = read_csv(written(tmp_path, ["time,a", *(f"{t},{i}" for i, t in enumerate(times))]))
    assert series.step == months * timedelta(days=365.2425) / 12
    assert series.period() == period
    assert series.start == datetime.fromisoformat(times[0]).replace(tzinfo=UTC)


def test_months_go_by_the_clock_of_a_time_zone(tmp_path: Path) -> None:
    rows = [f"2024-{m:02}-01T00:00:00+0{1 + (4 <= m <= 10)}:00,{m}" for m in range(1, 13)]
    series = read_csv(written(tmp_path, ["time,a", *rows]))
    assert (series.period(), series.values[:, 0].tolist()) == (12, list(range(1, 13)))


def test_the_same_days_of_a_week_are_no_calendar_months(tmp_path: Path) -> None:
    times = [datetime(2024, 1, 1) + timedelta(days=7 * i) for i in range(6)]
    series = read_csv(written(tmp_path, ["time,a", *(f"{t},{i}" for i, t in enumerate(times))]))
    assert series.step == timedelta(days=7)


MONTHS = [f"2024-{m:02}-01,1,1" for m in range(1, 7)]
DAMAGES = {
    "a month": (["time,a,b", *MONTHS[:3], *MONTHS[4:]], r"line 5: a gap of 2 month\(s\) where the usual step is 1 m"),
    "the end of time": (["time,a,b", *MONTHS[:3], "9999-12-31,1,1"], r"line 4: an irregular step of 29 days"),
    "a month twice": (["time,a,b", *MONTHS[:3], *MONTHS[2:]], r"line 5: the time .* is there twice; keep one of the"),
    "a gap": (["time,a,b", *ROWS[:4], *ROWS[5:]], r"line 6: a gap of 2:00:00 where the usual step is 1:00:00; resample"),
    "irregular": (["time,a,b", *ROWS[:4], "2024-01-01 03:20,1,1", *ROWS[4:]], r"line 6: an irregular step of 0:20:00"),
    "twice": (["time,a,b", *ROWS[:4], ROWS[3], *ROWS[4:]], r"line 6: the time .* is there twice; keep one of the two rows"),
    "backwards": (["time,a,b", *ROWS[:4], ROWS[1], *ROWS[4:]], r"line 6: the time .* is before that of the row above"),
    "no time": (["date,a,b", *ROWS], r"no column 'time'; it has date, a, b; rename the column of times, or give its name"),
    "semicolons": (["time;a;b", *ROWS], r"no column 'time'; its fields are separated by ';': save it with commas"),
    "misspelt time": (["Time,a,b", *ROWS], r"no column 'time' \(did you mean 'Time'\?\)"),
    "bad time": (["time,a,b", *ROWS[:3], "noon,1,1"], r"line 5: expected a time in ISO 8601 .* got 'noon'"),
    "no number": (["time,a,b", *ROWS[:3], "2024-01-01 03:00,x,1"], r"line 5: expected a number of 'a', got 'x'"),
    "empty value": (["time,a,b", *ROWS[:3], "2024-01-01 03:00,,1"], r"line 5: no value of 'a'; resample"),
    "nan": (["time,a,b", *ROWS[:3], "2024-01-01 03:00,nan,1"], r"line 5: 'a' is nan; resample"),
    "huge": (["time,a,b", *ROWS[:3], "2024-01-01 03:00,1e39,1"], r"line 5: 'a' is 1e39, above 1e\+30 in size"),
    "thousands": (["time,a,b", *ROWS[:3], "2024-01-01 03:00,1_000,1"], r"line 5: expected a number of 'a', got '1_000'"),
    "decimal comma": (["time,a,b", *ROWS[:3], '2024-01-01 03:00,"1,5",1'], r"of 'a', got '1,5'; write it as 1234.5"),
    "commas in names": (["time;a, m;b", *ROWS], r"no column 'time'; its fields are separated by ';': save it with commas"),
    "some with a zone": (["time,a,b", *ROWS[:3], "2024-01-01 03:00Z,1,1"], r"line 5: 2024-01-01 03:00Z has a time zone, unl"),
    "some without": (["time,a,b", "2024-01-01 00:00+01:00,1,1", *ROWS[1:]], r"line 3: .* 01:00 has no time zone, unlike"),
    "fields": (["time,a,b", *ROWS[:3], "2024-01-01 03:00,1"], r"line 5: expected 3 fields, got 2"),
    "double name": (["time,a,a", *ROWS], r"the column 'a' is there twice"),
    "no series": (["time", "2024-01-01", "2024-01-02"], r"no series beside the column 'time'"),
    "one row": (["time,a,b", ROWS[0]], r"expected at least two rows below the line of names, got 1"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_csv_file_is_refused(damage: str, tmp_path: Path) -> None:
    lines, message = DAMAGES[damage]
    with pytest.raises(DataError, match=message):
        read_csv(written(tmp_path, lines))


def test_other_refusals(tmp_path: Path) -> None:
    path = written(tmp_path, ["time,a,b", *ROWS])
    with pytest.raises(DataError, match="no series 'c'"):
        read_csv(path, columns=["c"])
    with pytest.raises(
        DataError, match="none.csv: no such file; expected a CSV file of series with a column 'time'$"
    ):
        read_csv(tmp_path / "none.csv")
    with pytest.raises(
        DataError, match="10 rows, of which 8 are for training and 2 for validation; expected some more"
    ):
        read_csv(path, train=8, validation=2)
    (tmp_path / "empty.csv").write_text("")
    with pytest.raises(DataError, match="the file is empty"):
        read_csv(tmp_path / "empty.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="no CSV in UTF-8"):
        read_csv(tmp_path / "binary.csv")
    with pytest.raises(ValueError, match="is no whole number of steps"):
        read_csv(path).period(timedelta(minutes=90))
    with pytest.raises(ValueError, match="expected at least 11 observations"):
        windows_of(torch.zeros(10, 2), 11)


def test_a_constant_series_is_not_divided_by_zero() -> None:
    values = torch.tensor([[1.0, 5.0], [3.0, 5.0], [5.0, 5.0], [7.0, 6.0]])
    series = Series("x", values, ("a", "b"), datetime(2024, 1, 1, tzinfo=UTC), timedelta(days=1), 2, 1)
    assert series.standardised().tolist() == [[-1, 0], [1, 0], [3, 0], [5, 1]]


def test_a_constant_that_float32_rounds_is_constant() -> None:
    values = torch.full((1001, 1), 0.1)
    values[-1] = 0.6
    assert values[:1000].std(correction=0) > 0  # by rounding alone
    series = Series("x", values, ("a",), datetime(2024, 1, 1, tzinfo=UTC), timedelta(days=1), 1000, 0)
    assert series.deviation.tolist() == [1]
    assert np.allclose(series.standardised()[[0, -1], 0].numpy(), [0, 0.5], atol=1e-6)


SHAPE: dict[str, Any] = {
    "name": "x",
    "values": torch.arange(20.0).reshape(10, 2),
    "columns": ("a", "b"),
    "start": datetime(2024, 1, 1, tzinfo=UTC),
    "step": timedelta(hours=1),
    "train": 6,
    "validation": 2,
}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"train": 0}, "no row is for training; expected one or more"),
        ({"train": 0.6}, "train is a number of rows, a whole one, got 0.6"),
        ({"validation": 0.2}, "validation is a number of rows, a whole one, got 0.2"),
        ({"values": np.zeros((10, 2))}, r"as a floating-point tensor, got ndarray; convert them: torch.as_tensor"),
        ({"values": torch.zeros(10, 2, dtype=torch.int64)}, "as a floating-point tensor, got torch.int64"),
        ({"values": torch.tensor([[0.0, 1.0]] * 9 + [[1.0, math.nan]])}, "1 rows hold NaN or infinity, first row 9"),
    ],
)  # fmt: skip
def test_a_series_that_cannot_be_standardised_is_refused(wrong: dict[str, Any], message: str) -> None:
    assert Series(**SHAPE).values.shape == (10, 2)
    with pytest.raises((TypeError, DataError), match=message):
        Series(**{**SHAPE, **wrong})


def test_a_season_is_a_span_of_time() -> None:
    with pytest.raises(
        TypeError, match=r"season is a datetime.timedelta, such as timedelta\(days=1\), got 24"
    ):
        Series(**SHAPE).period(24)  # type: ignore[arg-type]


def test_columns_are_a_list_and_each_is_read_once(tmp_path: Path) -> None:
    path = written(tmp_path, ["time,load,b", *ROWS])
    with pytest.raises(
        TypeError, match=r"columns is a list of names, got 'load'; one name is a list too: \['load'\]"
    ):
        read_csv(path, columns="load")
    assert read_csv(path, columns=["load", "load"]).columns == ("load",)


def test_ett_has_its_usual_parts(tmp_path: Path) -> None:
    (tmp_path / "ETT-small").mkdir()
    first = datetime(2016, 7, 1)
    lines = [f"{first + timedelta(hours=h)},{h % 24},{h}" for h in range(14500)]
    written(tmp_path / "ETT-small", ["date,HUFL,OT", *lines], "ETTh2.csv")
    series = read_ett(tmp_path, "ETTh2")
    assert (len(series.values), series.train, series.validation) == (14400, 8640, 2880)
    assert series.values[100].tolist() == [4, 100]
    with pytest.raises(DataError, match=r"ETTh1.csv: no such file; expected ETTh1.csv of github.com"):
        read_ett(tmp_path)
    with pytest.raises(ValueError, match="ETTh3"):
        read_ett(tmp_path, "ETTh3")


def test_the_buses_come_with_their_graph(tmp_path: Path) -> None:
    nodes = [{"bus_stop": 10 + i, "y": [i, i + 1, i + 2, i + 3, i + 4]} for i in range(3)]
    links = [{"source": 10, "target": 11, "weight": 100.0}, {"source": 11, "target": 12, "weight": 300.0}]
    path = tmp_path / "montevideo_bus.json"
    path.write_text(json.dumps({"nodes": nodes, "links": links}))
    series = read_buses(tmp_path)
    assert series.values[:, 2].tolist() == [2, 3, 4, 5, 6]
    weights = [math.exp(-((d / 100.0) ** 2)) for d in (100.0, 300.0)]  # the deviation of the lengths is 100
    expected = np.zeros((3, 3))
    expected[0, 1] = expected[1, 0] = weights[0]
    expected[1, 2] = expected[2, 1] = weights[1]
    assert series.graph is not None
    assert np.allclose(series.graph.numpy(), expected)
    path.write_text(json.dumps({"nodes": nodes, "links": [{"source": 10, "target": 99, "weight": 1}]}))
    with pytest.raises(DataError, match="is damaged"):
        read_buses(tmp_path)
    path.write_text("{}")
    with pytest.raises(DataError, match="nodes"):
        read_buses(tmp_path)


def libcity(folder: Path, name: str, lines: list[str], end: str = "dyna") -> None:
    written(folder, lines, f"{name}.{end}")


TIMES = [f"2018-01-01T00:{minute:02d}:00Z" for minute in range(0, 50, 5)]
PEMS = ["dyna_id,type,time,entity_id,traffic_flow,traffic_speed"]
PEMS += [f"{i},state,{t},{s},{10 * s + i},{60 + s}" for s in (7, 8) for i, t in enumerate(TIMES)]
GRID = ["dyna_id,type,time,row_id,column_id,inflow,outflow"]
GRID += [f"0,state,{t},{r},{c},{10 * r + c},{i}" for r in (0, 1) for c in (0, 1) for i, t in enumerate(TIMES)]


def test_libcity_sensors_are_read_with_their_relations(tmp_path: Path) -> None:
    (tmp_path / "PEMSD4").mkdir()
    libcity(tmp_path / "PEMSD4", "PEMSD4", PEMS)
    relations = ["rel_id,type,origin_id,destination_id,link_weight", "0,geo,7,8,0.5"]
    libcity(tmp_path / "PEMSD4", "PEMSD4", relations, "rel")
    series = read_libcity(tmp_path, "PEMSD4", "traffic_flow")
    assert (series.columns, series.step) == (("7", "8"), timedelta(minutes=5))
    assert series.values.tolist() == [[70 + i, 80 + i] for i in range(10)]
    assert series.graph is not None
    assert series.graph.tolist() == [[0, 0.5], [0, 0]]
    both = read_libcity(tmp_path, "PEMSD4")
    assert both.columns == ("7 traffic_flow", "7 traffic_speed", "8 traffic_flow", "8 traffic_speed")
    assert both.values[3].tolist() == [73, 67, 83, 68]
    assert both.graph is None


@pytest.mark.parametrize("name", ["NYCTAXI20140112", "T_DRIVE20150206"])
def test_libcity_grids_are_read_cell_by_cell(name: str, tmp_path: Path) -> None:
    libcity(tmp_path, name, GRID, "grid")
    series = read_libcity(tmp_path, name, "inflow")
    assert series.columns == ("0 0", "0 1", "1 0", "1 1")
    assert series.values[5].tolist() == [0, 1, 10, 11]
    assert read_libcity(tmp_path, name, "outflow").values[5].tolist() == [5, 5, 5, 5]


def test_damaged_libcity_files_are_refused(tmp_path: Path) -> None:
    cases = {
        r"8 has other times than 7 \(9 against 10\)": PEMS[:-1],
        r"no column 'entity_id'": [PEMS[0].replace("entity_id", "sensor"), *PEMS[1:]],
        r"line 3 is damaged": [*PEMS[:2], PEMS[2].replace("71", "many"), *PEMS[3:]],
        r"another number of fields than names": [*PEMS[:2], "1,state"],
        r"no rows below the line of names": PEMS[:1],
        r"a gap of 0:10:00": [line for line in PEMS if TIMES[4] not in line],
        r"a value is missing or infinite": [
            line.replace(",60", ",nan").replace(",67", ",nan") for line in PEMS
        ],
    }
    for message, lines in cases.items():
        libcity(tmp_path, "PEMSD8", lines)
        with pytest.raises(DataError, match=message):
            read_libcity(tmp_path, "PEMSD8")
    libcity(tmp_path, "PEMSD8", PEMS)
    with pytest.raises(DataError, match="no measure 'traffic_flaw' .did you mean 'traffic_flow'"):
        read_libcity(tmp_path, "PEMSD8", "traffic_flaw")
    with pytest.raises(DataError, match="no such file; expected states by time"):
        read_libcity(tmp_path, "METR_LA")
    libcity(tmp_path, "NYC_OD", ["a"], "od")
    with pytest.raises(DataError, match="flows between pairs, which are not read"):
        read_libcity(tmp_path, "NYC_OD")
    libcity(tmp_path, "PEMSD8", ["rel_id,type,origin_id,destination_id", "0,geo,7,9"], "rel")
    with pytest.raises(DataError, match="PEMSD8.rel, line 2 is damaged"):
        read_libcity(tmp_path, "PEMSD8", "traffic_flow")
