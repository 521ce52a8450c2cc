"""From Altair's layers to SVG that lives in a page: small, without fonts of its own, in the colours of the page."""

from __future__ import annotations

import json
import math
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, final

from testtime.errors import need_packages

__all__ = [
    "FONT",
    "NAMED",
    "NARROW",
    "WIDE",
    "Chart",
    "altair",
    "clean",
    "colour",
    "drawn",
    "label_of",
    "layer",
]
__all__ += ["padded", "scaled", "specification", "x_axis"]

WIDE, NARROW = 1040, 358
"""Widths of a drawing on a wide page, and on a phone or beside others, in pixels."""
FONT = 13
"""Size of the text, in pixels."""
NAMED = 400
"""Marks of a layer up to which each shows its figures when it is pointed at."""
UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
CHANNELS: dict[str, dict[str, object]] = {
    **{name: {"type": "nominal"} for name in ("text", "detail", "description", "yOffset")},
    "color": {"type": "nominal", "scale": None},
    **{name: {"type": "quantitative", "scale": None} for name in ("size", "opacity")},
}
GEOMETRY = ("d", "transform", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "cx", "cy", "dy")
PAINT = ("fill", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "opacity")
TYPE = ("text-anchor", "font-size", "font-weight")
TITLE = {"fontSize": FONT - 1, "color": "var(--dim)"}
CONFIG = {
    "axis": {
        **dict.fromkeys(("labelColor", "titleColor"), "var(--dim)"),
        **dict.fromkeys(("labelFontSize", "titleFontSize"), FONT - 1),
        **{"titleFontWeight": "normal", "titlePadding": 8, "labelPadding": 6},
        **{"gridColor": "var(--rule)", "domain": False, "ticks": False},
    },
    "axisX": {"labelFlush": False, "tickCount": {"expr": "ceil(width / 110)"}},
    "title": {"anchor": "start", "frame": "bounds", "fontWeight": "normal", **TITLE},
    "view": {"stroke": None},
    "text": {"fontSize": FONT, "fill": "var(--ink)"},
}

Rows = Sequence[Mapping[str, object]]
Drawings = tuple[tuple[str, float, float], ...]  # the SVG elements, their width and their height


@final
@dataclass(frozen=True)
class Chart:
    """A chart, drawn once for a wide page and once for a phone, or once small enough for both.

    Args:
        title, description: subject and figures of the chart, for screen readers.
        drawings: the SVG elements, their width and their height, for each size.
        keys: names and their colours (classes of the page's style), for a key above the chart.
        keyed: whether the key is needed at each width; otherwise only on a phone, since the wide drawing names its lines.
    """

    title: str
    description: str
    drawings: Drawings
    keys: tuple[tuple[str, str], ...] = ()
    keyed: bool = False

    @property
    def small(self) -> bool:
        """Whether it was drawn once, for a place beside others."""
        return len(self.drawings) == 1


@cache
def altair() -> Any:
    """Return Altair, which is imported when the first chart is drawn; an ImportError says that it is not installed."""
    need_packages(altair="report", vl_convert="report")
    return import_module("altair")


def layer(mark: str, rows: Rows, place: Mapping[str, Any], **options: Any) -> list[Any]:
    """Return a layer of a chart, as it stands in a specification of Vega-Lite, in a list: an empty one without data.

    Only axes and scales are Altair's objects: a chart of Altair for each layer takes as long as the drawing.

    Args:
        mark: kind of mark of Vega-Lite, such as "line".
        rows: data. Beside the fields of ``place`` they may have "x2", "y2", "color", "size", "opacity", "text", "detail"
            (lines of one detail are one line) and "description": the text that is shown where a mark is pointed at.
        place: channels of the axes.
        options: options of the mark.
    """
    if not rows:
        return []
    fields = [name for name in rows[0] if name not in place]
    described = "description" in fields and (mark == "line" or len(rows) <= NAMED)
    encoding = {name: channel.to_dict(validate=False, context={}) for name, channel in place.items()}
    for name in fields:
        if name != "description" or described:
            encoding[name] = {"field": name, **CHANNELS.get(name, {})}
    known = [{key: value for key, value in row.items() if value == value} for row in rows]
    look = {"type": mark, "aria": described, **options}
    return [{"data": {"values": known}, "mark": look, "encoding": encoding}]


def drawn(draw: Callable[[int], tuple[list[Any], object]], small: bool, title: str = "") -> Drawings:
    """Draw a chart in the sizes of a page.

    Args:
        draw: function that returns the layers, the lowest first, and the height of the plot, for the width of the drawing.
        small: whether it is drawn once, in a row with others.
        title: title of the y axis, above it.
    """
    widths = (NARROW,) if small else (WIDE, NARROW)
    return tuple(_svg(specification(width, *draw(width), title)) for width in widths)


def clean(value: Any) -> Any:
    """Return a value of JSON with spaces for what no drawing can hold; vl-convert ends the process at a NUL in a name."""
    if isinstance(value, Mapping):
        return {key: clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return UNSAFE.sub(" ", value) if isinstance(value, str) else value


def specification(width: int, layers: list[Any], height: object, title: str) -> dict[str, Any]:
    """Return layers as a specification of Vega-Lite; the plot takes the width that axes and names leave."""
    fit = {"type": "fit-x", "contains": "padding"}
    size = {"width": width, "height": height, "autosize": fit, "padding": 2, "background": "transparent"}
    found: dict[str, Any] = clean({"layer": layers, **size, **({"title": title} if title else {})})
    return found | {"$schema": altair().SCHEMA_URL, "config": CONFIG}


def _svg(wanted: Mapping[str, Any]) -> tuple[str, float, float]:
    text = import_module("vl_convert").vegalite_to_svg(wanted)
    root = ElementTree.fromstring(text)
    _, _, wide, high = map(float, root.attrib["viewBox"].split())
    _tidy(root)
    content = "".join(ElementTree.tostring(child, encoding="unicode") for child in root)
    return content, round(wide, 1), round(high, 1)


def _tidy(element: ElementTree.Element) -> None:
    """Keep what is seen, in coordinates of a tenth of a pixel; what describes a mark becomes its tooltip."""
    element.tag = element.tag.rpartition("}")[2]
    kind, label = element.attrib.get("class", ""), element.attrib.get("aria-label")
    short = {key: NUMBER.sub(_tenths, element.attrib[key]) for key in GEOMETRY if key in element.attrib}
    kept = {key: element.attrib[key] for key in (*PAINT, *TYPE) if key in element.attrib}
    element.attrib = short | {key: value for key, value in kept.items() if value not in ("", "1")}
    for child in list(element):
        _tidy(child)
        if (child.tag == "g" and not len(child)) or child.attrib.get("class") == "none":
            element.remove(child)
    if kind in ("background", "foreground"):
        element.attrib = {"class": "none"}
    elif "mark-line" in kind:
        for path in element:
            path.attrib["class"] = "line"
    if label and element.tag != "g":
        ElementTree.SubElement(element, "title").text = label


def _tenths(found: re.Match[str]) -> str:
    return f"{float(found[0]):.1f}".removesuffix(".0")


def colour(number: int) -> str:
    """Return the colour with a number, 0 is the grey of the background; a ValueError says that there is none."""
    if not 0 <= number <= 6:
        raise ValueError(f"expected a colour from 0 to 6, got {number}")
    return f"var(--k{number})" if number else "var(--quiet)"


def padded(values: Iterable[float], share: float = 0.06) -> tuple[float, float]:
    """Return a range around values; it does not leave [0, 100] or the positive numbers where the values do not."""
    known = [value for value in values if math.isfinite(value)]
    low, high = min(known), max(known)
    pad = share * ((high - low) or abs(high) or 1.0)
    below, above = low - pad, high + pad
    return (max(below, 0.0) if low >= 0 else below), (min(above, 100.0) if high <= 100 < above else above)


def scaled(channel: str, bounds: tuple[float, float], axis: Mapping[str, Any] | None, **scale: Any) -> Any:
    """Return the channel of an axis, "x" or "y", with exactly this range, and options of axis and scale of Vega-Lite."""
    alt = altair()
    of = alt.Scale(domain=list(bounds), nice=False, zero=False, **scale)
    return getattr(alt, channel.upper())(f"{channel}:Q", scale=of, axis=axis and alt.Axis(**axis))


def label_of(places: Sequence[object], names: Sequence[object]) -> str:
    """Return the expression of Vega that is the name of a place; a name may have several lines."""
    return f"{json.dumps(clean(names))}[indexof({json.dumps(clean(places))}, datum.value)]"


def x_axis(title: str, width: int, names: Sequence[tuple[float, str]] = ()) -> dict[str, Any]:
    """Return the options of an x axis; without a title and names (of places instead of numbers) it has no labels."""
    axis: dict[str, Any] = {"title": title or None, "grid": False, "labels": bool(title or names)}
    if names:
        places, words = zip(*names, strict=True)
        tilted = len(names) * max(map(len, words)) * 0.6 * FONT > width - 60
        turned = {"labelAngle": -40, "labelAlign": "right", "labelBaseline": "middle"} if tilted else {}
        axis |= {"values": places, "labelExpr": label_of(places, words), "labelLimit": 130, **turned}
    return axis
