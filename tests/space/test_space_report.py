"""The page of an analysis: figures, bars, the diagonal."""

import json

import pytest

from testtime.space.analyses import ANALYSES
from testtime.space.measures import family_of
from testtime.space.presets import PRESETS
from testtime.space.report import cells, text_table, write_report


def results(analysis, value):
    found = []
    for seed in (0, 1):
        for i, entry in enumerate(analysis.entries(PRESETS["tiny"])):
            found.append(
                {
                    "row": entry.row,
                    "column": entry.column,
                    "seed": seed,
                    "value": value(i, entry) + seed,
                    "IoU": {"wall": 50.0 + i, "bed": None},
                }
            )
    return found


def write(folder, name, value):
    folder.mkdir()
    about = {
        "analysis": name,
        "preset": "tiny",
        "command": ["testtime", "space", "bench", name],
        "machine": {"machine": "a machine"},
        "results": results(ANALYSES[name], value),
    }
    (folder / "results.json").write_text(json.dumps(about))
    return folder


def test_points_that_share_a_cell_are_averaged_by_seed():
    found = cells(results(ANALYSES["specialise"], lambda i, e: float(i)))
    assert found["the test house", "1"] == [0.0, 1.0]
    assert found["houses never seen", "1"] == [2.5, 3.5]  # points 1 to 4


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{",
        '{"analysis": 3}',
        "[" * 10_000,
        '{"analysis": "none", "preset": "", "command": [], "machine": {}, "results": []}',
    ],
)
def test_damaged_results_are_named(text, tmp_path):
    (tmp_path / "results.json").write_text(text)
    with pytest.raises(ValueError, match=r"results\.json is damaged .*; delete it and run the same"):
        write_report(tmp_path)


def test_the_page_of_the_main_table(tmp_path):
    text = write_report(write(tmp_path / "main", "main", lambda i, e: 20.0 + 5 * i)).read_text()
    assert (
        "Highest is <strong>The pseudo-labeller itself</strong> with 45.5 ±0.7 (mIoU in %, 2 seeds)." in text
    )
    assert '<td class="bar best" style="--w:100%">45.5 ±0.7</td>' in text
    assert '<td class="bar" style="--w:45%">20.5 ±0.7</td>' in text
    assert "testtime space bench main" in text
    assert "<td>54.0</td>" in text  # the wall of the fifth row


def test_the_page_of_the_houses_compares_the_diagonal(tmp_path):
    own = lambda i, e: 40.0 if e.row[-1] == e.column[-1] else 30.0  # noqa: E731
    text = write_report(write(tmp_path / "spaces", "spaces", own)).read_text()
    assert "worth 40.5 % mIoU in the house it was pre-trained in and 30.5 % in another (2 seeds)" in text
    assert "a difference of +10.0 points" in text


def test_columns_that_are_numbers_are_drawn(tmp_path):
    text = write_report(write(tmp_path / "worth", "worth", lambda i, e: 30.0 + i)).read_text()
    assert text.count("<svg") == 1
    assert "other houses" in text


def test_the_text_table():
    analysis = ANALYSES["mixin"]
    text = text_table(analysis, results(analysis, lambda i, e: 10.0 * i))
    assert text.splitlines()[0] == "What do the transfer set's pictures add? mIoU in %, 2 seeds"
    assert text.splitlines()[-1].split("  ")[-1] == "20.5 ±0.7"


def test_no_results(tmp_path):
    with pytest.raises(ValueError, match=r"no results\.json; testtime space bench makes one"):
        write_report(tmp_path)


def test_every_analysis_keeps_compute_and_asks_for_what_is_measured():
    tiny = PRESETS["tiny"]
    for analysis in ANALYSES.values():
        entries = analysis.entries(tiny)
        cells_of = [(e.row, e.column, e.point) for e in entries]
        assert len(set(cells_of)) == len(entries)
        for entry in entries:
            family_of(entry.measure)
            point = entry.point
            if point.places and point.places != tiny.outside.places:
                least = 0.99 * tiny.frames if point.places[0].whole else tiny.frames // 5
                assert tiny.space(point.places).frames >= least


def test_floor_and_ceiling_place_the_others(tmp_path):
    text = write_report(write(tmp_path / "summary", "summary", lambda i, e: 20.0 + 5 * i)).read_text()
    assert "<td>0.50</td>" in text  # the fourth of seven rows
    analysis = ANALYSES["summary"]
    lines = text_table(analysis, results(analysis, lambda i, e: 20.0 + 5 * i)).splitlines()
    assert [line.split()[-1] for line in lines[2:]] == [
        "0.00",
        "0.17",
        "0.33",
        "0.50",
        "0.67",
        "0.83",
        "1.00",
    ]


def test_columns_of_their_own_measure_have_bars_of_their_own(tmp_path):
    text = write_report(write(tmp_path / "tasks", "tasks", lambda i, e: 2.0 if i % 4 else 40.0)).read_text()
    assert text.count('class="bar best"') == 16


def test_an_analysis_that_is_not_finished_says_so_first(tmp_path):
    folder = write(tmp_path / "main", "main", lambda i, e: 20.0 + 5 * i)
    about = json.loads((folder / "results.json").read_text())
    count = len(about["results"])
    (folder / "results.json").write_text(json.dumps({**about, "planned": count}))
    assert "Highest is" in write_report(folder).read_text()
    (folder / "results.json").write_text(json.dumps({**about, "planned": count + 3}))
    text = write_report(folder).read_text()
    assert f"This analysis is not finished</strong>: {count} of {count + 3} points have a result" in text
    assert "Highest" not in text
    assert 'class="bar best"' not in text


def test_rows_that_are_equal_in_print_are_all_the_highest(tmp_path):
    text = write_report(write(tmp_path / "main", "main", lambda i, e: 20.0 + 0.001 * i)).read_text()
    assert "Highest are <strong>" in text
    assert text.count('class="bar best"') == len({e.row for e in ANALYSES["main"].entries(PRESETS["tiny"])})
