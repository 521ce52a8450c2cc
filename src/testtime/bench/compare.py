"""Several runs side by side: every method on every stream, what does not beat the source model, and what a simpler one does."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from typing import Any, final

from testtime.bench.page import (
    deviation,
    document,
    figure,
    first_of,
    listed,
    mean,
    number,
    show,
    table,
    write_page,
)
from testtime.bench.report import Run, read_run
from testtime.bench.svg import Point, dot_chart

__all__ = ["Comparison", "Setting", "compare", "comparison_figures", "comparison_text", "write_comparison"]

MARGIN = 0.5  # points of error that a dearer method has to be better to be worth it
SOURCE = "Source"
FEWER = "* on fewer images of each domain, for its cost."


@final
@dataclass(frozen=True)
class Setting:
    """A stream of the comparison: a column of a run."""

    name: str
    run: Run
    column: str

    @property
    def known(self) -> bool:
        """Whether the stream holds known images alone."""
        columns = {c["name"]: c["open_set"] for c in self.run.about["columns"]}
        return columns[self.column] is None


@final
@dataclass(frozen=True)
class Comparison:
    """Methods and streams.

    Attributes:
        settings: the streams.
        rows: methods that were run on one of them at least, those furthest below the source model in mean error first (where
            there is none, of the least error); those without all streams last.
    """

    settings: tuple[Setting, ...]
    rows: tuple[str, ...]

    def values(self, row: str, at: Setting, measure: str = "error") -> list[float]:
        """A measure of the metrics in a stream, one value for each seed; empty where it was not run."""
        return at.run.values(row, at.column, measure)

    def error(self, row: str, at: Setting) -> float:
        """In percent of the known images, the mean over domains and seeds; NaN where it was not run."""
        return mean(self.values(row, at))

    def gap(self, row: str, other: str, at: Setting) -> float:
        """By how many points the error of a method is above another's, over the seeds that both have; NaN if there are none."""
        ours, theirs = (
            {cell["seed"]: number(cell["average"]["error"]) for cell in at.run.cells(name, at.column)}
            for name in (row, other)
        )
        return mean([ours[seed] - theirs[seed] for seed in ours.keys() & theirs.keys()])

    def forgetting(self, row: str, at: Setting) -> float:
        """Points of accuracy on clean images that were lost from before the stream to after it."""
        cells = at.run.cells(row, at.column)
        return mean([number(c["forgetting"]["before"]) - number(c["forgetting"]["after"]) for c in cells])

    def cost(self, row: str) -> float:
        """What a step is declared to take: forwards, and two for each backward."""
        for at in self.settings:
            for cell in at.run.cells(row, at.column):
                forwards, backwards = cell["cost"]["declared"]
                return float(forwards) + 2 * float(backwards)
        return math.nan

    def time(self, row: str) -> float:
        """Of a batch, in plain predictions of it, the median over streams and seeds."""
        times = [at.run.relative(c) for at in self.settings for c in at.run.cells(row, at.column)]
        known = sorted(time for time in times if not math.isnan(time))
        return known[len(known) // 2] if known else math.nan

    def images(self, row: str, at: Setting) -> int:
        """Known images that were answered."""
        return sum(int(c["images"]) for c in at.run.cells(row, at.column)[:1])

    def marked(self, row: str) -> str:
        """The method's name, with a star where it saw fewer images of a stream than another method."""
        for at in self.settings:
            if 0 < self.images(row, at) < max(self.images(other, at) for other in self.rows):
                return f"{row}*"
        return row

    def worse_than_source(self) -> dict[str, list[str]]:
        """By method, the streams on which its error is not below the source model's."""
        found: dict[str, list[str]] = {}
        for row in self.rows:
            for at in self.settings:
                if row != SOURCE and self.gap(row, SOURCE, at) >= 0:
                    found.setdefault(row, []).append(at.name)
        return found

    def without_benefit(self) -> dict[str, str]:
        """The methods that one method of lower cost equals on every stream they were run on, within half a point of error.

        Returns:
            by method, the cheapest such; what either must learn before the stream is not counted.
        """
        found = {}
        for row in self.rows:
            tried = [at for at in self.settings if not math.isnan(self.error(row, at))]
            equals = [
                other
                for other in self.rows
                if self.cost(other) < self.cost(row)
                and all(self.gap(other, row, at) <= MARGIN for at in tried)
            ]
            if tried and equals:
                found[row] = min(equals, key=self.cost)
        return found


RUN = {
    "protocol": str,
    "rows": [{"label": str}],
    "columns": [{"name": str, "open_set": (str, type(None))}],
}
RESULT = {
    "column": str,
    "seed": int,
    "images": int,
    "average": dict.fromkeys(("accuracy", "error"), (float, type(None))),
    "forgetting": dict.fromkeys(("before", "after"), (float, type(None))),
    "cost": {"declared": [float]},
}


def compare(folders: Sequence[str | Path]) -> Comparison:
    """Read the runs of several folders: each stream with a known set alone, or with unknown images, is a column.

    Streams of one protocol are told apart by their columns and folders.

    Raises:
        ValueError: one is not the folder of a run, nothing is finished there, or it is named twice.
    """
    settings = []
    places = [Path(folder).resolve() for folder in folders]
    if len(set(places)) < len(places):
        raise ValueError(f"expected each run once, got {', '.join(map(str, folders))}")
    for folder in folders:
        run = read_run(folder)
        run.check(RUN, RESULT)
        opened = {c["name"]: c["open_set"] for c in run.about["columns"]}
        short = str(run.about["protocol"]).removeprefix("field-")
        for column in run.columns:
            name = short if opened[column] is None else f"{short}, open"
            settings.append(Setting(name, run, column))
    alike = Counter(at.name for at in settings)
    settings = [
        replace(at, name=f"{at.name} ({at.column}, {at.run.folder})") if alike[at.name] > 1 else at
        for at in settings
    ]
    names = list(dict.fromkeys(row for at in settings for row in at.run.rows))
    whole = Comparison(tuple(settings), tuple(names))

    def key(row: str) -> tuple[int, float]:
        errors = [whole.gap(row, SOURCE, at) if SOURCE in names else whole.error(row, at) for at in settings]
        return sum(math.isnan(e) for e in errors), mean(errors)

    return Comparison(tuple(settings), tuple(sorted(names, key=key)))


def comparison_text(found: Comparison) -> str:
    """Tables in Markdown: error on every stream with its cost, then calibration, forgetting, and what is not worth it."""
    names = [at.name for at in found.settings]
    unfinished = _unfinished(found)
    lines = [f"Not finished: {listed(unfinished)}.", ""] if unfinished else []
    lines += _markdown(
        ["error in %", *names, "forwards", "backwards", "time"],
        [
            [
                found.marked(row),
                *(_spread(found.values(row, at)) for at in found.settings),
                *(_declared(found, row)),
                show(found.time(row)),
            ]
            for row in found.rows
        ],
    )
    lines += [
        "",
        "Expected calibration error in %, and the points of accuracy on clean images lost by the end of the stream:",
        "",
    ]
    lines += _markdown(
        ["", *(f"ECE {name}" for name in names), *(f"lost {name}" for name in names)],
        [
            [
                found.marked(row),
                *(_spread(found.values(row, at, "ece")) for at in found.settings),
                *(show(found.forgetting(row, at)) for at in found.settings),
            ]
            for row in found.rows
        ],
    )
    if not all(at.known for at in found.settings):
        opened = [at for at in found.settings if not at.known]
        lines += ["", "Known and unknown told apart (AUROC), and H, in %:", ""]
        lines += _markdown(
            ["", *(f"{m} {at.name}" for at in opened for m in ("AUROC", "H"))],
            [
                [
                    found.marked(row),
                    *(_spread(found.values(row, at, m)) for at in opened for m in ("auroc", "h_score")),
                ]
                for row in found.rows
            ],
        )
    return "\n".join([*lines, "", *_findings(found)])


def comparison_figures(found: Comparison) -> dict[str, Any]:
    """The same for programs: by stream and method, a value for each seed, and what was run by which command."""
    streams = {}
    for at in found.settings:
        cells = {
            row: {
                "error": _known(found.values(row, at)),
                "ece": _known(found.values(row, at, "ece")),
                "auroc": _known(found.values(row, at, "auroc")),
                "lost": _known([found.forgetting(row, at)])[0],
                "images": found.images(row, at),
                "relative time": _known([at.run.relative(c) for c in at.run.cells(row, at.column)]),
                "cell": [c["folder"].name for c in at.run.cells(row, at.column)],
            }
            for row in at.run.rows
            if at.run.cells(row, at.column)
        }
        about = {
            k: at.run.about[k]
            for k in ("protocol", "model", "closed", "order", "limit", "versions", "machine")
        }
        streams[at.name] = {**about, "methods": cells}
    return streams


def _known(values: Sequence[float]) -> list[float | None]:
    """The values, None for NaN, which JSON does not have."""
    return [None if math.isnan(v) else v for v in values]


def _findings(found: Comparison) -> list[str]:
    lines = []
    if any(found.marked(row) != row for row in found.rows):
        lines.append(f"\\{FEWER}")
    bad = found.worse_than_source()
    lines += ["", "Not better than the source model:", ""]
    lines += [f"- {row}: {'; '.join(streams)}" for row, streams in bad.items()] or ["- none"]
    idle = found.without_benefit()
    lines += [
        "",
        f"No benefit over a cheaper one, which is as good or better on every stream tried (within {MARGIN:g} point of error):",
        "",
    ]
    lines += [f"- {row}: {other}" for row, other in idle.items()] or ["- none"]
    return lines


def write_comparison(found: Comparison, path: str | Path) -> Path:
    """Write a page: the errors as dots, one line for each method, and the tables."""
    colours = {at.name: i % 6 + 1 for i, at in enumerate(found.settings)}
    points = [
        Point(found.marked(row), found.error(row, at), i, deviation(found.values(row, at)), colours[at.name])
        for row in found.rows
        for i, at in enumerate(found.settings)
    ]
    keys = " ".join(f'<span class="c{colours[at.name]}">● {escape(at.name)}</span>' for at in found.settings)
    drawn = dot_chart(points, "Error of every method on every stream", "one line for each method", "error, %")
    names = [at.name for at in found.settings]
    rows = {
        found.marked(row): [*(_spread(found.values(row, at)) for at in found.settings), show(found.time(row))]
        for row in found.rows
    }
    ece = {
        found.marked(row): [_spread(found.values(row, at, "ece")) for at in found.settings]
        for row in found.rows
    }
    errors = _html("Error in %", [*names, "time"], rows)
    if any(row.endswith("*") for row in rows):
        errors += f'<p class="note">{FEWER}</p>'
    bad = "".join(
        f"<li>{escape(row)}: {escape('; '.join(streams))}</li>"
        for row, streams in found.worse_than_source().items()
    )
    idle = "".join(
        f"<li>{escape(row)}: {escape(other)}</li>" for row, other in found.without_benefit().items()
    )
    content = document(
        "Methods and streams",
        f"testtime · {len(found.rows)} methods · {len(found.settings)} streams",
        _lead(found),
        [
            ("error", "Error", "Error", figure(drawn, f'<span class="legend">{keys}</span>') + errors),
            ("ece", "Calibration", "Expected calibration error", _html("ECE in %", names, ece)),
            ("source", "Source", "Not better than the source model", f"<ul>{bad}</ul>" if bad else ""),
            ("idle", "No benefit", "No benefit over a cheaper one", f"<ul>{idle}</ul>" if idle else ""),
        ],
    )
    return write_page(Path(path), content)


def _unfinished(found: Comparison) -> list[str]:
    """The folders of the runs of which not all cells have a result."""
    return list(dict.fromkeys(str(at.run.folder) for at in found.settings if at.run.unfinished))


def _lead(found: Comparison) -> str:
    """The method of the lowest mean error over all streams; none while a run is not finished."""
    unfinished = _unfinished(found)
    if unfinished:
        return f"<strong>Not finished</strong>: {escape(listed(unfinished))}. No method is called the best before."
    # One that was not run on every stream has no mean (NaN).
    errors = {
        row: sum(found.error(row, at) for at in found.settings) / len(found.settings) for row in found.rows
    }
    best = first_of(errors, higher=False)
    if not best:
        return "No method was run on every stream."
    names = listed([f"<strong>{escape(found.marked(row))}</strong>" for row in best])
    return f"Lowest mean error{' (equal in print)' if len(best) > 1 else ''}: {names}, {show(errors[best[0]])} %."


def _declared(found: Comparison, row: str) -> list[str]:
    for at in found.settings:
        for cell in at.run.cells(row, at.column):
            return [f"{value:g}" for value in cell["cost"]["declared"]]
    return ["–", "–"]


def _spread(values: Sequence[float]) -> str:
    """The mean, with the deviation where there are several seeds."""
    told = show(mean(values))
    return f"{told} ± {show(deviation(values))}" if len(values) > 1 else told


def _html(caption: str, names: Sequence[str], rows: Mapping[str, Sequence[str]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in ("method", *names))
    body = [
        f'<tr><th scope="row">{escape(row)}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'
        for row, cells in rows.items()
    ]
    return table(caption, f"<tr>{head}</tr>", body)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    return lines + [f"| {' | '.join(row)} |" for row in rows]
