"""Read the drawings of a chart back: marks, texts and tooltips with their places."""

import re
import xml.etree.ElementTree as ElementTree

from testtime.report import Chart

Place = tuple[float, float]


def elements(chart: Chart | None, which: int = 0) -> list[tuple[ElementTree.Element, Place, str]]:
    """The drawn elements, each with the sum of the translations above it and its tooltip."""
    assert chart is not None
    found: list[tuple[ElementTree.Element, Place, str]] = []

    def walk(element: ElementTree.Element, x: float, y: float) -> None:
        move = re.match(r"translate\((-?[\d.]+)[ ,](-?[\d.]+)\)", element.get("transform", ""))
        x, y = (x + float(move[1]), y + float(move[2])) if move else (x, y)
        if element.tag not in ("g", "svg", "title", "desc"):
            found.append((element, (x, y), element.findtext("title", "")))
        for child in element:
            walk(child, x, y)

    walk(ElementTree.fromstring(f"<svg>{chart.drawings[which][0]}</svg>"), 0.0, 0.0)
    return found


def path(element: ElementTree.Element, place: Place = (0.0, 0.0)) -> list[list[Place]]:
    """The corners of a path, a list for each part."""
    parts: list[list[Place]] = []
    x, y = place
    for command, a, b in re.findall(r"([MlL])(-?[\d.]+)[ ,]?(-?[\d.]+)", element.get("d", "")):
        dx, dy = float(a), float(b)
        x, y = (x + dx, y + dy) if command == "l" else (place[0] + dx, place[1] + dy)
        parts.append([]) if command == "M" else None
        parts[-1].append((x, y))
    return parts


def lines(chart: Chart | None, which: int = 0) -> dict[str, tuple[ElementTree.Element, list[list[Place]]]]:
    """The lines of a chart by name."""
    return {told: (e, path(e, at)) for e, at, told in elements(chart, which) if e.get("class") == "line"}


def named(chart: Chart | None, which: int = 0) -> dict[str, tuple[ElementTree.Element, Place]]:
    """The marks with a tooltip by that tooltip, lines excepted."""
    return {told: (e, at) for e, at, told in elements(chart, which) if told and e.get("class") != "line"}


def texts(chart: Chart | None, which: int = 0) -> dict[str, Place]:
    """The texts with their places; the last of equal ones."""
    return {e.text or "": at for e, at, _ in elements(chart, which) if e.tag == "text"}
