"""Write docs/papers.md: every table, figure and claim of three papers, the command that makes it, and what it shows here.

    python scripts/papers_page.py [--check]

``scripts/papers/*.toml`` declare the items; no figure of this project is typed there. An item has

    item, shows       its name in the paper, and what it shows there
    published         figures of the paper
    run               name of the experiment; ``set`` holds further words of its command, and ``command`` stands in its place
    protocol          name of the experiment with the published data and model, if that is another
    results           folder of a finished run below results/; until it is there, the item is "not run yet"
    reason            what stands in for what, and what decides
    figures           files below docs/images/ and the numbers of the figures of the run that are drawn there
    compare           comparisons in the paper's direction, the headline first; without any, ``verdict`` is declared

A comparison has ``rows`` (labels) and ``of`` (columns of table ``table``, 1 unless given and 0 for the last; with
``path``, keys to a value of the results, columns of the experiment), and one of

    over = [labels]       the rows less each of these; over = "best" less the best other method
    over_of = [columns]   the rows less the same, or the rows ``over``, in these columns
    above = run           the least of the rows less the best method of another run below results/, without ``but`` = [labels]
    diagonal = true       row i in column i less the mean of the other cells
    most = number         this bound less the range over the rows
    within = share        this bound less the relative loss from the first column to each of the others
    correlates = column   rank correlation with this column over the methods

``allow`` is added to the differences: what may be lost. They are positive where they agree with the paper, also where
less is better; ``lower = true`` says so where the table does not.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from generated_pages import write_or_check

from testtime.experiments import Column, Run, Table, find_experiment, read_run
from testtime.report import write_chart
from testtime.report.words import deviation, mean, show, signed

__all__ = ["Difference", "compared", "items", "pages", "verdict"]

ROOT = Path(__file__).resolve().parents[1]
ITEMS = Path(__file__).parent / "papers"
SEEDS = 3  # of a claim
SHOWN = 5  # comparisons in a cell
VERDICTS = {
    "reproduced": f"every comparison agrees with the paper on each of at least {SEEDS} seeds",
    "same shape": "the first comparison, the headline, agrees by more than its standard error, and so do at least half of all",
    "not at this size": "there is no difference, or one that changes from seed to seed or comparison to comparison",
    "contradicted": f"the headline does not agree on any of at least {SEEDS} seeds",
    "not run yet": "no finished run is committed",
    "needs data": "data, weights or hardware are not at hand; the reason names them",
    "drawn": "a diagram or pictures, without figures to compare",
}
DECLARED = ("not run yet", "needs data", "drawn")
KEYS = {
    "item",
    "shows",
    "published",
    "run",
    "set",
    "command",
    "protocol",
    "results",
    "reason",
    "compare",
    "verdict",
}
KEYS |= {"figures"}
INTRO = """# The three papers

Every table, figure and claim of PAF + KIP, S4T and TST-MM: the command that makes it here, what it shows here, what the paper
prints, and whether the two agree. `python scripts/papers_page.py` writes this page from `scripts/papers/*.toml` and the runs in
`results/`; verdicts follow from rules and change with the results. Here, the data and networks are small stand-ins: orders and
signs are compared, not sizes. A difference is positive where it agrees with the paper; ± is the standard deviation over seeds.
Commands take `--data DIR`, the folder of the public data sets (`.data`).
"""


@dataclass(frozen=True)
class Difference:
    """A comparison: what is compared, in words, and the difference by seed, positive where it agrees with the paper."""

    text: str
    by_seed: Mapping[int, float]
    places: int | None = 1

    @property
    def signs(self) -> list[int]:
        """1 where a seed agrees, -1 where it disagrees, 0 where the two are equal in print."""
        printed = (d if self.places is None else round(d, self.places) for d in self.by_seed.values())
        return [(d > 0) - (d < 0) for d in printed]

    @property
    def agrees(self) -> bool:
        """Whether the mean agrees in print, and by more than its standard error."""
        values = list(self.by_seed.values())
        average = mean(values)
        printed = average if self.places is None else round(average, self.places)
        return printed > 0 and average > deviation(values) / len(values) ** 0.5

    def __str__(self) -> str:
        values = list(self.by_seed.values())
        places = 3 if self.places is None else self.places
        spread = f" ±{show(deviation(values), places)}, {self.signs.count(1)} of {len(values)} seeds"
        return f"{self.text}: {signed(mean(values), places)}{spread * (len(values) > 1)}"


def verdict(found: Sequence[Difference]) -> str:
    """Return the verdict on comparisons, the headline first."""
    headline, seeds = found[0], min(len(one.by_seed) for one in found)
    if seeds >= SEEDS and all(sign > 0 for one in found for sign in one.signs):
        return "reproduced"
    if headline.agrees and 2 * sum(one.agrees for one in found) >= len(found):
        return "same shape"
    if len(headline.by_seed) >= SEEDS and not any(sign > 0 for sign in headline.signs):
        return "contradicted"
    return "not at this size"


def compared(tables: Sequence[Table], run: Run | None, facts: Mapping[str, Any]) -> list[Difference]:
    """Return the differences of a comparison; those without a common seed or column are left out.

    Args:
        tables: tables of the experiment.
        run: run, for comparisons with a path.
        facts: comparison as the items declare it.
    """
    keys = [
        *facts["of"],
        *facts.get("over_of", ()),
        *([facts["correlates"]] if "correlates" in facts else []),
    ]
    if run is not None and "path" in facts:
        columns = [Column(key, tuple(facts["path"]), key, places=facts.get("places", 1)) for key in keys]
        table = Table.of("", run.rows, columns, run.records())
    else:
        table = tables[facts.get("table", 1) - 1]
    if facts.get("lower"):
        columns = [replace(c, better="lower") if c.key in keys else c for c in table.columns]
        table = replace(table, columns=columns)
    kind = next(kind for name, kind in KINDS.items() if name in facts)
    found = [one for one in kind(table, facts) if one.by_seed]
    if allow := facts.get("allow"):
        found = [
            replace(
                one,
                text=f"{one.text}, {allow:g} allowed",
                by_seed={s: v + allow for s, v in one.by_seed.items()},
            )
            for one in found
        ]
    return found


def _columns(table: Table, facts: Mapping[str, Any]) -> list[Column]:
    """The columns that a comparison is about; those that the run lacks are left out."""
    known = {column.key for column in table.columns}
    return [table.column(key) for key in facts["of"] if key in known]


def _sign(column: Column) -> int:
    return -1 if column.better == "lower" else 1


def _values(table: Table, rows: Sequence[str], column: Column) -> dict[int, float]:
    """The mean of rows by seed."""
    found = [table.values.get((row, column.key), {}) for row in rows]
    seeds = sorted(set.intersection(*map(set, found)))
    return {seed: mean([one[seed] for one in found]) for seed in seeds}


def _less(ours: Mapping[int, float], theirs: Mapping[int, float], column: Column) -> dict[int, float]:
    return {seed: _sign(column) * (ours[seed] - theirs[seed]) for seed in ours.keys() & theirs.keys()}


def _told(name: str, values: Mapping[int, float], seeds: Iterable[int], column: Column) -> str:
    return f"{name} {show(mean([values[seed] for seed in seeds]), column.places)}".strip()


def _over(table: Table, facts: Mapping[str, Any]) -> Iterator[Difference]:
    for column in _columns(table, facts):
        rows, others = facts["rows"], facts["over"]
        ours = _values(table, rows, column)
        if others == "best":
            kept = [r.label for r in table.rows if r.role in ("method", "base") and r.label not in rows]
            known = [row for row in kept if table.values.get((row, column.key))]
            others = [max(known, key=lambda row: _sign(column) * table.value(row, column))]
        for other in others:
            theirs = _values(table, [other], column)
            less, name = _less(ours, theirs, column), ", ".join(rows)
            told = f"{_told(name, ours, less, column)} against {_told(other, theirs, less, column)}"
            yield Difference(f"{column.key}: {told}", less, column.places)


def _above(table: Table, facts: Mapping[str, Any]) -> Iterator[Difference]:
    other = _read(ROOT / "results" / facts["above"])[1][0]
    kept = [row.label for row in other.rows if row.role == "method" and row.label not in facts["but"]]
    for column in _columns(table, facts):
        rows = [_values(table, [row], column) for row in facts["rows"]]
        pick = max if column.better == "lower" else min
        least = {s: pick(v[s] for v in rows) for s in set.intersection(*map(set, rows))}
        known = [row for row in kept if other.values.get((row, column.key))]
        best = max(known, key=lambda row: _sign(column) * other.value(row, column))
        theirs = _values(other, [best], column)
        less, name = _less(least, theirs, column), f"least of {facts['rows'][0]} to {facts['rows'][-1]}"
        told = f"{_told(name, least, less, column)} against {_told(best, theirs, less, column)}"
        yield Difference(f"{column.key}: {told} ({facts['above']})", less, column.places)


def _over_of(table: Table, facts: Mapping[str, Any]) -> Iterator[Difference]:
    rows, others = facts["rows"], facts.get("over", facts["rows"])
    for column in _columns(table, facts):
        ours = _values(table, rows, column)
        for other in map(table.column, facts["over_of"]):
            theirs = _values(table, others, other)
            less, name = _less(ours, theirs, column), f"{', '.join(others)}, " * (others != rows) + other.key
            told = f"{_told(column.key, ours, less, column)} against {_told(name, theirs, less, other)}"
            yield Difference(f"{', '.join(rows)}: {told}", less, column.places)


def _diagonal(table: Table, facts: Mapping[str, Any]) -> Iterator[Difference]:
    columns = list(_columns(table, facts))
    cells = [
        (i == j, _values(table, [row], c))
        for i, row in enumerate(facts["rows"])
        for j, c in enumerate(columns)
    ]
    seeds = sorted(set.intersection(*(set(values) for _, values in cells)))
    own, other = (
        {s: mean([v[s] for is_own, v in cells if is_own == one]) for s in seeds} for one in (True, False)
    )
    text = f"{_told('own', own, seeds, columns[0])} against {_told('other', other, seeds, columns[0])}"
    yield Difference(text, _less(own, other, columns[0]), columns[0].places)


def _most(table: Table, facts: Mapping[str, Any]) -> Iterator[Difference]:
    for column in _columns(table, facts):
        rows = [_values(table, [row], column) for row in facts["rows"]]
        ranges = {
            s: max(v[s] for v in rows) - min(v[s] for v in rows) for s in set.intersection(*map(set, rows))
        }
        first, last = facts["rows"][0], facts["rows"][-1]
        text = f"{column.key}: range from {first} to {last} {_told('', ranges, ranges, column)}, below {facts['most']:g} by"
        yield Difference(text, {seed: facts["most"] - value for seed, value in ranges.items()}, column.places)


def _within(table: Table, facts: Mapping[str, Any]) -> Iterator[Difference]:
    first, *others = _columns(table, facts)
    for row in facts["rows"]:
        for column in others:
            old, new = (_values(table, [row], c) for c in (first, column))
            lost = {s: -_sign(column) * (new[s] - old[s]) / abs(old[s]) for s in old.keys() & new.keys()}
            text = f"{row}, {column.key}: lost {show(100 * mean(list(lost.values())))} %, below {100 * facts['within']:g} by"
            yield Difference(text, {seed: 100 * (facts["within"] - value) for seed, value in lost.items()})


def _correlates(table: Table, facts: Mapping[str, Any]) -> Iterator[Difference]:
    other = table.column(facts["correlates"])
    rows = [row.label for row in table.rows if row.role == "method"]
    for column in _columns(table, facts):
        pairs = [(_values(table, [row], column), _values(table, [row], other)) for row in rows]
        kept = [pair for pair in pairs if all(pair)]
        found = {}
        for seed in sorted(set.intersection(*(a.keys() & b.keys() for a, b in kept))):
            ranks = (np.argsort(np.argsort([pair[i][seed] for pair in kept])) for i in (0, 1))
            found[seed] = _sign(column) * _sign(other) * float(np.corrcoef(*ranks)[0, 1])
        yield Difference(
            f"rank correlation of {column.key} and {other.key} over {len(kept)} methods", found, 2
        )


KINDS: dict[str, Callable[[Table, Mapping[str, Any]], Iterator[Difference]]] = {
    **{"over_of": _over_of, "over": _over, "above": _above, "diagonal": _diagonal, "most": _most},
    "within": _within,
    "correlates": _correlates,
}


def items() -> dict[str, dict[str, Any]]:
    """Return the papers by file name: title, intro and items.

    Raises:
        ValueError: an item has an unknown key, lacks a reason, or has neither comparisons nor a verdict that may be declared.
    """
    found = {
        path.stem: tomllib.loads(path.read_text(encoding="utf-8")) for path in sorted(ITEMS.glob("*.toml"))
    }
    for name, paper in found.items():
        for item in paper["items"]:
            where = f"{name}.toml, {item.get('item', 'an item without a name')}"
            if unknown := item.keys() - KEYS:
                raise ValueError(f"{where}: expected the keys {sorted(KEYS)}, got {sorted(unknown)}")
            if lacking := [key for key in ("item", "shows", "published", "reason") if not item.get(key)]:
                raise ValueError(f"{where}: expected {', '.join(lacking)}")
            if ("compare" in item) == ("verdict" in item) or item.get("verdict", DECLARED[0]) not in DECLARED:
                raise ValueError(
                    f"{where}: expected comparisons, or one of the verdicts {', '.join(DECLARED)}"
                )
    return found


@cache
def _read(folder: Path) -> tuple[Run, Sequence[Table]]:
    """A run and its tables."""
    run = read_run(folder)
    return run, find_experiment(run.about["experiment"]).tables(run)


def _judged(item: Mapping[str, Any]) -> tuple[str, list[str]]:
    """The verdict on an item, and what its run shows."""
    folder = ROOT / "results" / item.get("results", "")
    if "compare" not in item:
        return item["verdict"], []
    if not item.get("results") or not (folder / "run.json").is_file():
        return "not run yet", []
    run, tables = _read(folder)
    found = [one for facts in item["compare"] for one in compared(tables, run, facts)]
    lines = [*map(str, found[:SHOWN])]
    if len(found) > 1:
        lines.append(f"{sum(one.agrees for one in found)} of {len(found)} comparisons agree")
    lines += [f"not finished: {len(run.missing)} cells have no result"] * bool(run.missing)
    lines += ["made with another version of the code"] * bool(run.outdated)
    return (verdict(found) if found else "not run yet"), lines


def command(item: Mapping[str, Any]) -> str:
    """Return the command of an item; empty where there is none."""
    words = " ".join(filter(None, (item.get("run"), item.get("set"))))
    return item.get("command") or (f"testtime run {words}" if words else "")


def _row(item: Mapping[str, Any]) -> tuple[str, str]:
    """The verdict on an item, and its row."""
    judged, lines = _judged(item)
    name = f"**{item['item']}**: {item['shows']}"
    if made := command(item):
        name += f"<br>`{made}`"
    if protocol := item.get("protocol"):
        name += f"<br>published protocol: `testtime run {protocol}`"
    cells = (name, "<br>".join(lines) or "–", item["published"], f"**{judged}**: {item['reason']}")
    return judged, "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def draw() -> None:
    """Draw the figures of the items whose runs are there."""
    for item in (item for paper in items().values() for item in paper["items"] if "figures" in item):
        run = read_run(ROOT / "results" / item["results"])
        charts = find_experiment(run.about["experiment"]).figures(run)
        for name, number in item["figures"].items():
            if chart := charts[number - 1]:
                print(write_chart(ROOT / "docs" / "images" / name, chart))


def pages() -> dict[str, str]:
    """Return the page by its file name."""
    parts, legend = [], [f"- **{name}**: {told};" for name, told in VERDICTS.items()]
    for paper in items().values():
        judged, rows = zip(*map(_row, paper["items"]), strict=True)
        counts = [f"{judged.count(name)} {name}" for name in VERDICTS if name in judged]
        head = ["| item, command | here | published | verdict |", "|---|---|---|---|"]
        parts.append("\n".join([f"## {paper['title']}", "", paper["intro"].strip(), "", *head, *rows]))
        parts[-1] += f"\n\n{len(rows)} items: {', '.join(counts)}."
        for item in paper["items"]:
            parts += [f"![{item['item']}](images/{name})" for name in item.get("figures", ())]
    legend[-1] = legend[-1].removesuffix(";") + "."
    return {"papers.md": "\n\n".join([INTRO + "\n" + "\n".join(legend), *parts]) + "\n"}


if __name__ == "__main__":
    changed = write_or_check(ROOT / "docs", pages(), __doc__)
    if "--check" not in sys.argv:
        draw()
    raise SystemExit(changed)
