"""The pieces of a page that needs nothing else: its frame, sections, figures, tables, and figures in words."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import TypeVar

import numpy as np

from testtime.bench.style import SCRIPT, STYLE
from testtime.files import write_text

__all__ = [
    "definitions",
    "deviation",
    "document",
    "figure",
    "first_of",
    "legend",
    "listed",
    "mean",
    "number",
    "section",
    "show",
    "table",
    "write_page",
]


Name = TypeVar("Name", bound=Hashable)


def document(
    title: str, kicker: str, lead: str, sections: Sequence[tuple[str, str, str, str]], style: str = ""
) -> str:
    """The whole page.

    Args:
        title, kicker: of the page, as text; the kicker stands above the title.
        lead: what was found, as HTML.
        sections: of each its id, its name among the links, its title, and its content as HTML; without content it is left out.
        style: CSS that only this page needs.
    """
    there = [s for s in sections if s[3]]
    links = "".join(f'<a href="#{name}">{link}</a>' for name, link, _, _ in there)
    content = "".join(section(name, heading, inside) for name, _, heading, inside in there)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{escape(title)}</title>\n'
        f"<style>{STYLE}{style}</style>\n</head>\n"
        f'<body>\n<header><p class="kicker">{escape(kicker)}</p><h1>{escape(title)}</h1>'
        f'<p class="lead">{lead}</p><nav aria-label="Sections">{links}</nav></header>\n'
        f"<main>{content}</main>\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )


def section(name: str, title: str, content: str) -> str:
    """A section with an id."""
    return f'<section id="{name}"><h2>{title}</h2>{content}</section>\n'


def figure(chart: str, caption: str) -> str:
    """A chart with its caption (HTML), scrolled on narrow screens; nothing without a chart."""
    if not chart:
        return ""
    return (
        f'<figure><figcaption>{caption}</figcaption><div class="scroll" tabindex="0">{chart}</div></figure>'
    )


def table(caption: str, head: str, rows: Iterable[str]) -> str:
    """A table of rows (HTML), scrolled on narrow screens."""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead>{head}</thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def legend(names: Iterable[str], colours: Mapping[str, int]) -> str:
    """Buttons that bring a line forward."""
    keys = "".join(
        f'<button type="button" data-line="{escape(name)}" class="{f"c{colours[name]}" if name in colours else "quiet"}" '
        f'aria-pressed="false">{escape(name)}</button>'
        for name in names
    )
    return f'<div class="legend" role="group" aria-label="Bring a method forward">{keys}</div>'


def definitions(items: Iterable[tuple[str, object]]) -> str:
    """A list of names and what belongs to them, as text."""
    told = "".join(f"<dt>{escape(name)}</dt><dd>{escape(str(value))}</dd>" for name, value in items)
    return f"<dl>{told}</dl>"


def first_of(values: Mapping[Name, float], higher: bool = True, places: int = 1) -> list[Name]:
    """The names whose value is the best as it is printed: several where they are equal in print.

    Args:
        values: values by name; NaN is never the best.
        higher: whether a higher value is better.
        places: decimals that are printed.

    >>> first_of({"a": 78.24, "b": 78.16, "c": 70.0}), first_of({"a": 1.0, "b": 2.0}, higher=False)
    (['a', 'b'], ['a'])
    """
    seen = {name: round(value, places) for name, value in values.items() if not math.isnan(value)}
    best = (max if higher else min)(seen.values(), default=None)
    return [name for name, value in seen.items() if value == best]


def listed(names: Sequence[str]) -> str:
    """Names as a phrase.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def write_page(path: Path, content: str) -> Path:
    """Write a page whole or not at all."""
    return write_text(path, content)


def number(value: float | None, otherwise: float = float("nan")) -> float:
    """A number, or the other where there is none."""
    return otherwise if value is None or math.isnan(value) else float(value)


def mean(values: Sequence[float]) -> float:
    """The mean of the values that are not NaN.

    >>> mean([1.0, 3.0, float("nan")])
    2.0
    """
    seen = [value for value in values if not math.isnan(value)]
    return sum(seen) / len(seen) if seen else float("nan")


def deviation(values: Sequence[float]) -> float:
    """Standard deviation with n - 1; 0 for a single value."""
    seen = [value for value in values if not math.isnan(value)]
    return float(np.std(seen, ddof=1)) if len(seen) > 1 else 0.0


def show(value: float, places: int = 1) -> str:
    """A number in words; a dash for NaN, and nothing is less than zero that is written as zero.

    >>> show(-0.04), show(-0.06)
    ('0.0', '-0.1')
    """
    return "–" if math.isnan(value) else f"{round(value, places) + 0.0:.{places}f}"
