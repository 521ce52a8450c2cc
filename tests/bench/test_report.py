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
from testtime.bench.protocols import PROTOCOLS, protocol
from testtime.bench.report import Run, page, read_run, shares, text_table, write_report
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


def changed(run: Run, averages: dict[str, dict[str, float]] | None = None, **about: object) -> Run:
    """The run with other facts, and other averages by method."""
    results = tuple(
        {**result, "average": {**result["average"], **(averages or {}).get(result["label"], {})}}
        for result in run.results
    )
    return Run(run.folder, {**run.about, **about}, results)


def text_of(run: Run, element: str) -> str:
    found = re.search(element, page(run), re.DOTALL)
    assert found
    return re.sub(r"<[^>]*>", "", found[1])


LEAD = r'<p class="lead">(.*?)</p>'


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_has_a_page_with_its_stream(run_folder: Path, name: str) -> None:
    one, run = PROTOCOLS[name], read_run(run_folder)
    column = {**run.about["columns"][0], "open_set": one.columns[0].open_set}
    facts = {
        key: getattr(one, key) for key in ("order", "rounds", "reset", "returns", "speed", "target", "pace")
    }
    lead = text_of(changed(run, protocol=name, title=one.title, columns=[column], **facts), LEAD)
    arrival = {
        "continual": "2 corruptions of severity 5, one after the other",
        "gradual": "2 corruptions, one after the other, whose severity rises from 1 to 5 and falls again",
        "mixed": "2 corruptions of severity 5, shuffled into one",
        "correlated": "2 corruptions of severity 5, one after the other, the images of a class in succession",
        "mixed-correlated": "2 corruptions of severity 5, shuffled into one, the images of a class in succession",
        "label-shift": "in each of which every class dominates for a time",
        "wandering": "blends of two of 2 corruptions whose severities change all the time, such that the source model is "
        "right in about 50 %",
    }[one.order]
    if one.rounds == 1:
        assert arrival in lead
    else:
        assert "2 corruptions of severity 5, 4 times over, one after the other" in lead
    assert ("a reset before each domain" if one.reset else "never a reset") in lead
    assert ("the clean images at last" in lead) == one.returns
    assert ("too slow for" in lead) == (one.speed is not None)
    assert ("1 unknown for each known one" in lead) == (one.columns[0].open_set is not None)
    assert ("in all" in lead) == (one.order in ("mixed", "mixed-correlated", "wandering"))
    assert "30 known images in" in lead  # those of this run, whatever the protocol has
    html = page(changed(run, protocol=name, title=one.title, columns=[column], **facts))
    assert ("the state is reset at each" in html) == (one.reset and one.order == "continual")
    assert "darker" not in html


def test_the_title_is_the_protocols_only_if_the_run_is(run_folder: Path) -> None:
    run = read_run(run_folder)
    assert text_of(run, "<h1>(.*?)</h1>") == "digits-open, changed"
    lead = text_of(run, LEAD)
    assert (
        "Changed from the protocol digits-open: limit 30 instead of 250; 2 of 15 corruptions; seeds 0, 1 instead of 0; "
        "3 of 13 methods; batches of 20 instead of batches of 100."
    ) in lead
    known = PROTOCOLS["digits-open"]
    whole = {
        "corruptions": list(known.corruptions),
        "rows": [{"label": row.label, "method": row.method, "arguments": {}} for row in known.rows],
        "columns": [{**run.about["columns"][0], "batch_size": 100}],
    }
    assert (
        text_of(changed(run, **whole), "<h1>(.*?)</h1>") == known.title
    )  # images and seeds are no part of it
    own = changed(run, protocol="my own", title="Mine")
    assert text_of(own, "<h1>(.*?)</h1>") == "Mine"
    assert "Changed from" not in text_of(own, LEAD)
    notes = changed(run, columns=[{**run.about["columns"][0], "note": "A <remark>."}])
    assert "A &lt;remark&gt;." in page(notes)


def test_no_note_of_a_protocol_counts_images() -> None:
    for one in PROTOCOLS.values():
        for text in (one.note, one.title, *(column.note for column in one.columns)):
            assert not re.search(r"images for each|[0-9,]+ (closed-set )?images", text), (one.name, text)
        assert "published" not in one.note or one.published or "as published" in one.note


def test_a_tie_is_not_called_a_win(run_folder: Path) -> None:
    run = read_run(run_folder)
    tie = {"TENT": {"h_score": 78.24}, "PAF+KIP": {"h_score": 78.16}, "Source": {"h_score": 60.0}}
    lead = text_of(changed(run, tie), LEAD)
    assert lead.startswith("TENT and PAF+KIP share the highest H-score, 78.2 %; next is Source with 60.0 %.")
    html = page(changed(run, tie))
    assert html.count('<tr class="first">') == 2
    for row in ("TENT", "PAF+KIP"):
        assert re.search(rf'<th scope="row">{re.escape(row)}</th>.*?<td class="h best">78.2', html)
    same = changed(run, {name: {"h_score": 70.0} for name in ("TENT", "PAF+KIP", "Source")})
    assert text_of(same, LEAD).startswith(
        "Source, TENT and PAF+KIP: H-score 70.0 %, no difference between them."
    )
    won = changed(run, {**tie, "TENT": {"h_score": 78.31}})
    assert text_of(won, LEAD).startswith("TENT has the highest H-score, 78.3 %; next is PAF+KIP with 78.2 %.")


def test_settings_are_won_where_they_are_won_alone(run_folder: Path) -> None:
    run = read_run(run_folder)
    values = {"a": (70.0, 70.0, 60.0), "b": (80.0, 70.04, 60.0), "c": (80.04, 60.0, None)}
    column = run.about["columns"][0]
    results = []
    for row, by_column in zip(("Source", "TENT", "PAF+KIP"), zip(*values.values(), strict=True), strict=True):
        for name, value in zip(values, by_column, strict=True):
            if value is not None:
                model = next(r for r in run.results if r["label"] == row)
                results.append({**model, "column": name, "average": {**model["average"], "h_score": value}})
    several = Run(
        run.folder,
        {**run.about, "columns": [{**column, "name": n} for n in values], "cells": list("12345678")},
        tuple(results),
    )
    assert several.values("Source", "c", "h_score") == [80.04]
    lead = text_of(several, LEAD)
    # a: Source and TENT are equal in print; b: Source alone; c: Source alone.
    assert lead.startswith(
        "Source has the highest H-score, 76.7 % on average, and is first in 2 of 3 settings and one of the first in 1;"
    )
    table = page(several)
    assert table.index("mean H") < table.index('<th colspan="3" scope="colgroup">a</th>')


def test_an_unfinished_run_says_so_first_and_names_no_winner(run_folder: Path) -> None:
    whole = read_run(run_folder)
    run = Run(whole.folder, whole.about, whole.results[:-1])
    lead = text_of(run, LEAD)
    assert lead.startswith("This run is not finished: 5 of 6 cells have a result.")
    assert "highest" not in lead
    html = page(run)
    assert "best" not in re.sub(
        r"<style>.*?</style>", "", html.split("<main>")[1].split('id="made"')[0]
    ).replace("Bold is the best", "x")
    assert '<tr class="first">' not in html
    assert text_table(run).splitlines()[-1] == "Not finished: 5 of 6 cells have a result."
    assert "Not finished" not in text_table(whole)


def test_images_for_each_domain_are_those_of_the_cells(run_folder: Path) -> None:
    run = read_run(run_folder)
    results = tuple({**r, "images": 20} if r["label"] == "PAF+KIP" else r for r in run.results)
    lead = text_of(Run(run.folder, run.about, results), LEAD)
    assert "30 known images in each (10 for PAF+KIP)" in lead
    assert "<sup>†</sup>" in page(Run(run.folder, run.about, results))
    assert "<sup>†</sup>" not in page(run)


def test_times_of_an_earlier_version_have_a_note(run_folder: Path) -> None:
    run = read_run(run_folder)
    assert "An earlier version ran cells" not in page(run)
    (one,) = run.about["baselines"]
    assert f"A plain forward of 20 images in {one['ms']['20']:.3g} ms is the unit" in page(run)
    old = tuple({**r, "cost": {**r["cost"], "plain_ms": 2.0, "relative": 1234.5}} for r in run.results)
    html = page(Run(run.folder, {k: v for k, v in run.about.items() if k != "baselines"}, old))
    assert "An earlier version ran cells of this page" in html
    assert "<td>1234.5×</td>" in html


def test_a_page_without_what_was_not_measured(run_folder: Path) -> None:
    run = read_run(run_folder)
    nothing = tuple({**r, "cost": {**r["cost"], "peak_memory": None}} for r in run.results)
    bare = {**run.about, "baselines": []}
    html = page(Run(run.folder, bare, tuple({**r, "folder": Path("nowhere")} for r in nothing)))
    checked(html)
    assert "<td>–×</td>" in html
    assert html.count("<td>–</td></tr>") >= 3  # the peak of each method
    assert "do not lie beside these results" in html


def test_labels_of_a_scatter_cover_nothing() -> None:
    crowd = [
        Point(f"a long name {i}", 300 + 3 * (i % 4), 8 + 0.1 * i, 2.0, i + 1 if i < 6 else 0)
        for i in range(14)
    ]
    drawn = scatter(crowd, "t", "d", "x", "y", width=330, height=300, logarithmic=False)
    checked(drawn)
    boxes = []
    for x, y, anchor, name in re.findall(
        r'<text class="label[^"]*" x="([\d.]+)" y="([\d.]+)" text-anchor="(\w+)">([^<]+)<', drawn
    ):
        long = 6.5 * len(name)
        left = float(x) - {"start": 0, "middle": long / 2, "end": long}[anchor]
        boxes.append((left, float(y) - 10, left + long, float(y) + 2))
    assert 3 <= len(boxes) < 14  # those without room are left out
    dots = [
        (float(x) - 5, float(y) - 5, float(x) + 5, float(y) + 5)
        for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)
    ]
    assert len(dots) == 14
    for i, a in enumerate(boxes):
        assert a[0] > 40
        assert a[2] < 330
        for b in boxes[:i] + dots:
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]
    heights = [float(v) for v in re.findall(r'class="whisker[^>]*y[12]="([\d.]+)"', drawn)]
    assert len(heights) == 6  # of the points with a colour
    assert all(0 < v < 254 for v in heights)


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
