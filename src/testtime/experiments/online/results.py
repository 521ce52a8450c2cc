"""The results of a run, as tables and pages read them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median
from typing import Any

from testtime.experiments.online import listing
from testtime.experiments.online.baseline import plain_milliseconds
from testtime.experiments.online.experiment import STREAM
from testtime.experiments.run import Run
from testtime.files import check_shape, damaged
from testtime.report import listed, mean, number

__all__ = ["Results"]

NUMBER = (float, type(None))
RESULT = {  # what the pages need of a result
    "average": dict.fromkeys(("accuracy", "error", "auroc", "h_score"), NUMBER),
    "domains": [{"domain": str}],
    "time": {**{key: [NUMBER] for key in ("accuracy", "auroc", "h_score")}, "visit": [int]},
    "filters": {"all": dict, "time": dict},
    "forgetting": {"before": NUMBER, "after": NUMBER},
    "cost": {"declared": [float], "forwards": NUMBER, "backwards": NUMBER, "ms": NUMBER},
    "images": int,
}


class Results:
    """The results of a run by row and column.

    Args:
        run: the run.

    Raises:
        ValueError: no cell is finished.
        DataError: a result has another shape than that of this family.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.about = run, run.about["about"]
        with damaged(run.folder / "results", "delete the run and give the same command again"):
            for record in run.records():
                check_shape(record.result, RESULT, f"{record.row}, {record.column}, seed {record.seed}")
        self._cells: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for record in run.records():
            self._cells.setdefault((record.row, record.column), []).append(
                {**record.result, "seed": record.seed}
            )
        if not self._cells:
            raise ValueError(
                f"{run.folder}: no cell is finished yet; the same testtime run command goes on from there"
            )
        self.rows = [row.label for row in run.rows if any(row.label == r for r, _ in self._cells)]
        self.about_columns = {c["name"]: c for c in self.about["columns"]}
        self.columns = [name for name in self.about_columns if any(name == c for _, c in self._cells)]
        others = [run.other(name) for name in run.about["others"] if name.startswith("baseline")]
        self.baselines = [one for other in others if other for one in other["baselines"]]

    def cells(self, row: str, column: str | None = None) -> list[dict[str, Any]]:
        """Return the results of a row in a column, one for each seed; those of all columns without one."""
        return [
            r for c in (self.columns if column is None else [column]) for r in self._cells.get((row, c), [])
        ]

    def values(self, row: str, column: str, measure: str) -> list[float]:
        """Return a measure averaged over domains, one value for each seed; NaN where it is not defined."""
        return [number(cell["average"][measure]) for cell in self.cells(row, column)]

    def mean(self, row: str, measure: str) -> float:
        """Return the mean of a measure over columns and seeds."""
        return mean([value for column in self.columns for value in self.values(row, column, measure)])

    def cost(self, row: str, key: str) -> float:
        """Return the median of a cost over columns and seeds."""
        return median(number(cell["cost"].get(key)) for cell in self.cells(row))

    @property
    def opened(self) -> bool:
        """Whether there are unknown images, so that the H-score ranks and not the accuracy."""
        return not all(math.isnan(self.mean(row, "h_score")) for row in self.rows)

    @property
    def headline(self) -> str:
        """The measure that ranks: "h_score", or "accuracy" without unknown images."""
        return "h_score" if self.opened else "accuracy"

    @property
    def ranked(self) -> list[str]:
        """The rows, the best first."""
        return sorted(self.rows, key=lambda row: -number(self.mean(row, self.headline), -1.0))

    def times(self, row: str) -> list[float]:
        """Return the times of a batch in plain forwards, column by column; NaN where none was measured on that machine."""
        return [self.relative(cell, column) for column in self.columns for cell in self.cells(row, column)]

    def relative(self, cell: dict[str, Any], column: str) -> float:
        """Return the time of a batch of a cell in plain forwards."""
        if "relative" in cell["cost"]:  # an earlier version measured a plain forward in every cell
            return number(cell["cost"]["relative"])
        size = self.about_columns[column]["batch_size"]
        return number(cell["cost"]["ms"]) / plain_milliseconds(self.baselines, cell.get("state", {}), size)

    def per_domain(self, row: str) -> float:
        """Return the number of known images of a domain, the mean over columns and seeds."""
        return mean([cell["images"] / len(cell["domains"]) for cell in self.cells(row)])

    def fewer(self, row: str) -> bool:
        """Return whether a method saw fewer images of a domain than another."""
        return self.per_domain(row) < max(self.per_domain(other) for other in self.rows)

    @property
    def changes(self) -> list[str]:
        """In what the run differs from the experiment of its name, as text."""
        entry = listing.entries().get(self.run.about["experiment"])
        if entry is None:
            return []
        found, stream = [], self.about["stream"]
        for name in ("order", "severity", "rounds", "limit"):
            ours = self.about["limit"] if name == "limit" else stream[name]
            theirs = entry.get(name, STREAM.get(name))
            if ours != theirs:
                found.append(
                    f"{name} {'all' if ours is None else ours} instead of {'all' if theirs is None else theirs}"
                )
        kinds, whole = len(stream["corruptions"]), len(entry.get("corruptions", STREAM["corruptions"]))
        if kinds < whole:
            found.append(f"{kinds} of {whole} corruptions")
        seeds = [list(map(str, s)) for s in (self.run.request.seeds or (), entry.get("seeds", (0,)))]
        if seeds[0] != seeds[1]:
            found.append(f"seeds {', '.join(seeds[0])} instead of {', '.join(seeds[1])}")
        labels, known = {row.label for row in self.run.rows}, listing.rows(entry)
        if missing := [label for label in known if label not in labels]:
            several = f"{len(labels)} of {len(known)} methods"
            found.append(f"without {listed(missing)}" if len(missing) < 6 else several)
        return found + self._changed_columns(entry["columns"])

    def _changed_columns(self, theirs: Sequence[dict[str, Any]]) -> list[str]:
        for key, form, default in (
            ("name", "{}", ""),
            ("batch_size", "batches of {}", 200),
            ("ratio", "{:g} unknown for each known", 1.0),
        ):
            a, b = [
                list(dict.fromkeys(form.format(c.get(key, default)) for c in columns))
                for columns in (self.about["columns"], theirs)
            ]
            if a != b:
                return [f"{listed(a)} instead of {listed(b)}"]
        return []

    @property
    def title(self) -> str:
        """The title of the experiment, if the run is that experiment in all but the number of images and seeds."""
        other = [change for change in self.changes if not change.startswith(("limit ", "seeds "))]
        about = self.run.about
        return f"{about['experiment']}, changed" if other else str(about["title"])
