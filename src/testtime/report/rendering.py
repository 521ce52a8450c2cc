"""The page as HTML: templates of Jinja2 that escape whatever is not :class:`~testtime.report.markup.Markup`."""

from __future__ import annotations

from functools import cache
from importlib import resources
from itertools import count
from pathlib import Path
from typing import Any

from testtime.errors import need_packages
from testtime.files import write_text
from testtime.report.blocks import Block, Page
from testtime.report.drawing import Chart
from testtime.report.markup import Markup, plain

__all__ = ["page_html", "write_page"]


def page_html(page: Page) -> str:
    """Return the HTML of a page.

    Raises:
        ImportError: Jinja2 is not installed.
        ValueError: two sections have the same id.
    """
    ids = [section.id for section in page.sections]
    if twice := {name for name in ids if ids.count(name) > 1}:
        raise ValueError(f"expected a different id for each section, got {', '.join(sorted(twice))} twice")
    lead = [page.lead] if isinstance(page.lead, str | Markup) else list(page.lead)
    numbers = count(1)

    def draw(chart: Chart) -> Markup:
        return Markup(chart.svg(next(numbers)))

    template = _environment().get_template("page.html")
    shown = [section for section in page.sections if section.blocks]
    return str(template.render(page=page, lead=[b for b in lead if b], sections=shown, draw=draw))


def write_page(path: str | Path, page: Page) -> Path:
    """Write a page whole or not at all, and return its path."""
    return write_text(path, page_html(page))


def _kind(block: Block) -> str:
    return "paragraph" if isinstance(block, str | Markup) else block.kind


@cache
def _environment() -> Any:
    need_packages(jinja2="report")
    import jinja2

    folder = resources.files("testtime.report") / "templates"
    found = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda name: (folder / name).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name in ("style.css", "script.js"):
        found.globals[name.partition(".")[0]] = Markup((folder / name).read_text(encoding="utf-8"))
    found.filters |= {
        "kind": _kind,
        "plain": plain,
        "shown": lambda value: value if isinstance(value, Markup) else str(value),
    }
    return found
