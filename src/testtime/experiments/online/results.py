"""The results of a run, as its tables and pages read them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import median
from types import NoneType
from typing import Any

from testtime.errors import check_name
from testtime.experiments import Record, Run
from testtime.experiments.online import listing
from testtime.experiments.online.cell import plain_milliseconds
from testtime.experiments.run import AGAIN
from testtime.files import check_shape, damaged
from testtime.report import listed, mean
from testtime.streams.named import ORDERS

__all__ = ["Results", "number", "remark_on_steps"]

COLUMN = {"name": str, "open_set": (str, NoneType), "batch_size": int, "ratio": float, "note": str}
ABOUT = {  # what the pages need of a plan
    **{"closed": str, "model": str, "left_out": [str], "latency": {str: float}, "columns": [COLUMN]},
    "published": {str: {str: [(float, NoneType)]}},
    "stream": {"order": str, "corruptions": [str], "rounds": int, "severity": int},
}


WITHOUT = "its values are those of the model without learning"


def number(value: float | None) -> float:
    """Return a number; NaN where there is none."""
    return math.nan if value is None else float(value)


def _cell(record: Record) -> dict[str, Any]:
    forwards, backwards = record.result["cost"]["declared"]
    cost = {**record.result["cost"], "declared": [forwards, backwards]}
    return {**record.result, "cost": cost, "seed": record.seed}


def remark_on_steps(row: str, cells: Iterable[Mapping[str, Any]]) -> str:
    """Return the remark on a row whose steps failed or moved nothing; empty where they count, or it is not known.

    Args:
        row: label of the row.
        cells: results of the row.
    """
    known = [cell for cell in cells if "steps" in cell]  # results of earlier versions have none
    steps = [cell["steps"] for cell in known]
    batches, failed, updated = (sum(one[key] for one in steps) for key in ("batches", "failed", "updated"))
    if failed:
        values = listed(sorted({name for one in steps for name in one["not_finite"]}))
        message = f"{row}: {failed} of {batches} steps failed ({values} not finite) and were taken back"
        return f"{message}; {WITHOUT}." if failed == batches else f"{message}."
    learns = any(cell["cost"]["declared"][1] > 0 for cell in known)
    return f"{row}: none of {batches} steps moved a parameter; {WITHOUT}." if learns and not updated else ""


class Results:
    """The results of a run by row and column.

    Args:
        run: the run.

    Raises:
        ValueError: no cell is finished.
        DataError: the plan or a result is damaged.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.about = run, run.about["about"]
        self._cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
        with damaged(run.folder / "run.json", AGAIN):
            check_shape(self.about, ABOUT, "about")
            self.stream = self.about["stream"]
            check_name("order", self.stream["order"], ORDERS)
            for cell in run.about["cells"]:
                check_name("column", cell["column"], [column["name"] for column in self.about["columns"]])
        for r in run.records(_cell):
            self._cells.setdefault((r.row, r.column), []).append(r.result)
        if not self._cells:
            advice = "the same testtime run command goes on from there"
            raise ValueError(f"{run.folder}: no cell is finished yet; {advice}")
        labels, names = map(set, zip(*self._cells, strict=True))
        self.rows = [row.label for row in run.rows if row.label in labels]
        self.facts = {c["name"]: c for c in self.about["columns"] if c["name"] in names}
        others = [run.other(name) for name in run.about["others"] if name.startswith("baseline")]
        self.baselines = [one for other in others if other for one in other["baselines"]]

    @property
    def columns(self) -> list[str]:
        """The names of the columns with results."""
        return list(self.facts)

    def cells(self, row: str, column: str | None = None) -> list[dict[str, Any]]:
        """Return the results of a row in a column, one for each seed; those of all columns without one."""
        names = self.columns if column is None else [column]
        return [cell for name in names for cell in self._cells.get((row, name), [])]

    def values(self, row: str, column: str | None, measure: str) -> list[float]:
        """Return a measure averaged over domains, one value for each seed; NaN where it is not defined."""
        return [number(cell["average"].get(measure)) for cell in self.cells(row, column)]

    def mean(self, row: str, measure: str, column: str | None = None) -> float:
        """Return the mean of a measure over the seeds of a column, or of all."""
        return mean(self.values(row, column, measure))

    def cost(self, row: str, key: str) -> float:
        """Return the median of a cost over columns and seeds."""
        return median(number(cell["cost"].get(key)) for cell in self.cells(row))

    @property
    def opened(self) -> bool:
        """Whether there are unknown images, so that the H-score ranks and not the accuracy."""
        return not all(math.isnan(self.mean(row, "h_score")) for row in self.rows)

    @property
    def headline(self) -> tuple[str, str]:
        """The measure that ranks, and its name."""
        return ("h_score", "H-score") if self.opened else ("accuracy", "accuracy")

    @property
    def ranked(self) -> list[str]:
        """The rows, the best first."""
        values = {row: self.mean(row, self.headline[0]) for row in self.rows}
        return sorted(self.rows, key=lambda row: (math.isnan(values[row]), -values[row]))

    def times(self, row: str, column: str | None = None) -> list[float]:
        """Return the times of a batch in plain forwards; NaN where none was measured in the state of the machine."""
        found = []
        for name in self.columns if column is None else [column]:
            for cell in self.cells(row, name):
                state, cost = cell.get("state", {}), cell["cost"]
                plain = plain_milliseconds(self.baselines, state, self.facts[name]["batch_size"])
                # An earlier version measured a plain forward in every cell.
                found.append(number(cost.get("relative", number(cost["ms"]) / plain)))
        return found

    def per_domain(self, row: str) -> float:
        """Return the number of known images of a domain, the mean over columns and seeds."""
        return mean([cell["images"] / len(cell["domains"]) for cell in self.cells(row)])

    def fewer(self, row: str) -> bool:
        """Return whether a method saw fewer images of a domain than another."""
        return self.per_domain(row) < max(self.per_domain(other) for other in self.rows)

    def remark(self, row: str, fewer: str) -> str:
        """Return the remark on a row: ``fewer`` where it saw fewer images, and on its steps; empty for none."""
        return " ".join(filter(None, (fewer * self.fewer(row), remark_on_steps(row, self.cells(row)))))

    @property
    def changes(self) -> list[str]:
        """In what the run differs from the experiment of its name, as text."""
        entry, request = listing.entries().get(self.run.about["experiment"]), self.run.request
        if entry is None:
            return []
        ours, kinds = {**self.stream, "limit": self.about["limit"]}, len(entry["corruptions"])
        seeds = (", ".join(map(str, of)) for of in (request.seeds or (), entry["seeds"]))
        facts = [
            *(
                (f"{key} {{}} instead of {{}}", ours[key], entry[key])
                for key in ("order", "severity", "rounds")
            ),
            ("limit {} instead of {}", ours["limit"] or "all", entry["limit"] or "all"),
            ("{} of {} corruptions", min(len(ours["corruptions"]), kinds), kinds),
            ("seeds {} instead of {}", *seeds),
        ]
        found = [form.format(here, there) for form, here, there in facts if here != there]
        labels, known = {row.label for row in self.run.rows}, listing.rows(entry)
        if missing := [label for label in known if label not in labels]:
            several = f"{len(labels)} of {len(known)} methods"
            found.append(f"without {listed(missing)}" if len(missing) < 6 else several)
        forms = {"name": "{}", "batch_size": "batches of {}", "ratio": "{:g} unknown for each known"}
        for key, form in forms.items():
            here, there = (
                dict.fromkeys(form.format(c[key]) for c in of["columns"]) for of in (self.about, entry)
            )
            if [*here] != [*there]:
                return [*found, f"{listed([*here])} instead of {listed([*there])}"]
        return found

    @property
    def title(self) -> str:
        """The title of the experiment, if the run is that experiment in all but the number of images and seeds."""
        other = [change for change in self.changes if not change.startswith(("limit ", "seeds "))]
        return f"{self.run.about['experiment']}, changed" if other else str(self.run.about["title"])
