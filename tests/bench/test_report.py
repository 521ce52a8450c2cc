"""The report: it stands alone, is well formed, and holds the figures."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from testtime.bench.grid import run_grid
from testtime.bench.protocol import Row
from testtime.bench.protocols import protocol
from testtime.bench.report import read_run, shares, text_table, write_report
from testtime.bench.svg import Point, Series, dot_chart, histogram, line_chart, scatter, ticks

VOID = {"meta", "br", "link", "hr", "img", "input"}


class Checker(HTMLParser):
    """Every element that is opened is closed, in order; ids are unique."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def checked(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    assert checker.open == []
    assert len(set(checker.ids)) == len(checker.ids)
    return checker


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("sklearn")
    small = replace(
        protocol("digits-open"),
        rows=(Row("Source", "Source"), Row("TENT", "Tent"), Row("PAF+KIP", "PAFKIP")),
        corruptions=("fog", "contrast"),
        limit=30,
        seeds=(0, 1),
        published={"TENT": {"Photographs": (12.34, 56.78, 90.12)}},
        source="a paper <of & ours>",
    ).narrowed(batch_size=20)
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert run_grid(small, ".", folder, say=lambda line: None) == []
    return folder


def test_the_page_stands_alone_and_is_well_formed(run_folder: Path) -> None:
    html = write_report(run_folder).read_text()
    found = checked(html)
    assert html.startswith("<!DOCTYPE html>")
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#)", html)  # nothing is fetched
    assert "url(" not in html
    assert "http" not in html
    assert found.tags.count("svg") >= 2 + 2 + 3 + 1  # over time, filters, scores, cost
    assert 'name="viewport"' in html
    assert "prefers-color-scheme:dark" in html
    for svg in re.findall(r"<svg[^>]*>", html):
        assert 'role="img"' in svg


def test_the_page_holds_the_figures(run_folder: Path) -> None:
    html = write_report(run_folder).read_text()
    results = [json.loads(path.read_text()) for path in run_folder.glob("cells/*/result.json")]
    for label in ("Source", "TENT", "PAF+KIP"):
        of = [r["average"] for r in results if r["label"] == label]
        for measure in ("accuracy", "auroc"):
            values = [average[measure] for average in of]
            assert f"{np.mean(values):.1f}" in html
            assert f"±{np.std(values, ddof=1):.1f}" in html or np.std(values) == 0
    assert "12.34" in html
    assert "a paper &lt;of &amp; ours&gt;" in html
    assert "known images wrongly maximised" in html
    assert results[0]["config"]["facts"]["digits"] in html


def test_the_text_table(run_folder: Path) -> None:
    lines = text_table(read_run(run_folder)).splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["Source", "TENT", "PAF+KIP"]
    run = read_run(run_folder)
    assert lines[2].split()[1] == f"{np.mean(run.values('Source', 'Photographs', 'accuracy')):.1f}"


def test_a_folder_that_is_no_run_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no run\.json"):
        read_run(tmp_path)


def test_charts_are_well_formed_and_say_what_they_show() -> None:
    nan = float("nan")
    chart = line_chart(
        [Series("a<b", [0.5, 1.5, 2.5], [1.0, nan, 3.0], 1), Series("c", [0.5, 1.5], [2.0, 2.0])],
        "title",
        "told",
        "%",
        [(0, "fog"), (1, "snow & ice")],
    )
    checked(chart)
    assert "a&lt;b" in chart
    assert "snow &amp; ice" in chart
    assert len(re.findall(r'd="M[^"]*M', chart)) == 1  # NaN breaks the line
    checked(scatter([Point("a", 1, 50, 1.0, 1), Point("b", 40, 60)], "t", "d", "x", "y"))
    checked(histogram([0.5, 0.5], [0.0, 1.0], "t", "d"))
    assert line_chart([], "t", "d", "%") == ""
    assert scatter([], "t", "d", "x", "y") == ""
    drawn = dot_chart(
        [Point("a", 20, 0, 2.0, 1), Point("b & c", 30, 0, 0.0, 1), Point("a", 40, 0, colour=2)], "t", "d", "x"
    )
    checked(drawn)
    places = [float(v) for v in re.findall(r'cx="([\d.]+)"', drawn)]
    assert places[2] == pytest.approx((places[0] + places[1]) / 2, abs=0.1)  # a: 20 and 40, b & c: 30
    assert "b &amp; c" in drawn
    assert drawn.count("whisker") == 1
    assert dot_chart([Point("a", float("nan"), 0)], "t", "d", "x") == ""


def test_a_chart_has_bands_numbers_and_names_where_asked() -> None:
    line = Series("S4T", [0, 20, 40], [0.0, 5.0, 10.0], 2, (0.0, 1.0, 2.0))
    chart = line_chart([line], "t", "d", "%", x_unit="steps", width=400, named=False)
    checked(chart)
    assert len(re.findall(r'class="band c2" d="M[^"]*Z"', chart)) == 1
    assert re.findall(r'y="300"[^>]*>(\d+)<', chart) == ["0", "5", "10", "15", "20", "25", "30", "35", "40"]
    assert ">steps<" in chart
    assert 'class="label' not in chart
    chart = line_chart([line], "t", "d", "%", x_unit="noise", x_names=("a", "b"))
    assert ">a<" in chart
    assert ">20<" not in chart
    plain = scatter([Point("a", -0.5, 50), Point("b", 0.5, 60)], "t", "d", "x", "y", logarithmic=False)
    checked(plain)
    assert ">0.5<" in plain
    assert "×" not in plain


def test_ticks_are_round_and_inside() -> None:
    assert ticks(3, 97) == [20.0, 40.0, 60.0, 80.0]
    assert ticks(0.1, 0.32) == [0.1, 0.15, 0.2, 0.25, 0.3]


def test_histogram_shares_sum_to_one_and_ignore_what_is_not_finite() -> None:
    rng = np.random.default_rng(0)
    known, unknown = shares(np.append(rng.normal(0, 1, 500), np.nan), rng.normal(3, 1, 300))
    assert sum(known) == pytest.approx(1, abs=1e-3)
    assert sum(unknown) == pytest.approx(1, abs=1e-3)
    middle = np.arange(len(known))
    assert np.dot(middle, known) < np.dot(middle, unknown)
