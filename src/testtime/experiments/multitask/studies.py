"""The tables of the S4T paper: rows on shifted domains, each beside a control that only estimates its BatchNorm statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, final

from testtime.experiments.experiment import Cell, Plan
from testtime.experiments.multitask.listing import read_constants
from testtime.experiments.multitask.planning import MultitaskExperiment, Planner
from testtime.experiments.multitask.results import only_statistics, study_tables
from testtime.experiments.request import Request
from testtime.experiments.run import Run
from testtime.experiments.table import Row, Table
from testtime.multitask.protocol import Protocol

if TYPE_CHECKING:
    from testtime.report import Page

__all__ = ["STUDIES", "Study", "find_row", "study"]

CONSTANTS = read_constants("experiments")
DEFAULTS: dict[str, Any] = {
    **{"role": "method", "rates": [0.0], "optimizer": "adam", "options": {}, "norm": "running"},
    **{"arguments": {}, "network": {}, "prepare": False, "misplaced": False},
}


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
    """A table of rows on shifted domains, from its name in ``experiments.toml``."""

    def __init__(self, name: str) -> None:
        facts = CONSTANTS["experiments"][name]
        self.name, self.title, self.source = name, facts["title"], facts.get("source", "")
        self.seeds, self.settings = (
            tuple(facts.get("seeds", (0, 1, 2))),
            {"preset": facts.get("preset", "tiny")},
        )
        self.protocol = Protocol(**{"record_every": 10, **facts.get("protocol", {})})
        self.published, self.sweep = facts.get("published", []), facts.get("sweep", "")
        self.noise = facts.get("noise", [0.0])
        self.rows = [find_row(entry) for entry in facts["rows"]]
        for row in list(self.rows) if facts.get("controls") else ():
            network = row.about["network"]
            if network and not any(only_statistics(r) and r.about["network"] == network for r in self.rows):
                self.rows.append(find_row({"control": row.label}))

    def plan(self, request: Request) -> Plan:
        planner = Planner(request, self.setting(request, "preset"), self.protocol, self.rows[0])
        rows = [
            row if "network" in row.about else find_row({"like": "TENT", "label": row.label, **row.about})
            for row in self.chosen_rows(self.rows, request)
        ]  # own methods have the network, optimizer and learning rates of TENT
        seeds, preset = request.seeds or self.seeds, planner.preset
        target = preset["target"]
        domains = {f"target + noise {s:g}" if s else "target": {**target, "noise": s} for s in self.noise}
        cells = [
            Cell(
                row.label,
                name,
                seed,
                planner.adapting("adapt", f"{row.label}, {name}", {"row": row}, seed, houses),
            )
            for seed in seeds
            for name, houses in domains.items()
            for row in rows
        ]
        chosen = {f"rate of {row.label}": planner.rate(row) for row in rows}
        others = {name: unit for name, unit in chosen.items() if unit is not None}
        about: dict[str, Any] = {"published": self.published, "sweep": self.sweep}
        about["domains"] = {**{name: preset[name] for name in ("source", "validation")}, **domains}
        drawn = _drawn(rows)
        if drawn:
            others["pictures"] = planner.adapting("draw", "pictures", drawn, seeds[0], domains["target"])
            about["drawn"] = {role: row.label for role, row in drawn.items()}
        return planner.plan(rows, cells, others, **about)

    def tables(self, run: Run) -> Sequence[Table]:
        return study_tables(run)

    def page(self, run: Run) -> Page:
        from testtime.experiments.multitask.pages import study_page

        return study_page(run)


def _drawn(rows: Sequence[Row]) -> dict[str, Row]:
    """The row whose pictures are drawn, S4T or the last method that needs no source, and the control on its network."""
    able = [row for row in rows if row.role == "method" and not row.about["prepare"]]
    if not able:
        return {}
    drawn = next((row for row in able if row.label == "S4T"), able[-1])
    controls = [
        row for row in rows if only_statistics(row) and row.about["network"] == drawn.about["network"]
    ]
    return {"row": drawn, **({"control": controls[0]} if controls else {})}


STUDIES = {name: Study(name) for name, facts in CONSTANTS["experiments"].items() if "rows" in facts}


def study(name: str) -> Study:
    """Return a table by its name."""
    return STUDIES[name]
