"""The figures of the data are found again in the drawings."""

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest

from testtime import errors
from testtime.report import (
    Chart,
    Figure,
    Page,
    Point,
    Section,
    Series,
    drawing,
    heat_map,
    line_chart,
    page_html,
    row_chart,
    scatter,
    share_chart,
)
from testtime.report.lines import apart
from testtime.report.points import text_width

pytest.importorskip("altair", reason="the charts need testtime[report]")
pytest.importorskip("vl_convert", reason="the charts need testtime[report]")

import sample
from svg import elements, lines, named, path, texts

ROWS = [Point("a", 10.0, 0, 2.0, 1), Point("b", 30.0, 0, 0.0, 2), Point("c", -20.0, 0, 1.0)]


def affine(measured: list[float], data: list[float], tolerance: float = 0.2) -> float:
    """Check that places on paper are an affine function of the data; return its slope."""
    low, high = data.index(min(data)), data.index(max(data))
    slope = (measured[high] - measured[low]) / (data[high] - data[low])
    expected = [measured[low] + slope * (value - data[low]) for value in data]
    assert measured == pytest.approx(expected, abs=tolerance)
    return slope


@pytest.mark.parametrize("which", [0, 1])
def test_a_line_goes_through_its_points(which: int) -> None:
    x, y = [0.0, 1.0, 2.5, 7.0], [3.0, -4.0, 11.0, 5.5]
    chart = line_chart([Series("a", x, y, 3), Series("b", [0, 7], [0, 1])], title="t", y="unit", x="step")
    element, (points,) = lines(chart, which)["a"]
    assert affine([p[0] for p in points], x) > 0
    up = affine([p[1] for p in points], y)
    assert up < 0  # higher values are higher on the page
    assert element.get("stroke") == "var(--k3)"
    assert lines(chart, which)["b"][0].get("stroke") == "var(--quiet)"
    _, (quiet,) = lines(chart, which)["b"]
    assert [quiet[0][1], quiet[1][1]] == pytest.approx(
        [points[0][1] - 3 * up, points[0][1] - 2 * up], abs=0.2
    )
    assert chart is not None
    assert chart.description == "a: 5.50; b: 1.00"
    assert {"a: -4.00 at 1", "a: 11.00 at 2.5"} <= named(chart, which).keys()


def test_a_line_and_its_band_break_at_nan() -> None:
    y = [1.0, 2.0, math.nan, 4.0, 8.0]
    chart = line_chart([Series("a", range(5), y, 1, [0.5] * 5)], title="t", y="y")
    _, parts = lines(chart)["a"]
    assert [len(part) for part in parts] == [2, 2]
    upper_lower = next(path(e, at) for e, at, _ in elements(chart) if e.get("opacity") == "0.14")
    assert [len(part) for part in upper_lower] == [4, 4]
    slope = (parts[1][1][1] - parts[0][0][1]) / 7.0
    heights = sorted(y for _, y in upper_lower[0])
    assert heights == pytest.approx(
        sorted(parts[0][0][1] + slope * (v - 1.0) for v in (0.5, 1.5, 1.5, 2.5)), abs=0.2
    )


def test_marks_and_ends() -> None:
    series = [Series("low", [0, 1, 2], [1.0, 2.0, 1.0], 1), Series("lower", [0, 1, 2], [1.0, 2.0, 1.01], 2)]
    marks = [(0.0, "fog"), (1.0, "<b>&\"'</b>")]
    chart = line_chart(series, title="t", y="y", marks=marks)
    shown = texts(chart)
    assert {"fog", marks[1][1], "low", "lower"} <= shown.keys()
    ends = sorted(shown[name][1] for name in ("low", "lower"))
    assert all(b - a >= 14 for a, b in pairwise(ends))
    assert chart is not None
    assert chart.keys == (("low", "k1"), ("lower", "k2"))


@pytest.mark.parametrize(("grey", "key"), [(["last"], "last"), (["sixth", "last"], "2 others")])
def test_grey_lines_have_a_key(grey: list[str], key: str) -> None:
    drawn = [Series("first", [0, 1], [1.0, 2.0], 1), *(Series(name, [0, 1], [0.0, 1.0]) for name in grey)]
    chart = line_chart([*drawn, Series("empty", [], [])], title="t", y="y")
    assert chart is not None
    assert chart.keys == (("first", "k1"), (key, "k0"))


def test_lines_of_many_points_have_no_tooltip_for_each() -> None:
    chart = line_chart([Series("a", range(3000), [float(i % 50) for i in range(3000)], 1)], title="t", y="y")
    assert list(named(chart)) == []
    _, (points,) = lines(chart)["a"]
    assert len(points) == 3000
    affine([p[1] for p in points], [float(i % 50) for i in range(3000)])
    assert len(chart.drawings[0][0]) < 45_000  # type: ignore[union-attr]


def test_a_logarithmic_scatter() -> None:
    x, y = [1.0, 2.0, 8.0, 60.0], [60.0, 62.0, 61.0, 65.0]
    points = [Point(f"p{i}", a, b, 0.5, i) for i, (a, b) in enumerate(zip(x, y, strict=True))]
    chart = scatter(points, title="t", x="time", y="H, %", logarithmic=True, suffix="×")
    marks = named(chart)
    at = [next(place for told, (_, place) in marks.items() if told.startswith(p.name)) for p in points]
    assert affine([p[0] for p in at], [math.log(a) for a in x]) > 0
    assert affine([p[1] for p in at], y) < 0
    assert {"1×", "2×", "10×", "50×"} <= texts(chart).keys()
    assert "p3: 65.00 ±0.50 at 60.00×" in marks
    assert chart is not None
    assert chart.description.startswith("p0: 60.00 at 1.00×; p1: 62.00 at 2.00×")


@pytest.mark.parametrize("which", [0, 1])
def test_labels_of_a_scatter_cover_no_label_and_no_point(which: int) -> None:
    points = sample.points()
    chart = scatter(points, title="t", x="time", y="H, %")
    font = drawing.FONT
    names = {p.name for p in points}
    boxes = {
        name: (x, y - 0.5 * font, x + text_width(name), y)
        for name, (x, y) in texts(chart, which).items()
        if name in names
    }
    assert len(boxes) >= (24 if which == 0 else 6)
    assert {p.name for p in points if p.colour == 1} <= boxes.keys() or which == 1
    dots = [place for _, place in named(chart, which).values()]
    for (a, one), (b, other) in combinations(boxes.items(), 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (a, b)
    for name, box in boxes.items():
        assert not [d for d in dots if box[0] < d[0] < box[2] and box[1] < d[1] < box[3]], name
    # Each point that has no label still has its figures.
    assert len(dots) == len(points)


def test_thousands_of_points_are_drawn() -> None:
    points = [Point(f"p{i}", i % 71, (i * i) % 89) for i in range(2999)]
    points.append(Point("far", 100.0, 10.0, 0, 1))
    chart = scatter(points, title="t", x="x", y="y")
    assert len([e for e, _, _ in elements(chart) if e.tag == "path"]) == 3000
    assert "far" in texts(chart)
    assert chart is not None
    assert sum(len(drawing[0]) for drawing in chart.drawings) < 1_000_000


@pytest.mark.parametrize("bars", [False, True])
def test_rows_have_their_values_spread_and_published_value(bars: bool) -> None:
    chart = row_chart(ROWS, title="t", x="error, %", bars=bars)
    parts: dict[str, list[tuple[float, float]]] = {}
    for element, (x, _), told in elements(chart):
        if told:
            length = float(element.get("x2", 0)) if element.tag == "line" else 0.0
            extent = (x, x + length)
            parts.setdefault(told[0], []).append((min(extent), max(extent)))
    zero, unit = _axis(chart)
    at = {name: [((a - zero) / unit, (b - zero) / unit) for a, b in found] for name, found in parts.items()}
    assert (8.0, 12.0) in [tuple(round(v, 1) for v in pair) for pair in at["a"]]
    assert (-21.0, -19.0) in [tuple(round(v, 1) for v in pair) for pair in at["c"]]
    if not bars:
        assert {(10.0, 10.0)} < {tuple(round(v, 1) for v in pair) for pair in at["a"]}
    assert chart is not None
    assert chart.description == "a: 10.00 ±2.00; b: 30.00; c: -20.00 ±1.00"
    if bars:
        bounds = [
            sorted(_rectangle(e, place))
            for e, place, told in elements(chart)
            if told and "h" in e.get("d", "")
        ]
        found = sorted(((a - zero) / unit, (b - zero) / unit) for a, b in bounds)
        assert [pytest.approx(pair, abs=0.05) for pair in found] == [(-20.0, 0.0), (0.0, 10.0), (0.0, 30.0)]


def _axis(chart: Chart | None) -> tuple[float, float]:
    """The place of zero, and the length of a unit, from the numbers of the x axis."""
    numbers = {
        float(t.replace("\N{MINUS SIGN}", "-")): x
        for t, (x, _) in texts(chart).items()
        if re.fullmatch(r"[\N{MINUS SIGN}\d.]+", t)
    }
    low, high = min(numbers), max(numbers)
    unit = (numbers[high] - numbers[low]) / (high - low)
    return numbers[low] - low * unit, unit


def _rectangle(element: object, place: tuple[float, float]) -> tuple[float, float]:
    """The left and right end of a bar."""
    found = re.match(r"M(-?[\d.]+),(-?[\d.]+)h(-?[\d.]+)", element.get("d", ""))  # type: ignore[attr-defined]
    assert found
    return place[0] + float(found[1]), place[0] + float(found[1]) + float(found[3])


def test_settings_of_a_row_do_not_cover_each_other() -> None:
    points = [Point("a", 1.0, 0, 0, i + 1, name) for i, name in enumerate(("x", "y", "z"))]
    chart = row_chart([*points, Point("b", 2.0, 0, 0, 1, "x")], title="t", x="error")
    heights = [named(chart)[f"a, {name}: 1.00"][1][1] for name in ("x", "y", "z")]
    assert all(b - a > 6 for a, b in pairwise(heights))
    assert chart is not None
    assert chart.keys == (("x", "k1"), ("y", "k2"), ("z", "k3"))
    assert chart.keyed


def test_a_heat_map_is_the_stronger_the_larger_the_number() -> None:
    chart = heat_map(["r", "s"], ["a", "b"], [[0.0, 50.0], [100.0, math.nan]], title="t")
    strength = {told: float(e.get("opacity", 1)) for told, (e, _) in named(chart).items()}
    assert strength == {"r, a: 0.0": 0.08, "r, b: 50.0": pytest.approx(0.54), "s, a: 100.0": 1.0}
    assert {e.get("fill") for e, _ in named(chart).values()} == {"var(--heat)"}
    assert {"0.0", "50.0", "100.0"} <= texts(chart).keys()
    cell, label = named(chart)["s, a: 100.0"], texts(chart)
    assert label["s"][1] > label["r"][1]
    assert cell[0].tag == "path"


def test_a_diverging_heat_map_has_two_colours() -> None:
    chart = heat_map(["r"], ["a", "b", "c"], [[-4.0, 1.0, 2.0]], title="t", diverging=True)
    found = {told[-4:]: (e.get("fill"), float(e.get("opacity", 1))) for told, (e, _) in named(chart).items()}
    assert found == {
        "-4.0": ("var(--cold)", 1.0),
        " 1.0": ("var(--heat)", pytest.approx(0.31)),
        " 2.0": ("var(--heat)", pytest.approx(0.54)),
    }


def test_numbers_of_a_heat_map_that_do_not_fit_are_left_out() -> None:
    chart = heat_map(["r"], [f"c{i}" for i in range(100)], [[float(i) for i in range(100)]], title="t")
    assert not {"50.0", "99.0"} & texts(chart).keys()
    assert "r, c50: 50.0" in named(chart)
    assert chart is not None
    assert "r, c50: 50.0" in chart.description
    with pytest.raises(ValueError, match="expected 1 rows of 2 values"):
        heat_map(["r"], ["a", "b"], [[1.0]], title="t")


def test_shares_are_areas_over_their_bins() -> None:
    chart = share_chart(
        {"known": [0.5, 0.5, 0.0], "unknown": [0.0, 0.25, 0.75]}, title="t", ends=("low", "high")
    )
    known, unknown = (path(e, at)[0] for e, at, told in elements(chart) if told in ("known", "unknown"))
    base = max(y for _, y in known)
    highest = [base - min(y for _, y in area) for area in (known, unknown)]
    assert highest[0] / highest[1] == pytest.approx(0.5 / 0.75, abs=0.02)
    assert chart is not None
    assert chart.description == "known, unknown: common area 25 %"
    assert {"low", "high"} <= texts(chart).keys()


@pytest.mark.parametrize(
    "draw",
    [
        lambda: line_chart([Series("a", [0.0], [math.nan])], title="t", y="y"),
        lambda: line_chart([], title="t", y="y"),
        lambda: scatter([Point("a", 0.0, 1.0)], title="t", x="x", y="y", logarithmic=True),
        lambda: row_chart([Point("a", math.nan)], title="t", x="x"),
        lambda: heat_map(["a"], ["b"], [[math.nan]], title="t"),
        lambda: share_chart({}, title="t", ends=("a", "b")),
    ],
)
def test_nothing_is_drawn_of_nothing(draw: Callable[[], Chart | None]) -> None:
    assert draw() is None


@pytest.mark.parametrize("value", [0.0, 5.0, 100.0, 1e-9, 1e7])
def test_a_single_value_has_a_scale(value: float) -> None:
    for chart in (
        line_chart([Series("a", [1.0], [value], 1)], title="t", y="y", x="x"),
        scatter([Point("a", 1.0, value, 0, 1)], title="t", x="x", y="y"),
        row_chart([Point("a", value, 0, 0, 1)], title="t", x="x", bars=True),
    ):
        assert chart is not None
        assert "NaN" not in chart.drawings[0][0]
        assert chart.drawings[0][1] < 1100


def test_a_drawing_has_the_colours_of_the_page_and_no_font_of_its_own(charts: list[Chart]) -> None:
    style = (Path(drawing.__file__).parent / "templates" / "style.css").read_text(encoding="utf-8")
    for chart in charts:
        section = Section("a", "A", "A", [Figure(chart, "")])
        svg = "".join(re.findall("<svg.*?</svg>", page_html(Page("t", "k", "l", [section])), re.DOTALL))
        assert set(re.findall(r"var\(--(\w+)\)", svg)) <= set(re.findall(r"--(\w+):", style))
        assert not re.findall(r"#[0-9a-f]{3,8}\b|rgb\(", svg)
        assert "font-family" not in svg
        assert "<script" not in svg
        assert " on" not in re.sub(r">[^<]*<", "><", svg).replace(" opacity", "")
        assert svg.count('role="img"') == len(chart.drawings)
        ids = re.findall(r' id="(\w+)"', svg)
        assert len(ids) == len(set(ids)) == 2 * len(chart.drawings)
        assert re.findall(r'aria-(?:labelledby|describedby)="(\w+)"', svg) == ids


def test_drawings_are_the_same_every_time() -> None:
    assert sample.lines() == sample.lines()


def test_the_specifications_follow_the_schema(monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = drawing.specification, []

    def checked(*drawn: Any) -> dict[str, Any]:
        found = real(*drawn)
        drawing.altair().LayerChart.from_dict(found, validate=True)
        seen.append(found)
        return found

    monkeypatch.setattr(drawing, "specification", checked)
    line_chart([Series("a", [0, 1], [1, 2], 2, [1, 1])], title="t", y="y", x="x", small=True)
    scatter(sample.points()[:4], title="t", x="x", y="y", small=True)
    row_chart(ROWS, title="t", x="x", small=True)
    heat_map(["a"], ["b"], [[1.0]], title="t", small=True)
    share_chart({"a": [1.0]}, title="t", ends=("a", "b"))
    assert len(seen) == 5


def test_importing_the_package_loads_no_chart_library() -> None:
    program = (
        "import sys, json, testtime.report; print(json.dumps(sorted({m.split('.')[0] for m in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert not {"altair", "vl_convert", "jinja2", "torch", "pandas"} & set(json.loads(done.stdout))


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    drawing.altair.cache_clear()
    monkeypatch.setattr(errors, "_installed", lambda module: module != "vl_convert")
    with pytest.raises(
        ImportError,
        match=r"vl-convert-python is not installed; it comes with testtime\[report\]: pip install",
    ):
        row_chart(ROWS, title="t", x="x")


def test_lines_of_one_name_keep_their_own_ends() -> None:
    lines = [Series("a", [0, 1], [0, 1], 1), Series("a", [0, 1], [0, 9], 2)]
    chart = line_chart(lines, title="t", y="y")
    assert chart is not None
    assert chart.description == "a: 1.00; a: 9.00"


def test_a_colour_that_is_not_there_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a colour from 0 to 6, got 7"):
        line_chart([Series("a", [0, 1], [1, 2], 7)], title="t", y="y")


@pytest.mark.parametrize(
    ("odd", "kept"),
    [
        ("\x00", ""),
        ("\x1b[31m", "[31m"),
        ("\x7f\x9f", ""),
        ("\ufffe", ""),
        ("\u2028", ""),
        ("\udce9", ""),
        ("\n\t", ""),
        ("\\u0000'\"`${1}", "\\u0000'\"`${1}"),
    ],
)
def test_no_name_ends_the_process(odd: str, kept: str) -> None:
    name = f"a {odd} b"
    drawn = [
        row_chart([Point(name, 1.0, 0, 0, 1, name)], title=name, x=name),
        line_chart([Series(name, [0, 1], [1, 2], 1)], title=name, y=name, x=name, x_names=[name, "c"]),
        scatter([Point(name, 1, 1, 0, 1)], title=name, x=name, y=name, suffix=odd),
        heat_map([name], [name], [[1.0]], title=name),
        share_chart({name: [1.0]}, title=name, ends=(name, "c")),
    ]
    for chart in drawn:
        assert " ".join(f"a {kept} b".split()) in {" ".join(text.split()) for text in texts(chart)}


def test_places_of_names_are_found_whatever_their_size() -> None:
    marks = [(1234567.25, "first"), (1234569.25, "second")]
    chart = line_chart([Series("a", [1234567.25, 1234570.0], [1.0, 2.0], 1)], title="t", y="y", marks=marks)
    assert {"first", "second"} <= texts(chart).keys()


def test_ends_are_moved_apart_inside_the_range() -> None:
    assert apart([0.0, 100.0], 10.0, 0.0, 100.0) == [0.0, 100.0]
    assert apart([50.0, 50.0, 50.0], 10.0, 0.0, 100.0) == [40.0, 50.0, 60.0]
    assert apart([99.0, 98.0], 10.0, 0.0, 100.0) == [100.0, 90.0]
    assert apart([1.0, 0.0], 10.0, 0.0, 100.0) == [10.0, 0.0]
    assert apart([30.0, 20.0, 10.0], 10.0, 0.0, 100.0) == [30.0, 20.0, 10.0]
    assert apart([50.0, 52.0, 62.0], 10.0, 0.0, 100.0) == pytest.approx([134 / 3, 164 / 3, 194 / 3])
    assert apart([5.0, 6.0], 10.0, 0.0, 8.0) == [-2.0, 8.0]  # no room
    assert apart([], 10.0, 0.0, 100.0) == []
