"""From Altair's specification to SVG that lives in a page: small, without fonts of its own, in the colours of the page."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any, final

from testtime.errors import need_packages

__all__ = ["COLOURS", "NARROW", "SMALL", "WIDE", "Chart", "Layers", "Size", "altair", "clean", "drawn"]

COLOURS = {
    name: f"#0{place:x}0c0d"
    for place, name in enumerate(("ink", "dim", "rule", "quiet", "paper", "heat", "cold"), 1)
} | {f"k{number}": f"#1{number:x}0c0d" for number in range(1, 7)}
"""The colours that charts are drawn with, by the name of the page's CSS property that replaces each."""

UNSAFE = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")
NUMBER = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
POINT = re.compile(r"([ML])(-?[\d.]+),(-?[\d.]+)")
LINES = re.compile(r"(?:[ML]-?[\d.]+,-?[\d.]+)+Z?")
NOTHING: Mapping[str, Any] = {}
CHANNELS = {"px": "x", "py": "y", "px2": "x2", "py2": "y2", "c": "color", "t": "text"}
CHANNELS |= {"series": "detail", "name": "description"}
GEOMETRY = {"d", "transform", "x", "y", "x1", "x2", "y1", "y2", "width", "height", "cx", "cy"}
DROPPED = {"class", "version", "pointer-events", "font-family", "role", "aria-hidden", "aria-roledescription"}
DROPPED |= {"aria-label", "stroke-miterlimit"}

Rows = Sequence[Mapping[str, object]]


@final
@dataclass(frozen=True)
class Size:
    """A size a chart is drawn in.

    Args:
        width: width of the whole drawing, in pixels.
        font: size of the text, in pixels.
        narrow: whether it is for a phone or one of several charts side by side.
    """

    width: int
    font: float
    narrow: bool


WIDE = Size(1040, 13, False)
NARROW = Size(358, 12, True)
SMALL = Size(358, 12, True)


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
    drawings: tuple[tuple[str, float, float], ...]
    keys: tuple[tuple[str, str], ...] = ()
    keyed: bool = False

    @property
    def small(self) -> bool:
        """Whether it was drawn once, for a place beside others."""
        return len(self.drawings) == 1

    def svg(self, number: int) -> str:
        """Return the ``<svg>`` elements; the page's style shows the one that fits.

        Args:
            number: number of the chart in its page, from which its ids are made.
        """
        kinds = ("small",) if self.small else ("wide", "narrow")
        return "".join(
            self._element(content, width, height, f"c{number}{kind[0]}", f"chart {kind}")
            for kind, (content, width, height) in zip(kinds, self.drawings, strict=True)
        )

    def file(self, style: str) -> str:
        """Return the wide drawing as an SVG file of its own, with the CSS that defines its colours."""
        content, width, height = self.drawings[0]
        width = max(
            width, (SMALL if self.small else WIDE).width
        )  # fonts may be wider than those it was measured with
        svg = self._element(f"<style>{style}</style>{content}", width, height, "c", "chart")
        return svg.replace("<svg", '<svg xmlns="http://www.w3.org/2000/svg"', 1)

    def _element(self, content: str, width: float, height: float, name: str, kind: str) -> str:
        title, description = (ElementTree.Element(tag, id=name + tag[0]) for tag in ("title", "desc"))
        title.text, description.text = self.title, self.description
        head = "".join(ElementTree.tostring(e, encoding="unicode") for e in (title, description))
        return (
            f'<svg class="{kind}" viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}" role="img" '
            f'aria-labelledby="{name}t" aria-describedby="{name}d">{head}{content}</svg>'
        )


@cache
def altair() -> Any:
    """Return Altair, which is imported when the first chart is drawn.

    Raises:
        ImportError: Altair or vl-convert is not installed.
    """
    need_packages(altair="report", vl_convert="report")
    return import_module("altair")


class Layers:
    """The layers of a chart, the lowest first. The fields of the data decide what a mark shows, see :meth:`add`."""

    def __init__(self) -> None:
        self._charts: list[Any] = []
        self._data: dict[str, Rows] = {}

    def add(self, mark: str, rows: Rows, place: Mapping[str, Any] = NOTHING, **options: Any) -> None:
        """Add a layer, unless it has no data.

        Args:
            mark: kind of mark of Vega-Lite, such as "line".
            rows: data. Beside "x" and "y" (in the units of the axes) they may have "x2" and "y2", "px", "py", "px2" and "py2"
                (in pixels), "c" (colour), "t" (text), "size", "opacity", "series" (lines of one series are one line) and
                "name": the text that is shown where a mark is pointed at.
            place: channels of the axes, and others that are not fields.
            options: options of the mark.
        """
        if not rows:
            return
        alt, raw, data = altair(), {"scale": None}, f"d{len(self._data)}"
        known = {
            "px": alt.X("px:Q", axis=None, **raw),
            "py": alt.Y("py:Q", axis=None, **raw),
            **{key: getattr(alt, key.upper())(f"{key}:Q") for key in ("x2", "y2")},
            "px2": alt.X2("px2:Q"),
            "py2": alt.Y2("py2:Q"),
            "c": alt.Color("c:N", **raw),
            "t": alt.Text("t:N"),
            "size": alt.Size("size:Q", **raw),
            "opacity": alt.Opacity("opacity:Q", **raw),
            "series": alt.Detail("series:N"),
            "name": alt.Description("name:N"),
        }
        fields = {CHANNELS.get(key, key): known[key] for key in rows[0] if key in known}
        self._data[data] = rows
        self._charts.append(
            alt.Chart(
                alt.NamedData(name=data),
                mark=alt.MarkDef(type=mark, aria="name" in rows[0], **options),
                encoding=alt.FacetedEncoding(**{**place, **fields}),
            )
        )

    def specification(self, size: Size, width: float, height: object) -> dict[str, Any]:
        """Return the specification in Vega-Lite.

        Args:
            size: size of the text.
            width, height: size of the plot without its axes.
        """
        names = ("label", "title")
        axis: dict[str, Any] = {f"{name}Color": COLOURS["dim"] for name in names}
        axis |= {f"{name}FontSize": size.font - 1 for name in names}
        axis |= {"gridColor": COLOURS["rule"], "domain": False, "ticks": False, "labelPadding": 6}
        config = {
            "axis": {**axis, "titleFontWeight": "normal"},
            "view": {"stroke": None},
            "text": {"fontSize": size.font},
        }
        layered = altair().LayerChart(
            layer=self._charts, width=width, height=height, background="transparent", padding=2
        )
        found: dict[str, Any] = layered.to_dict(validate=False)  # the schema takes longer than the drawing
        return found | {"datasets": self._data, "config": config}


def drawn(draw: Callable[[Size], dict[str, Any]], small: bool) -> tuple[tuple[str, float, float], ...]:
    """Draw a chart in the sizes of a page.

    Args:
        draw: function that returns the specification for a size.
        small: whether it is drawn once, to stand beside others.
    """
    return tuple(_svg(draw(size)) for size in ((SMALL,) if small else (WIDE, NARROW)))


def clean(value: Any) -> Any:
    """Return a value of JSON with spaces for what no drawing can hold; vl-convert ends the process at a NUL in a name."""
    if isinstance(value, Mapping):
        return {key: clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return UNSAFE.sub(" ", value) if isinstance(value, str) else value


def _svg(specification: Mapping[str, Any]) -> tuple[str, float, float]:
    altair()
    text = import_module("vl_convert").vegalite_to_svg(clean(specification))
    root = ElementTree.fromstring(text)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    _clean(root)
    content = "".join(ElementTree.tostring(child, encoding="unicode") for child in root)
    for name, colour in COLOURS.items():
        content = content.replace(colour, f"var(--{name})")
    return content, round(width, 1), round(height, 1)


def _clean(element: ElementTree.Element) -> None:
    """Keep what is seen: no empty groups, no backgrounds, coordinates to a tenth of a pixel; names become tooltips."""
    element.tag = element.tag.rpartition("}")[2]
    label = element.attrib.get("aria-label") if element.tag != "g" else None
    kind = element.attrib.get("class", "")
    for key, value in list(element.attrib.items()):
        if key in DROPPED or (key, value) in {("opacity", "1"), ("stroke-width", "1")} or value == "":
            del element.attrib[key]
        elif key in GEOMETRY:
            element.attrib[key] = _shorter(value, key)
    if element.attrib.get("transform") in ("translate(0,0)", "translate(0 0)"):
        del element.attrib["transform"]
    for child in list(element):
        if child.attrib.get("class") in ("background", "foreground"):
            element.remove(child)
            continue
        _clean(child)
        if child.tag == "g" and not len(child):
            element.remove(child)
        elif child.tag == "g" and not child.attrib and not child.text:
            place = list(element).index(child)
            element.remove(child)
            for offset, inner in enumerate(child):
                element.insert(place + offset, inner)
    if "mark-line" in kind:
        for path in element:
            path.attrib["class"] = "line"
    if label:
        title = ElementTree.SubElement(element, "title")
        title.text = label


def _shorter(value: str, key: str) -> str:
    """Round coordinates to tenths of a pixel; the points of a line follow each other by their differences."""
    if key != "d" or not LINES.fullmatch(value):
        return NUMBER.sub(lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), value)
    at, parts = (0, 0), []
    for command, x, y in POINT.findall(value):
        to = round(10 * float(x)), round(10 * float(y))
        step = to if command == "M" else (to[0] - at[0], to[1] - at[1])
        parts.append(f"{command if command == 'M' else 'l'}{step[0] / 10:g} {step[1] / 10:g}")
        at = to
    return "".join(parts).replace(" -", "-") + ("Z" if value.endswith("Z") else "")
