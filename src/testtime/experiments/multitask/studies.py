"""The tables of the S4T paper: rows on shifted domains, each beside a control that only estimates its BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING, Any, final

from testtime.experiments.experiment import Cell, Plan, Unit
from testtime.experiments.multitask.listing import CONSTANTS
from testtime.experiments.multitask.planning import MultitaskExperiment, Planner, resolve_parts
from testtime.experiments.multitask.results import only_statistics, study_tables
from testtime.experiments.request import Request
from testtime.experiments.run import Run
from testtime.experiments.table import Row, Table
from testtime.multitask.protocol import Protocol

if TYPE_CHECKING:
    from testtime.report import Page

__all__ = ["STUDIES", "Study", "find_row"]

DEFAULTS: dict[str, Any] = {
    **{"role": "method", "rates": [0.0], "optimizer": "adam", "options": {}, "norm": "running"},
    **{"arguments": {}, "network": {}, "prepare": False, "misplaced": False},
}
DECLARED: dict[str, Any] = {"published": [], "sweep": ""}


def find_row(entry: str | Mapping[str, Any]) -> Row:
    """Return a row of ``experiments.toml`` by its label, or as an entry of a list of rows says.

    >>> find_row({"control": "TTT"}).about["method"], find_row("0.9").about["network"]
    ('Tent', {'branch': 'synchronizer', 'ratio': 0.9})
    """
    entry = {"like": entry, "label": entry} if isinstance(entry, str) else dict(entry)
    if "control" not in entry:
        facts = _facts(entry)
        return Row(entry["label"], facts.pop("role"), about=facts)
    of = find_row(entry["control"]).about
    facts = dict(of) if of["method"] == "S4T" else {**find_row("BN only").about, "network": of["network"]}
    facts |= {"rates": [0.0], "arguments": {}, "misplaced": False}
    return Row(entry.get("label", f"{entry['control']}'s network, BN only"), "control", about=facts)


def _facts(entry: Mapping[str, Any]) -> dict[str, Any]:
    base = _facts(CONSTANTS["rows"][entry["like"]]) if "like" in entry else DEFAULTS
    own = {name: value for name, value in entry.items() if name not in ("like", "label")}
    return {**base, **own, "network": {**base["network"], **own.get("network", {})}}


@final
class Study(MultitaskExperiment):
    """A table of rows on shifted domains."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.protocol = Protocol(**{"record_every": 10, **self.facts.get("protocol", {})})
        self.domains: dict[str, Any] = self.facts.get("domains", {"target": {}})
        self.rows = [find_row(one) for one in self.facts["rows"]]
        for row in list(self.rows) if self.facts.get("controls") else ():
            if row.about["network"] and not self._controls(row, self.rows):
                self.rows.append(find_row({"control": row.label}))

    def plan(self, request: Request) -> Plan:
        preset, base, planners = self.setting(request, "preset"), self.rows[0], dict[str, Planner]()
        chosen = {name: self.setting(request, name) for name in self.settings if name != "preset"}
        for domain, declared in self.domains.items():
            changes = resolve_parts(declared, preset, request.data, chosen)
            protocol = replace(self.protocol, **changes.get("protocol", {}))
            planners[domain] = Planner(request, preset, protocol, base, changes)
        first = next(iter(planners.values()))
        rows = [
            row if "network" in row.about else find_row({"like": "TENT", "label": row.label, **row.about})
            for row in self.chosen_rows(self.rows, request)
        ]  # own methods have the network, optimizer and learning rates of TENT
        seeds, cells, others = request.seeds or self.seeds, [], dict[str, Unit]()
        about = {key: self.facts.get(key, default) for key, default in DECLARED.items()}
        about["domains"] = {name: first.preset[name] for name in ("source", "validation")}
        for seed, (domain, planner), row in product(seeds, planners.items(), rows):
            name = f"{row.label}, {domain}"
            unit = planner.adapting("adapt", name, {"row": row}, seed, planner.target)
            cells.append(Cell(row.label, domain, seed, unit))
        for domain, planner in planners.items():
            about["domains"] |= {domain: planner.target | planner.changes.get("protocol", {})}
            for row in rows:
                rate, known = planner.rate(row), {unit.address for unit in others.values()}
                if rate is not None and rate.address not in known:
                    others[f"rate of {row.label}{f', {domain}' * (planner is not first)}"] = rate
        if drawn := self._drawn(rows):
            others["pictures"] = first.adapting("draw", "pictures", drawn, seeds[0], first.target)
            about["drawn"] = {role: row.label for role, row in drawn.items()}
        return first.plan(rows, cells, others, **about)

    def tables(self, run: Run) -> Sequence[Table]:
        return study_tables(run)

    def page(self, run: Run) -> Page:
        from testtime.experiments.multitask.pages import study_page

        return study_page(run)

    def _controls(self, row: Row, rows: Sequence[Row]) -> list[Row]:
        """The rows that only estimate the statistics of a row's network."""
        return [r for r in rows if only_statistics(r) and r.about["network"] == row.about["network"]]

    def _drawn(self, rows: Sequence[Row]) -> dict[str, Row]:
        """The row that is drawn, S4T or the last method that needs no source, and the control on its network."""
        able = {row.label: row for row in rows if row.role == "method" and not row.about["prepare"]}
        if not able:
            return {}
        drawn = able.get("S4T", [*able.values()][-1])
        controls = self._controls(drawn, rows)
        return {"row": drawn, **({"control": controls[0]} if controls else {})}


STUDIES = {name: Study(name) for name, facts in CONSTANTS["experiments"].items() if "rows" in facts}
