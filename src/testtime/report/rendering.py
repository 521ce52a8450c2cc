"""The page as HTML: templates of Jinja2 that escape whatever is not ``markupsafe.Markup``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any

from testtime.errors import need_packages
from testtime.files import write_text
from testtime.report.blocks import Block, Details, Figure, Grid, Page
from testtime.report.drawing import Chart
from testtime.report.markup import Markup, plain

__all__ = ["page_html", "write_chart", "write_page"]

UNSAFE_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff]")


def page_html(page: Page) -> str:
    """Return the HTML of a page.

    Raises:
        ImportError: Jinja2 is not installed.
        ValueError: two sections have the same id.
    """
    ids = [section.id for section in page.sections]
    if twice := {name for name in ids if ids.count(name) > 1}:
        raise ValueError(f"expected a different id for each section, got {', '.join(sorted(twice))} twice")
    lead = [page.lead] if isinstance(page.lead, str) else page.lead
    sections = [(section, blocks) for section in page.sections if (blocks := _shown(section.blocks))]
    facts = {"page": page, "lead": _shown(lead), "sections": sections, "numbers": count(1)}
    text: str = _environment().get_template("page.html").render(facts)
    return UNSAFE_TEXT.sub("\N{REPLACEMENT CHARACTER}", text)  # a path may hold bytes that are no text


def write_page(path: str | Path, page: Page) -> Path:
    """Write a page whole or not at all, and return its path."""
    return write_text(path, page_html(page))


def write_chart(path: str | Path, chart: Chart) -> Path:
    """Write a chart as an SVG file that follows light and dark, such as the picture of a README; return its path."""
    colours = _template("style.css").partition("*{")[0]
    style = Markup(f"<style>{colours}svg{{background:var(--paper);font-family:system-ui,sans-serif}}</style>")
    return write_text(path, _environment().get_template("chart.svg").render(alone=chart, head=style).strip())


def _shown(blocks: Sequence[Block]) -> list[Block]:
    """The blocks without empty texts, figures without a chart, and groups in which nothing is left."""

    def there(block: Block) -> bool:
        if isinstance(block, Grid | Details):
            return bool(_shown(block.blocks))
        return block.chart is not None if isinstance(block, Figure) else block != ""

    return [block for block in blocks if there(block)]


@cache
def _environment() -> Any:
    need_packages(jinja2="report")
    import jinja2

    strict, loader = jinja2.StrictUndefined, jinja2.FunctionLoader(_template)
    found = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, undefined=strict, autoescape=True, loader=loader
    )
    found.globals |= {"style": Markup(_template("style.css")), "script": Markup(_template("script.js"))}
    kind = {"kind": lambda block: type(block).__name__.lower()}
    found.filters |= {"plain": plain, "there": _shown, "next": next, **kind}
    return found


def _template(name: str) -> str:
    return (resources.files("testtime.report") / "templates" / name).read_text(encoding="utf-8")
