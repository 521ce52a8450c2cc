"""The report of a study: one page of HTML that needs nothing else, with table, curves, synchrony and pictures."""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from testtime.bench.page import (
    definitions,
    deviation,
    document,
    figure,
    first_of,
    legend,
    listed,
    mean,
    show,
    table,
    write_page,
)
from testtime.bench.svg import Point, Series, line_chart, scatter
from testtime.files import read_json
from testtime.multitask import published
from testtime.multitask.results import TASKS, Column, Outcome, Results, columns, read_results

__all__ = ["page", "write_report"]

COLOURS = 6
STYLE = """
.pair,.three{display:grid;gap:.4rem 1.6rem;grid-template-columns:repeat(auto-fit,minmax(min(26rem,100%),1fr))}
.three{grid-template-columns:repeat(auto-fit,minmax(min(19rem,100%),1fr))}
.pair figure,.three figure{margin:.6rem 0}.pair figure .scroll svg,.three figure .scroll svg{min-width:19rem}
.legend{margin-bottom:.8rem}
.sheet{width:100%;max-width:58rem;height:auto;display:block}
td.headline{background:var(--soft)}td.quiet{color:var(--dim)}
thead th .dim{display:block}
tr.control th[scope=row]{font-style:italic}
"""


SYNCHRONY = ("SV", "DTW", "CS")
"""The columns that figure 3 is of."""


def write_report(folder: str | Path, path: str | Path | None = None) -> Path:
    """Write the report of a study.

    Args:
        folder: of the study's results.
        path: of the page; None is ``report.html`` in the folder.

    Returns:
        the path of the page.

    Raises:
        ValueError: the folder is not that of a study, or the base row has no cell.
    """
    results = read_results(folder)
    return write_page(Path(path) if path is not None else results.folder / "report.html", page(results))


def page(results: Results) -> str:
    """The whole page."""
    colours = highlights(results)
    about = results.about
    return document(
        about["title"],
        f"testtime multitask · {about['study']} · {about['preset']}",
        _lead(results),
        [
            ("result", "Result", "The result", _tables(results)),
            ("steps", "Steps", "Step by step", _curves(results, colours)),
            ("synchrony", "Synchrony", "Do the tasks move together?", _synchrony(results, colours)),
            ("cost", "Cost", "What it costs", _costs(results)),
            ("domains", "Domains", "Over the domains", _domains(results, colours)),
            ("sweep", "Sweep", "Over the settings", _sweep(results)),
            ("pictures", "Pictures", "What it looks like", _pictures(results)),
            ("rates", "Rates", "How the learning rates were chosen", _rates(results)),
            ("made", "Provenance", "How this was made", _provenance(results)),
        ],
        STYLE,
    )


def highlights(results: Results) -> dict[str, int]:
    """The colours of the lines that stand out: the best that learn, S4T and its control, TENT, the base; the rest is grey."""
    names = results.learners[:2]
    wanted = ["S4T", "S4T's network, BN only", *results.controls[:1], "TENT", results.base, *results.ranked]
    names += [n for n in dict.fromkeys(wanted) if n in results.rows and n not in names]
    return {name: number for number, name in enumerate(names[:COLOURS], 1)}


def _lead(results: Results) -> str:
    if results.missing:
        return (
            f"<strong>This study is not finished</strong>: {len(results.missing)} "
            f"{'cell has' if len(results.missing) == 1 else 'cells have'} no result. No row is called the best before all "
            "have one; the same command continues."
        )
    ranked = [row for row in results.learners or results.ranked if row != results.base]
    if not ranked:
        return "Only the base row is there so far."
    gains = {row: results.mean(row, lambda o: o.last) for row in ranked}
    first = first_of(gains)
    best = first[0]
    step = results.outcomes[0].curve.steps[-1]
    seeds = f"{len(results.seeds)} seed{'s' * (len(results.seeds) > 1)}"
    over = f", {len(results.domains)} domains" if len(results.domains) > 1 else ""
    second = first_of({row: gain for row, gain in gains.items() if row not in first})
    after = f"; next {'are' if len(second) > 1 else 'is'} {escape(listed(second))} with " if second else ""
    after += _gain(results, second[0]) if second else ""
    names = listed([f"<strong>{escape(row)}</strong>" for row in first])
    verb = "share" if len(first) > 1 else "has"
    sentences = [
        f"Of the rows that learn, {names} {verb} the highest Δ<sub>TTT</sub> after step {step}: "
        f"{_gain(results, best)} ({seeds}{over}){after}"
    ]
    whole, part = (results.mean(best, value) for value in (lambda o: o.last, lambda o: o.control))
    if not math.isnan(part):
        explains = (
            f"which explains {100 * max(part, 0.0) / whole:.0f} % of it"
            if whole > max(part, 0.0)
            else "and learning adds nothing to that"
        )
        sentences.append(
            "The control, which learns nothing and only estimates the BatchNorm statistics of the same network again, reaches "
            f"{_signed(part)} %, {explains}"
        )
    beyond = {row: results.mean(row, lambda o: o.beyond) for row in ranked}
    most = first_of(beyond)
    if most and not {*most} & {*first} and round(beyond[most[0]], 1) > 0:
        gain = "gains" if len(most) == 1 else "gain"
        sentences.append(
            f"Over the control on its own network {escape(listed(most))} {gain} most, {_signed(beyond[most[0]])} points"
        )
    oracle = {row: results.mean(row, lambda o: o.oracle) for row in ranked}
    chosen = first_of(oracle)
    if chosen and not {*chosen} & {*first}:
        sentences.append(
            f"With the step chosen by the test labels, {escape(listed(chosen))} would be first "
            f"({_signed(oracle[chosen[0]])} %); nobody has those labels in the field"
        )
    return ". ".join(sentences) + "."


def _tables(results: Results) -> str:
    parts = []
    for place, domain in enumerate(results.domains):
        content = _table(results, _headline(results), domain)
        if len(results.domains) > 1:
            opened = " open" if place == 0 else ""
            content = f"<details{opened}><summary>{escape(domain)}</summary>{content}</details>"
        parts.append(content)
    told = _explained([c for c in _headline(results) if c.head.startswith("Δ")])
    notes = [
        "Mean over seeds, ± their standard deviation; the tasks' metrics at the last step"
        f"{'' if results.missing else '; bold is the best'}. {told} Rows in italics are controls, which learn nothing."
    ]
    if results.missing:
        notes.append(f"Without a result: {escape('; '.join(results.missing))}.")
    return "".join([*parts, f'<p class="note">{" ".join(notes)}</p>', _published(results)])


def _headline(results: Results) -> list[Column]:
    """The columns of the main table: first those that carry the conclusion, then the tasks, then the other Delta_TTT."""
    shown = {c.head: c for c in columns(results) if c.head not in (*SYNCHRONY, "size", "time")}
    return [shown.pop("Δ last"), shown.pop("Δ beyond"), *shown.values()]


def _explained(shown: Sequence[Column]) -> str:
    return " ".join(f"<strong>{c.head}</strong> {escape(c.told)}." for c in shown)


def _table(results: Results, shown: Sequence[Column], domain: str | None = None) -> str:
    best = [c.best(results, domain) for c in shown]
    head = "".join(
        f'<th scope="col"><abbr title="{escape(c.told)}">{c.head}</abbr><span class="dim">{escape(c.unit)}</span></th>'
        for c in shown
    )
    body = []
    for row in results.rows:
        outcomes = results.of(row, domain)
        if not outcomes:
            continue
        cells = []
        for c, first in zip(shown, best, strict=True):
            average, spread = c.text(outcomes)
            classes = ["headline"] if c.head == "Δ last" else ["quiet"] if c.head == "Δ oracle" else []
            if average == first and average != "–":
                classes.append("best")
            style = f' class="{" ".join(classes)}"' if classes else ""
            spread = f'<span class="dim"> {spread}</span>' if spread else ""
            cells.append(f"<td{style}>{average}{spread}</td>")
        kinds = [
            ("first", row == results.ranked[0] and not results.missing),
            ("control", row in results.controls),
        ]
        kind = " ".join(name for name, there in kinds if there)
        body.append(
            f'<tr{f" class={chr(34)}{kind}{chr(34)}" if kind else ""}><th scope="row">{escape(row)}</th>{"".join(cells)}</tr>'
        )
    return table(
        f"{', '.join(c.head for c in shown)} on {domain or 'all domains'}",
        f'<tr><th scope="col">row</th>{head}</tr>',
        body,
    )


def _curves(results: Results, colours: dict[str, int]) -> str:
    parts = [
        '<p class="note">Means over seeds; the band is ± one standard deviation. Step 0 is the network before adaptation. '
        "Press a name to bring its line forward.</p>",
        legend(results.ranked, colours),
    ]
    for place, domain in enumerate(results.domains):
        whole = line_chart(
            _series(results, domain, colours, lambda o: o.gains),
            f"Delta_TTT over the steps, {domain}",
            "; ".join(
                f"{row} {_signed(results.mean(row, lambda o: o.last, domain))}" for row in results.ranked
            ),
            "Δ, %",
            x_unit="step",
        )
        small = []
        for name in results.tasks:
            title, metric = TASKS.get(name, (name, ""))
            higher = results.outcomes[0].curve.higher_is_better[name]
            chart = line_chart(
                _series(results, domain, colours, lambda o, name=name: o.curve.values[name]),  # type: ignore[misc]
                f"{metric} of {title} over the steps, {domain}",
                f"Last values: {_last_values(results, domain, name)}",
                metric,
                width=480,
                height=270,
                x_unit="step",
                named=False,
            )
            better = "higher is better" if higher else "lower is better"
            small.append(
                figure(chart, f'{title.capitalize()} <span class="dim">{escape(metric)}, {better}</span>')
            )
        content = (
            figure(whole, f"Δ<sub>TTT</sub> over the steps · {escape(domain)}")
            + f'<div class="pair">{"".join(small)}</div>'
        )
        if len(results.domains) > 1:
            opened = " open" if place == 0 else ""
            content = f"<details{opened}><summary>{escape(domain)}</summary>{content}</details>"
        parts.append(content)
    return "".join(parts)


def _synchrony(results: Results, colours: dict[str, int]) -> str:
    wanted: list[tuple[str, str, str, Callable[[Outcome], float]]] = [
        ("Step variance", "deviation of the tasks' best steps, in steps", "left", lambda o: o.step_variance),
        ("Dynamic time warping", "distance of the tasks' gains, in %", "left", lambda o: o.warping),
        ("Cosine similarity", "of the tasks' increments of gain", "right", lambda o: o.similarity),
    ]
    charts, shown = [], [c for c in columns(results) if c.head in SYNCHRONY]
    for name, unit, side, value in wanted:
        points = [
            Point(
                row,
                results.mean(row, value),
                results.mean(row, lambda o: o.last),
                deviation(results.by_seed(row, lambda o: o.last)),
                colours.get(row, 0),
            )
            for row in results.rows
            if not math.isnan(results.mean(row, value))
        ]
        chart = scatter(
            points,
            f"{name} against Delta_TTT",
            "; ".join(f"{p.name}: {p.x:.2f}, {_signed(p.y)} %" for p in points),
            unit,
            "Δ, %",
            width=330,
            height=300,
            logarithmic=False,
        )
        charts.append(figure(chart, f'{name} <span class="dim">upper {side} is better</span>'))
    if not any(charts):
        return ""
    return (
        '<p class="note">Whether the tasks reach their best together, against what was gained at the last step. A row whose '
        "metrics do not move has no place here. A point without a name has no room for it: the table below names all.</p>"
        f'<div class="three">{"".join(charts)}</div>'
        f'{_table(results, shown)}<p class="note">{_explained(shown)} '
        "Tasks that only get worse are all best at their first step, and so agree as well as any.</p>"
    )


def _costs(results: Results) -> str:
    """Tables 6 and 9 of the paper: parameters and time, beside the base row's."""
    size = results.mean(results.base, lambda o: o.parameters)
    time = results.mean(results.base, lambda o: o.seconds)
    body = []
    for row in results.rows:
        parameters = results.mean(row, lambda o: o.parameters)
        seconds = results.mean(row, lambda o: o.seconds)
        body.append(
            f'<tr><th scope="row">{escape(row)}</th><td>{parameters / 1e6:.2f}</td>'
            f"<td>{100 * (parameters / size - 1):+.1f}</td><td>{seconds:.1f}</td>"
            f"<td>{show(seconds / time if time else math.nan)}</td></tr>"
        )
    heads = ("parameters, M", "against the base, %", "seconds", "times the base")
    head = "".join(f'<th scope="col">{name}</th>' for name in heads)
    return (
        table("Cost by row", f'<tr><th scope="col">row</th>{head}</tr>', body)
        + '<p class="note">Parameters of the model that is adapted, branch included. Seconds of a cell, with all its '
        "measurements, on a machine that may have shared its processor: they compare rows, not machines.</p>"
    )


def _domains(results: Results, colours: dict[str, int]) -> str:
    if len(results.domains) < 2:
        return ""
    series = []
    for row in results.rows:
        of = [[o.last for o in results.of(row, domain)] for domain in results.domains]
        places = [float(i) for i in range(len(of))]
        series.append(
            Series(row, places, [mean(v) for v in of], colours.get(row, 0), [deviation(v) for v in of])
        )
    chart = line_chart(
        series,
        "Delta_TTT at the last step by domain",
        "; ".join(f"{s.name}: {', '.join(map(_signed, s.y))}" for s in series),
        "Δ, %",
        x_unit="domain",
        x_names=results.domains,
    )
    head = "".join(f'<th scope="col">{escape(domain)}</th>' for domain in results.domains)
    body = [
        f'<tr><th scope="row">{escape(s.name)}</th>{"".join(f"<td>{_signed(v)}</td>" for v in s.y)}</tr>'
        for s in series
    ]
    return figure(chart, "Δ<sub>TTT</sub> at the last step, each domain against its own base") + table(
        "Delta_TTT by domain", f'<tr><th scope="col">row</th>{head}</tr>', body
    )


def _sweep(results: Results) -> str:
    """A chart for rows that are named by numbers: the settings of one thing."""
    settings = sorted((float(row), row) for row in results.rows if row.replace(".", "", 1).isdigit())
    if len(settings) < 3:
        return ""
    of = [results.by_seed(row, lambda o: o.last) for _, row in settings]
    series = [
        Series("Δ last", [x for x, _ in settings], [mean(v) for v in of], 1, [deviation(v) for v in of])
    ]
    chart = line_chart(
        series,
        f"{results.about['title']}: Delta_TTT at the last step",
        "; ".join(f"{row}: {_signed(mean(v))}" for (_, row), v in zip(settings, of, strict=True)),
        "Δ, %",
        x_unit="setting",
        height=300,
    )
    return figure(chart, f"Δ<sub>TTT</sub> at the last step · {escape(results.about['title'])}")


def _pictures(results: Results) -> str:
    path = results.folder / "pictures" / "pictures.json"
    if not path.is_file():
        return ""
    shape = {"about": str, "sheets": [{"caption": str, "light": str, "dark": str}]}
    about = read_json(path, "delete it and run the same testtime multitask command again", shape)
    figures = []
    for one in about["sheets"]:
        light, dark = (_embedded(path.parent / one[tone]) for tone in ("light", "dark"))
        caption = escape(one["caption"])
        figures.append(
            f'<figure><figcaption>{caption}</figcaption><div class="scroll" tabindex="0"><picture>'
            f'<source media="(prefers-color-scheme: dark)" srcset="{dark}">'
            f'<img class="sheet" alt="{caption}: every task, label and answers" src="{light}"></picture></div></figure>'
        )
    return f'<p class="note">{escape(about["about"])}</p>{"".join(figures)}'


def _rates(results: Results) -> str:
    if not results.rates:
        return ""
    rates = sorted({float(rate) for found in results.rates.values() for rate in found["tried"]})
    head = "".join(f'<th scope="col">{rate:g}</th>' for rate in rates)
    body = []
    for row, found in results.rates.items():
        tried = {float(rate): gain for rate, gain in found["tried"].items()}
        cells = "".join(
            f'<td class="best">{_signed(tried[rate])}</td>'
            if rate == found["rate"]
            else f"<td>{_signed(tried[rate]) if rate in tried else ''}</td>"
            for rate in rates
        )
        body.append(f'<tr><th scope="row">{escape(row)}</th>{cells}</tr>')
    return (
        table("Learning rates", f'<tr><th scope="col">row</th>{head}</tr>', body)
        + '<p class="note">Δ<sub>TTT</sub> in percent at the last step on the validation shift, other houses than the '
        "target's, with the first seed; the rate in bold was kept for all seeds. Rows that are not here have one rate.</p>"
    )


def _provenance(results: Results) -> str:
    about, command = results.about, results.command
    items: list[tuple[str, object]] = [
        ("study", about["study"]),
        ("in the paper", about["published"] or "–"),
        ("preset", about["preset"]),
        ("protocol", _facts(about["protocol"])),
        *((f"domain {name}", _facts(facts)) for name, facts in about["domains"].items()),
        ("seeds", ", ".join(map(str, results.seeds))),
        (
            "learning rates",
            ", ".join(
                f"{row} {results.of(row)[0].rate:g}" for row in results.rows if results.of(row)[0].rate
            ),
        ),
        ("command", " ".join(command.get("command", [])) or "–"),
        ("versions", _facts(command.get("versions", {})) or "–"),
        ("machine", _facts(command.get("machine", {})) or "–"),
    ]
    return (
        definitions(items)
        + '<p class="note">Every metric of every task at every step lies beside this page: <code>cells/*.json</code>.</p>'
    )


def _published(results: Results) -> str:
    """What the paper prints, beside ours where the names of the rows agree."""
    printed = _printed(results.about["published"])
    if not printed:
        return ""
    own = {re.sub(r"^\(\w\) ", "", row).lower(): row for row in results.rows}
    for name, column in printed.items():  # a column may be a domain
        for domain in results.domains:
            if "S4T" in results.rows and f"target + {name}".removesuffix(" + noise 0") == domain:
                column["S4T, here"] = results.mean("S4T", lambda o: o.oracle, domain)
    rows = list(dict.fromkeys(row for column in printed.values() for row in column))
    body = []
    for row in rows:
        cells = "".join(
            f"<td>{_signed(column[row]) if row in column else '–'}</td>" for column in printed.values()
        )
        there = row.lower() in own and len(results.domains) == 1
        ours = results.mean(own[row.lower()], lambda o: o.oracle) if there else math.nan
        told = f'<td class="headline">{_signed(ours)}</td>' if len(results.domains) == 1 else ""
        body.append(f'<tr><th scope="row">{escape(row)}</th>{cells}{told}</tr>')
    head = "".join(f'<th scope="col">{escape(name.replace("->", "→"))}</th>' for name in printed)
    head += '<th scope="col">here, oracle</th>' if len(results.domains) == 1 else ""
    shown = table("Published gains", f'<tr><th scope="col">row</th>{head}</tr>', body)
    return (
        f"<details><summary>What the paper prints ({escape(results.about['published'])})</summary>{shown}"
        '<p class="note">Δ<sub>TTT</sub> in percent, on the paper\'s data, at the step that is best by the test labels; ours '
        "beside it is the oracle's too, on other data, another network and other metrics: orders may be compared, not "
        "sizes.</p></details>"
    )


def _printed(where: str) -> dict[str, dict[str, float]]:
    """The Delta_TTT of the tables that a text like "tables 1 and 7" names: by column, then by row."""
    numbers = [
        int(n) for named in re.findall(r"tables? ([\d, and]+)", where) for n in re.findall(r"\d+", named)
    ]
    found: dict[str, dict[str, float]] = {}
    shifts: dict[int, Mapping[str, published.Rows]] = {
        1: published.TABLE_1,
        7: published.TABLE_7,
        8: published.TABLE_8,
    }
    for number in numbers:
        for shift, rows in shifts.get(number, {}).items():
            found[shift] = {row: values["delta_ttt"] for row, values in rows.items() if "delta_ttt" in values}
        if number == 2:
            for shift, parts in published.TABLE_2.items():
                names = {there: " + ".join(sorted(there)) or "Base" for there in parts}
                names[frozenset({"TBS", "projection", "masking"})] = "S4T"
                found[shift] = {names[there]: gain for there, gain in parts.items()}
        if number == 3:
            found["table 3"] = dict(published.TABLE_3)
        if number == 5:
            found |= {f"noise {noise:g}": {"S4T": gain} for noise, gain in published.TABLE_5.items()}
    return found


def _series(
    results: Results, domain: str, colours: dict[str, int], values: Callable[[Outcome], Sequence[float]]
) -> list[Series]:
    series = []
    for row in results.rows:
        outcomes = results.of(row, domain)
        if not outcomes:
            continue
        found = np.array([values(o) for o in outcomes], dtype=float)
        spread = found.std(0, ddof=1).tolist() if len(outcomes) > 1 else ()
        series.append(
            Series(row, outcomes[0].curve.steps, found.mean(0).tolist(), colours.get(row, 0), spread)
        )
    return series


def _gain(results: Results, row: str) -> str:
    values = results.by_seed(row, lambda o: o.last)
    spread = deviation(values)
    return f"{_signed(mean(values))}{f' ±{spread:.1f}' if spread else ''} %"


def _last_values(results: Results, domain: str, name: str) -> str:
    return ", ".join(
        f"{row} {results.mean(row, lambda o: o.curve.values[name][-1], domain):.3g}" for row in results.rows
    )


def _embedded(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _facts(facts: dict[str, object]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items())


def _signed(value: float) -> str:
    return show(value) if math.isnan(value) or round(value, 1) <= 0 else f"+{value:.1f}"
