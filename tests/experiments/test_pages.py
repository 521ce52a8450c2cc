"""The page of a run: its tables, what is missing, and how it was made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from toy_family import Toy

from testtime.experiments import Request, read_run, run_experiment
from testtime.experiments.pages import unfinished
from testtime.report import page_html

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
