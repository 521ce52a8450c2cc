"""The family "forecasting": its rows, a run of it on a written file, and what a leaking row is called."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from testtime.errors import DataError
from testtime.experiments import Request, find_experiment, read_run, run_experiment
from testtime.experiments.registry import code_of
from testtime.forecasting.study import follow, make_source, read_series


@pytest.fixture
def file(tmp_path: Path) -> Path:
    rng, first = np.random.default_rng(0), datetime(2024, 1, 1)
    lines = ["time,a,b"]
    for h in range(160):
        a, b = np.sin(h * np.pi / 12) + 0.1 * rng.normal(), h / 50 + 0.1 * rng.normal()
        lines.append(f"{first + timedelta(hours=h)},{a:.4f},{b:.4f}")
    path = tmp_path / "mine.csv"
    path.write_text("\n".join(lines))
    return path


def request(file: Path, **changes: object) -> Request:
    small = {
        "series": str(file),
        "length": 24,
        "horizons": [3],
        "passes": 1,
        "tune": 3,
        "sources": ["nlinear"],
    }
    asked = {"experiment": "forecasting-csv", "seeds": (0,), "data": str(file.parent), "limit": 10}
    return Request(**{**asked, "settings": small, **changes})  # type: ignore[arg-type]


def test_a_run_on_a_file_has_the_controls_and_names_what_leaks(file: Path, tmp_path: Path) -> None:
    experiment = find_experiment("forecasting-csv")
    rows = ("NLinear + output bias", "NLinear + ADCSD, rate chosen, leaking")
    run_experiment(experiment, request(file, rows=rows), tmp_path / "run")
    run = read_run(tmp_path / "run")
    assert run.missing == []
    table, in_units = experiment.tables(run)
    assert [row.label for row in table.rows] == ["seasonal naive", "NLinear", *rows]
    assert {row.label: row.role for row in table.rows}[rows[1]] == "ceiling"
    assert any("no method can" in note for note in table.notes)
    assert not any("stands in" in note for note in table.notes)  # own series are what the experiment is for
    series = read_series(str(file), str(tmp_path))
    v, begin = series.standardised(), series.train + series.validation
    # The seasonal naive forecast by hand: the first ten origins, three steps each, of the values 24 hours before.
    errors = [v[t + k] - v[t + k - 24] for t in range(begin - 1, begin + 9) for k in (1, 2, 3)]
    expected = torch.stack(errors).square().mean()
    mse, mae = (table.column(key) for key in ("MSE 3", "MAE 3"))
    assert table.value("seasonal naive", mse) == pytest.approx(float(expected), rel=1e-4)
    in_data = (torch.stack(errors) * series.deviation).square().mean()
    assert in_units.value("seasonal naive", in_units.columns[0]) == pytest.approx(float(in_data), rel=1e-4)
    assert table.value("NLinear", mae) < table.value("seasonal naive", mae)
    tried = next(r.result for r in run.records() if r.row == rows[0])
    assert set(tried["tried"]) == {"0.0001", "0.001", "0.01"}
    assert tried["rate"] == float(min(tried["tried"], key=tried["tried"].get))
    assert experiment.page(run).title


def test_own_methods_and_sources_get_rows(file: Path, tmp_path: Path) -> None:
    experiment = find_experiment("forecasting-csv")
    settings = {**request(file).settings, "sources": ["nlinear", "testtime.forecasting.linear:NLinear"]}
    asked = request(file, methods=("testtime.forecasting:ScaleShift",), settings=settings)
    labels = [row.label for row in experiment.plan(asked).rows]
    assert labels[-1] == "scale and shift"
    with pytest.raises(ImportError, match="my_module"):
        make_source("my_module:net", read_series(str(file), "."), 4, 2, 0)
    with pytest.raises(ValueError, match="has no graph; choose other sources"):
        make_source("graph", read_series(str(file), "."), 4, 2, 0)
    with pytest.raises(ValueError, match="no source 'gruu'"):
        make_source("gruu", read_series(str(file), "."), 4, 2, 0)


@pytest.mark.parametrize(
    ("source", "kind", "message"),
    [
        ("nlinaer", ValueError, r"no source 'nlinaer' \(did you mean 'nlinear'\?\)"),
        ("graph", ValueError, "has no graph; choose other sources: seasonal-naive, nlinear, gru, fracast"),
        ("testtime.forecasting:nothing", ImportError, "has no attribute 'nothing'"),
        (
            "testtime.forecasting.study:RATES",
            ValueError,
            "expected a function of .length, horizon, channels.",
        ),
    ],
)
def test_sources_that_are_none_are_refused_before_any_work(
    source: str, kind: type[Exception], message: str, file: Path, tmp_path: Path
) -> None:
    asked = request(file, settings={**request(file).settings, "sources": ["nlinear", source]})
    with pytest.raises(kind, match=message):
        run_experiment(find_experiment("forecasting-csv"), asked, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def wide(length: int, horizon: int, channels: int) -> nn.Module:
    return nn.Linear(length, horizon)


def number(length: int, horizon: int, channels: int) -> int:
    return length


def pair(length: int, horizon: int) -> None:
    """A function of other arguments."""


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (
            "wide",
            r"module of .*:wide raised RuntimeError on windows \(2, 4, 2\): .*\(N, horizon, channels\)$",
        ),
        ("number", "number returned int, expected a torch.nn.Module"),
        ("pair", r"pair\(4, 2, 2\) raised TypeError: .*expected a function of \(length, horizon, channels\)"),
    ],
)
def test_own_sources_that_are_no_forecasters_are_named(made: str, message: str, file: Path) -> None:
    with pytest.raises(ValueError, match=message):
        make_source(f"{__name__}:{made}", read_series(str(file), "."), 4, 2, 0)


def test_a_season_that_is_no_day_is_asked_for_and_taken(file: Path, tmp_path: Path) -> None:
    experiment, lines = find_experiment("forecasting-csv"), file.read_text().split("\n")
    first = datetime(2024, 1, 1)
    rows = [f"{first + timedelta(hours=5 * h)},{line.split(',', 1)[1]}" for h, line in enumerate(lines[1:])]
    file.write_text("\n".join([lines[0], *rows]))

    def asked(**given: object) -> Request:
        return request(file, rows=("seasonal naive",), settings={**request(file).settings, **given})

    with pytest.raises(
        ValueError, match="step of 5:00:00, of which a day is no whole .*=N, such as 24 for 5 days"
    ):
        experiment.plan(asked())
    with pytest.raises(ValueError, match=r"a season at least, 25 observations, got length=24"):
        experiment.plan(asked(period=25))
    for wrong in (-1, 2.5, True):
        with pytest.raises(ValueError, match=f"period is a number of observations, .* got {wrong}"):
            experiment.plan(asked(period=wrong))
    assert run_experiment(experiment, asked(period=6), tmp_path / "run").exit_code == 0
    table = experiment.tables(read_run(tmp_path / "run"))[0]
    series = read_series(str(file), str(tmp_path))
    v, begin = series.standardised(), series.train + series.validation
    errors = [v[t + k] - v[t + k - 6] for t in range(begin - 1, begin + 9) for k in (1, 2, 3)]
    expected = float(torch.stack(errors).square().mean())
    assert table.value("seasonal naive", table.column("MSE 3")) == pytest.approx(expected, rel=1e-4)


def test_a_season_is_part_of_the_units_that_have_one_alone(file: Path) -> None:
    experiment = find_experiment("forecasting-csv")
    units = []
    for given in ({}, {"period": 6}):
        plan = experiment.plan(request(file, settings={**request(file).settings, **given}))
        units.append({cell.row: cell.unit.address for cell in plan.cells})
    assert [row for row in units[0] if units[0][row] != units[1][row]] == ["seasonal naive"]


def test_bad_settings_are_refused_before_any_work(file: Path, tmp_path: Path) -> None:
    experiment = find_experiment("forecasting-etth1")
    for settings, message in (
        ({"series": "etth3"}, "no series 'etth3'"),
        ({"series": str(tmp_path / "none.csv")}, "no such file"),
    ):
        with pytest.raises(ValueError, match=message):
            experiment.plan(Request("forecasting-etth1", seeds=(0,), data=str(tmp_path), settings=settings))
    with pytest.raises(
        DataError, match="ETTh1.csv: no such file; expected ETTh1.csv of github.com/zhouhaoyi/ETDataset"
    ):
        experiment.plan(Request("forecasting-etth1", seeds=(0,), data=str(tmp_path)))
    with pytest.raises(ValueError, match="has no row 'NLinear . TENT'"):
        experiment.plan(request(file, rows=("NLinear + TENT",)))


def test_own_series_that_are_not_given_are_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"expected your own series as --set series=mine\.csv"):
        find_experiment("forecasting-csv").plan(Request("forecasting-csv", seeds=(0,), data=str(tmp_path)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stride": 0}, "stride is a whole number from 1, got 0"),
        ({"tune": 0}, "tune is a whole number from 1, got 0"),
        ({"horizons": [3, 0]}, r"horizons are whole numbers from 1, got \[3, 0\]"),
        ({"length": 90, "horizons": [7]}, "mine has 96 rows for training, expected at least 97 for windows of 90"),
        ({"horizons": [3, 33]}, "mine has 32 rows for validation, expected at least 33 .* the horizon 33"),
    ],
)  # fmt: skip
def test_numbers_that_fit_no_window_are_refused_before_any_work(
    file: Path, changes: dict[str, object], message: str
) -> None:
    asked = request(file, settings={**request(file).settings, **changes})
    with pytest.raises(ValueError, match=message):
        find_experiment("forecasting-csv").plan(asked)


def test_a_file_that_changes_is_read_again_and_a_planned_run_refuses_it(file: Path, tmp_path: Path) -> None:
    experiment, asked = find_experiment("forecasting-csv"), request(file, rows=("NLinear",))
    plan = experiment.plan(asked)
    before = read_series(str(file), str(tmp_path))
    assert read_series(str(file), str(tmp_path)) is before
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:-1], f"{lines[-1]}1"]))  # one more digit
    after = read_series(str(file), str(tmp_path))
    assert (after.values != before.values).sum() == 1
    unit = plan.cells[0].unit
    assert unit.parameters["facts"]["series"] == before.digest()
    work = SimpleNamespace(parameters=unit.parameters, places=unit.places)
    with pytest.raises(DataError, match="mine: expected the series that the run began with, found others"):
        follow(work)  # type: ignore[arg-type]


def test_a_trained_source_goes_on_where_it_stopped(file: Path, tmp_path: Path) -> None:
    experiment = find_experiment("forecasting-csv")
    settings = {**request(file).settings, "sources": ["gru"], "passes": 2}
    asked = request(file, rows=("GRU",), settings=settings)
    run_experiment(experiment, asked, tmp_path / "run")
    again = run_experiment(experiment, asked, tmp_path / "run")
    assert again.done == []
    (table, _) = experiment.tables(read_run(tmp_path / "run"))
    assert table.value("GRU", table.columns[0]) > 0


@pytest.mark.parametrize("name", ["forecasting-etth1", "forecasting-etth2", "forecasting-buses"])
def test_the_committed_runs_are_whole_and_of_the_present_methods(name: str) -> None:
    folder = Path(__file__).parents[3] / "results" / name
    run = read_run(folder)
    assert (run.missing, run.outdated) == ([], [])
    table, _ = find_experiment(run.about["experiment"]).tables(run)
    assert {"seasonal naive", "NLinear"} <= {row.label for row in table.rows}
    units = [json.loads(path.read_text())["unit"] for path in (folder / "results").glob("*.json")]
    following = [unit for unit in units if "method" in unit["parameters"]]
    assert len(following) >= len(table.rows)
    for unit in following:
        assert unit["code"] == code_of(unit["parameters"]["method"])
