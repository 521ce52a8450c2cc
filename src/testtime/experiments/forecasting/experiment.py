"""The experiments of the family: sources, adapters around them, and their errors by horizon."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import Any, final

from testtime.errors import DataError
from testtime.experiments import Cell, Column, Experiment, Plan, Request, Row, Run, Table, Unit
from testtime.experiments.experiment import Resource
from testtime.experiments.registry import code_of, read_constants
from testtime.forecasting.series import Series
from testtime.forecasting.study import check_sources, read_series
from testtime.processor import Precision

__all__ = ["Forecasting"]

FACTS = read_constants(__package__ or "", "experiments")
STUDY = "testtime.forecasting.study"
OWN = "FILE.csv"  # in place of a name, where the user gives the series
SEEDED = ("gru", "graph")  # sources that are trained from random weights
SEEDLESS = (
    "Source",
    "BNAdapt",
    *map("testtime.forecasting:{}".format, ("OutputBias", "ScaleShift", "NormTuning")),
)
LEAK = "Leaking rows learn at time t from the window that ends at t + horizon, on which they are then scored: no method can."


@final
class Forecasting(Experiment):
    """Sources with and without adapters on the test rows of some series; the names are those of ``experiments.toml``."""

    family = "forecasting"
    unused = ("model", "device")
    note = "Online: at each time an adapter learns from the forecast whose truth has arrived, and then forecasts."

    def __init__(self, name: str) -> None:
        own = FACTS["experiments"][name]
        self.name, self.title = name, own["title"]
        self.settings = {**FACTS["settings"], **{k: v for k, v in own.items() if k != "title"}}
        own_series = self.settings["series"] == OWN  # no data set that a file stands in for
        self.resources = (
            () if own_series else (Resource("series", "data", self.settings["series"], ("own",)),)
        )

    def precisions(self, request: Request) -> tuple[Precision, ...]:
        return ("float32",)

    def plan(self, request: Request) -> Plan:
        given: dict[str, Any] = {name: self.setting(request, name) for name in self.settings}
        places, used = {"data": str(Path(request.data).resolve())}, given["series"]
        if used == OWN and not Path(OWN).is_file():
            raise DataError(
                f"{self.name}: expected your own series as --set series=mine.csv, a CSV with a column time"
            )
        if used.endswith(".csv"):
            places["series"], used = str(Path(used).resolve()), Path(used).stem
        series = read_series(places.get("series", used), places["data"])
        _check(given, series)
        check_sources(given["sources"], series)
        facts = {"series": series.digest()}
        rows, cells = self.chosen_rows(self._rows(given["sources"]), request), []
        if any(row.about["source"] == "seasonal-naive" for row in rows):
            _check_season(given, series)
        season = {"period": given["period"]} if given["period"] else {}
        for row, horizon, seed in product(rows, given["horizons"], request.seeds or ()):
            about = {"source": given["sources"][0], "rates": [], "leaking": False, **row.about}
            trained, drawn = about["source"] in SEEDED, about["method"] not in SEEDLESS
            common = {"series": used, "horizon": horizon, "source": about["source"], "facts": facts}
            common |= {"length": given["length"], "passes": given["passes"], "source_seed": seed * trained}
            common |= season if about["source"] == "seasonal-naive" else {}
            name = f"{about['source']}, {horizon}, seed {seed * trained}"
            needs = {"source": Unit(f"{STUDY}:fit_source", common, name, places=places)}
            about |= {"stride": given["stride"], "tune": given["tune"], "limit": request.limit}
            parameters = {**common, **about, "seed": seed * drawn}
            name, code = f"{row.label}, {horizon}, seed {seed}", code_of(about["method"])
            unit = Unit(f"{STUDY}:follow", parameters, name, needs, code, places, weight=horizon)
            cells.append(Cell(row.label, str(horizon), seed, unit))
        about = {"horizons": given["horizons"], "stride": given["stride"]}
        return Plan(rows, cells, facts=facts, used={"series": used}, about=about)

    def _rows(self, sources: Sequence[str]) -> list[Row]:
        """The seasonal naive forecast, then each source with its adapters."""
        labels = {name: FACTS["labels"].get(name, name) for name in ("seasonal-naive", *sources)}
        found = [Row(label, "base", about={"source": s, "method": "Source"}) for s, label in labels.items()]
        for source, (name, facts) in product(sources, FACTS["rows"].items()):
            about = {k: v for k, v in facts.items() if k not in ("only", "role")}
            if source in facts.get("only", sources):
                label = f"{labels[source]} + {name}"
                found.append(Row(label, facts.get("role", "method"), about={"source": source, **about}))
        return found

    def tables(self, run: Run) -> Sequence[Table]:
        about, found = run.about["about"], []
        notes = [*run.notes, LEAK, f"Rows of the test from one forecast to the next: {about['stride']}."]
        for title, end, places in (("standardised", "", 4), ("in the units of the data", "_units", 3)):
            columns = [
                Column(f"{h}", (measure + end,), str(h), measure.upper(), "", places, "lower")
                for measure, h in product(("mse", "mae"), about["horizons"])
            ]
            title = f"Error of forecasts by horizon, {title}"
            found.append(Table.of(title, run.rows, columns, run.records(), run.missing, notes))
        return found


def _check_season(given: Mapping[str, Any], series: Series) -> None:
    """Refuse a season that the seasonal naive forecast cannot have, with a ValueError."""
    period = given["period"]
    if isinstance(period, bool) or not isinstance(period, int) or period < 0:
        raise ValueError(
            f"period is a number of observations, or 0 for those of a day (of a year for steps of months), got {period}"
        )
    if not period:
        try:
            period = series.period()
        except ValueError:
            tick = timedelta.resolution
            whole = math.lcm(timedelta(days=1) // tick, series.step // tick) * tick
            raise ValueError(
                f"{series.name} has a step of {series.step}, of which a day is no whole number; give the observations of a "
                f"season of the seasonal naive forecast: --set period=N, such as {whole // series.step} for {whole.days} days"
            ) from None
    if period > given["length"]:
        raise ValueError(
            f"expected windows of a season at least, {period} observations, got length={given['length']}; lengthen them, or "
            "give a shorter season: --set period=N"
        )


def _check(given: Mapping[str, Any], series: Series) -> None:
    """Refuse numbers that only the end of a run would find wrong, and parts too short for a window, with a ValueError."""
    for name in ("length", "stride", "passes", "tune"):
        if given[name] < 1:
            raise ValueError(f"{name} is a whole number from 1, got {given[name]}")
    if not given["horizons"] or min(given["horizons"]) < 1:
        raise ValueError(f"horizons are whole numbers from 1, got {given['horizons']}")
    longest, length = max(given["horizons"]), given["length"]
    test = len(series.values) - series.train - series.validation
    parts = (("training", series.train, length + longest), ("validation", series.validation, longest))
    for part, rows, least in (*parts, ("test", test, longest)):
        if rows < least:
            raise ValueError(
                f"{series.name} has {rows} rows for {part}, expected at least {least} for windows of {length} and the horizon "
                f"{longest}; take a shorter horizon or window, or more rows"
            )
