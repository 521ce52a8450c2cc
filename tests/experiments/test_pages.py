"""The page of a run: its tables, what is missing, and how it was made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toy_family import Toy

from testtime.experiments import Request, read_run, run_experiment
from testtime.experiments.pages import run_page, table_blocks, unfinished, winner
from testtime.experiments.run import RunFolder
from testtime.report import Section, page_html
from testtime.report.markup import plain

ASKED = Request("toy", precision="float32", seeds=(0,))


def silent(line: str) -> None:
    return None


def test_the_page_of_a_run_holds_its_table_and_how_it_was_made(tmp_path: Path) -> None:
    command = ["testtime", "run", "toy"]
    run_experiment(Toy(), ASKED, tmp_path / "run", command=command, say=silent)
    html = page_html(Toy().page(read_run(tmp_path / "run")))
    assert "<h1>Numbers</h1>" in html
    for value in ("0.5", "1.5", "2.5", "testtime run toy", "digest of numbers", "float32"):
        assert value in html
    assert "Not finished" not in html


def test_an_unfinished_run_says_what_continues_it_and_calls_nothing_the_best(tmp_path: Path) -> None:
    toy = Toy(bad=None)
    run_experiment(toy, ASKED, tmp_path / "run", command=["testtime", "run", "toy <1>"], say=silent)
    run = read_run(tmp_path / "run")
    assert str(unfinished(run)) == (
        "3 of 4 cells have a result; <code>testtime run toy &lt;1&gt;</code> continues it. "
        "Nothing is called the best before all have one."
    )
    html = page_html(toy.page(run))
    assert "<strong>Not finished.</strong> 3 of 4 cells" in html
    assert 'class="best"' not in html


def test_a_family_that_does_not_compare_runs_says_so(tmp_path: Path) -> None:
    run_experiment(Toy(), replace(ASKED, rows=("base",)), tmp_path / "run", say=silent)
    runs = [read_run(tmp_path / "run")] * 2
    with pytest.raises(ValueError, match="runs of the family toy are not compared; give one run"):
        Toy().comparison_page(runs)


def test_the_winner_is_named_as_it_is_printed() -> None:
    values = {"TENT": 78.24, "PAF+KIP": 78.16, "Source": 60.0}

    def told(*args: object, **more: object) -> str:
        return plain(winner(*args, **more))  # type: ignore[arg-type]

    assert told(values, "H-score") == (
        "TENT and PAF+KIP share the highest H-score, 78.2 %; next is Source with 60.0 %."
    )
    assert told({**values, "TENT": 78.31}, "H-score", base="Source") == (
        "TENT has the highest H-score, 78.3 %; next is PAF+KIP with 78.2 %. The model without adaptation has 60.0 %."
    )
    assert told(dict.fromkeys(values, 70.0), "accuracy") == (
        "TENT, PAF+KIP and Source: accuracy 70.0 %, no difference between them."
    )
    assert told({"TENT": 70.0}, "accuracy") == "TENT: accuracy 70.0 %."
    columns = [
        {"Source": 70.0, "TENT": 80.0},
        {"Source": 70.0, "TENT": 70.04},
        {"Source": 9.0},
        {"Source": float("nan")},
    ]
    assert told({"Source": 75.0, "TENT": 76.7}, "H-score", columns, names={"TENT": "TENT†"}) == (
        "TENT† has the highest H-score, 76.7 % on average, and is first in 1 of 3 settings and one of the first in 1; "
        "next is Source with 75.0 %."
    )


def test_units_that_no_cell_shows_stay_when_another_command_plans_others(tmp_path: Path) -> None:
    run_experiment(Toy(), ASKED, tmp_path / "run", say=silent)
    run_experiment(Toy(), replace(ASKED, seeds=(1,)), tmp_path / "run", say=silent)
    before = read_run(tmp_path / "run")
    plan = Toy().plan(replace(before.request, seeds=(1,)))
    RunFolder(tmp_path / "run").write(Toy(), before.request, plan, before.about["sessions"][0])
    run = read_run(tmp_path / "run")
    assert run.other("rate 0") == before.other("rate 0") == {"rate": 0.5}
    assert run.other("rate 1") == {"rate": 10.5}


def test_remarks_on_the_run_stand_once_on_its_page(tmp_path: Path) -> None:
    run_experiment(Toy(), ASKED, tmp_path / "run", say=silent)
    run = read_run(tmp_path / "run")
    resources = {"images": {"prefers": "public images"}}
    about = {**run.about, "resources": resources, "used": {"images": "drawn ones"}}
    changed = replace(run, about=about)
    (table,) = Toy().tables(changed)
    told = "images: drawn ones stands in for public images."
    assert told in table.text()
    sections = [Section(f"s{i}", "", "", table_blocks(table)) for i in range(3)]
    html = page_html(run_page(changed, "A lead.", sections))
    assert html.count(told) == 1
    assert html.count("1 seed") == 3  # what is said of a table stays with it
