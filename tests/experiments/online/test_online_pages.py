"""The page and the tables of a run: the figures are those of its results, and the words follow the run."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_online import asked, finished, results
from small_online import run as run_small

from testtime import evaluation
from testtime.errors import DataError
from testtime.experiments import Run, read_run
from testtime.experiments.online import listing, pages
from testtime.experiments.online.experiment import online
from testtime.experiments.online.pages import main_table, online_page
from testtime.experiments.online.results import Results, remark_on_steps
from testtime.metrics import score_shares
from testtime.report import page_html
from testtime.report.markup import plain

pytest.importorskip("sklearn", reason="the embedded data come with testtime[demo]")
REQUEST = asked(rows=("Source", "TENT", "PAF+KIP"), seeds=(0, 1))
PUBLISHED = {"TENT": {"Photographs": [12.34, 56.78, 90.12]}}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    found = finished(tmp_path_factory.mktemp("runs") / "run", REQUEST)
    return changed(found, published=PUBLISHED, source="a paper <of & ours>")


def changed(run: Run, averages: Mapping[str, Mapping[str, Any]] | None = None, **facts: Any) -> Run:
    """The run with other facts, and other averages by method."""
    labels = {cell["unit"]: cell["row"] for cell in run.about["cells"]}
    found = {}
    for address, content in run.results.items():
        result, more = content["result"], (averages or {}).get(labels.get(address, ""), {})
        if more:
            result = {**result, "average": {**result["average"], **more}}
        found[address] = {**content, "result": result}
    about = dict(run.about)
    about |= {
        name: facts.pop(name) for name in ("experiment", "title", "source", "note", "rows") if name in facts
    }
    stream = {name: facts.pop(name) for name in [*facts] if name in listing.STREAM}
    about["about"] = {**about["about"], **facts, "stream": {**about["about"]["stream"], **stream}}
    return replace(run, about=about, results=found)


def with_results(run: Run, change: Any) -> Run:
    """The run with changed results of its cells; None leaves one out."""
    labels = {cell["unit"]: cell["row"] for cell in run.about["cells"]}
    found = {}
    for address, content in run.results.items():
        result = change(labels[address], dict(content["result"])) if address in labels else content["result"]
        if result is not None:
            found[address] = {**content, "result": result}
    return replace(run, results=found)


def html(run: Run) -> str:
    return page_html(online_page(Results(run)))


def lead(run: Run) -> str:
    return plain(pages._lead(Results(run)))


def test_the_page_stands_alone_and_holds_the_figures(run: Run) -> None:
    page = html(run)
    assert not re.search(r"(src|href)\s*=\s*[\"'](?!#)", page)  # nothing is fetched
    assert page.count("<svg") >= 2 * (2 + 2 + 1) + 3  # over time, filters and cost in two widths; scores
    for label in ("Source", "TENT", "PAF+KIP"):
        for measure in ("accuracy", "auroc"):
            values = [r["average"][measure] for (row, _, _), r in results(run.folder).items() if row == label]
            assert f"{np.mean(values):.1f}" in page
            assert f"±{np.std(values, ddof=1):.1f}" in page or np.std(values) == 0
    assert "12.34" in page
    assert "a paper &lt;of &amp; ours&gt;" in page
    assert "Known images taken for unknown, and pushed towards doubt" in page
    assert run.about["facts"]["digits"] in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(set(ids)) == len(ids)


def test_the_table_for_a_terminal(run: Run) -> None:
    lines = main_table(Results(run)).text().splitlines()
    assert [line.split()[0].rstrip("†") for line in lines[4:7]] == ["Source", "TENT", "PAF+KIP"]
    values = Results(run).values("Source", "Photographs", "accuracy")
    assert lines[4].split()[1] == f"{np.mean(values):.1f}"
    assert "(12.34)" in lines[5]


def test_the_figures_are_the_headline_and_the_mistakes_over_time(run: Run) -> None:
    charts = online("digits-open").figures(run)
    assert [chart and chart.title for chart in charts] == [
        "H-score over time · Photographs",
        "Known images taken for unknown, and pushed towards doubt · Photographs",
        "Unknown images taken for known, and learned from · Photographs",
    ]
    without = with_results(run, lambda _, result: {**result, "filters": {"all": {}, "time": {}}})
    assert [chart is None for chart in online("digits-open").figures(without)] == [False, True, True]


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("name", listing.entries())
def test_every_experiment_has_a_page_with_its_stream(run: Run, name: str) -> None:
    entry = listing.entries()[name]
    columns = [{**run.about["about"]["columns"][0], "open_set": entry["columns"][0]["open_set"]}]
    facts = {
        key: entry.get(key) for key in ("order", "rounds", "reset", "returns", "speed", "target", "pace")
    }
    one = changed(run, experiment=name, title=entry["title"], columns=columns, **facts)
    text = lead(one)
    arrival = {
        "continual": "2 corruptions of severity 5, one after the other",
        "gradual": "2 corruptions, one after the other, whose severity rises from 1 to 5 and falls again",
        "mixed": "2 corruptions of severity 5, shuffled into one",
        "correlated": "2 corruptions of severity 5, one after the other, the images of a class in succession",
        "mixed-correlated": "2 corruptions of severity 5, shuffled into one, the images of a class in succession",
        "label-shift": "in each of which every class dominates for a time",
        "wandering": "blends of two of 2 corruptions whose severities change all the time, such that the source model is "
        "right in about 50 %",
    }[entry["order"]]
    assert (
        arrival if entry["rounds"] == 1 else "2 corruptions of severity 5, 4 times over, one after the other"
    ) in text
    assert ("a reset before each domain" if entry["reset"] else "never a reset") in text
    assert ("the clean images at last" in text) == entry["returns"]
    assert ("too slow for" in text) == (entry.get("speed") is not None)
    assert ("1 unknown for each known one" in text) == (entry["columns"][0]["open_set"] is not None)
    assert ("in all" in text) == (entry["order"] in ("mixed", "mixed-correlated", "wandering"))
    assert "30 known images in" in text  # those of this run, whatever the experiment has


@pytest.mark.usefixtures("undrawn")
def test_the_title_is_the_experiments_only_if_the_run_is(run: Run) -> None:
    assert Results(run).title == "digits-open, changed"
    assert (
        "Changed from the experiment digits-open: limit 30 instead of 250; 2 of 15 corruptions; seeds 0, 1 instead of 0; "
        "3 of 13 methods; batches of 20 instead of batches of 100."
    ) in lead(run)
    known = listing.entries()["digits-open"]
    rows = [
        {"label": label, "role": "method", "note": "", "about": {"method": "Tent"}}
        for label in listing.rows(known)
    ]
    columns = [{**run.about["about"]["columns"][0], "batch_size": 100}]
    whole = changed(run, corruptions=known["corruptions"], rows=rows, columns=columns)
    assert Results(whole).title == known["title"]  # images and seeds are no part of it
    own = changed(run, experiment="my own", title="Mine")
    assert Results(own).title == "Mine"
    assert "Changed from" not in lead(own)
    replaced = replace(changed(run, note="On our model."), about={**run.about, "note": "On our model."})
    assert "On our model." in main_table(Results(replaced)).notes
    about = {**replaced.about, "used": {"closed set": "digits", "source model": "mine"}}
    assert "On our model." not in main_table(Results(replace(replaced, about=about))).notes
    noted = changed(run, columns=[{**run.about["about"]["columns"][0], "note": "A <remark>."}])
    assert "A <remark>." in main_table(Results(noted)).notes


def test_a_tie_is_not_called_a_win(run: Run) -> None:
    tie = {"TENT": {"h_score": 78.24}, "PAF+KIP": {"h_score": 78.16}, "Source": {"h_score": 60.0}}
    assert lead(changed(run, tie)).startswith(
        "TENT and PAF+KIP share the highest H-score, 78.2 %; next is Source with 60.0 %."
    )
    table = main_table(Results(changed(run, tie)))
    assert table.best(table.columns[-1]) is None
    same = changed(run, {name: {"h_score": 70.0} for name in ("TENT", "PAF+KIP", "Source")})
    assert lead(same).startswith("Source, TENT and PAF+KIP: H-score 70.0 %, no difference between them.")
    won = changed(run, {**tie, "TENT": {"h_score": 78.31}})
    assert lead(won).startswith("TENT has the highest H-score, 78.3 %; next is PAF+KIP with 78.2 %.")
    assert main_table(Results(won)).best(table.columns[-1]) == "TENT"


@pytest.mark.usefixtures("undrawn")
def test_an_unfinished_run_says_so_first_and_names_no_winner(run: Run) -> None:
    whole, cells = html(run), [cell["unit"] for cell in run.about["cells"]]
    part = replace(run, results={a: r for a, r in run.results.items() if a != cells[-1]})
    assert "highest" not in lead(part)
    page = html(part)
    assert "<strong>Not finished.</strong> 5 of 6 cells have a result." in page
    assert 'class="best"' not in page
    assert 'class="best"' in whole
    text = main_table(Results(part)).text()
    assert "Not finished, 1 without a result: PAF+KIP, Photographs, seed 1." in text
    assert "* is the best" not in text
    with pytest.raises(
        ValueError, match="no cell is finished yet; the same testtime run command goes on from there"
    ):
        Results(replace(run, results={}))


@pytest.mark.usefixtures("undrawn")
def test_images_for_each_domain_are_those_of_the_cells(run: Run) -> None:
    fewer = with_results(run, lambda label, r: {**r, "images": 20} if label == "PAF+KIP" else r)
    assert "30 known images in each (10 for PAF+KIP)" in lead(fewer)
    assert "<sup>†</sup>" in html(fewer)
    assert "Fewer images of each domain" in main_table(Results(fewer)).text()
    assert "<sup>†</sup>" not in html(run)


@pytest.mark.usefixtures("undrawn")
def test_rows_whose_steps_fail_or_move_nothing_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluation, "CHECKPOINT", 0.0)
    names = ("NaNLoss", "NaNLossAtTimes", "Idle", "Raises")
    summary = run_small(
        tmp_path / "run", asked(rows=("TENT",), methods=[f"small_methods:{name}" for name in names])
    )
    error = "KeyError: 'tent' (raised in Raises, on a batch of shape (20, 3, 32, 32))"
    assert summary.failed == {"Raises, Photographs, seed 0": error}
    found = read_run(tmp_path / "run")
    table, page = main_table(Results(found)), html(found)
    without = "its values are those of the model without learning"
    told = {
        "NaNLoss": f"NaNLoss: 6 of 6 steps failed (loss not finite) and were taken back; {without}.",
        "NaNLossAtTimes": "NaNLossAtTimes: 3 of 6 steps failed (loss not finite) and were taken back.",
        "Idle": f"Idle: none of 6 steps moved a parameter; {without}.",
    }
    assert {row.label: row.note for row in table.rows if row.note} == told
    (column,) = [column for column in table.columns if column.name == "ACC"]
    assert table.value("NaNLoss", column) == table.value("Source", column) == table.value("Idle", column)
    for remark in told.values():
        assert f"† {remark}" in table.text().splitlines()
        assert remark in plain(page)
    failed = f"Failed: Raises, Photographs, seed 0: {error}."
    assert failed in table.text().splitlines()
    assert failed in unescape(page)
    assert "Not finished, 1 without a result: Raises, Photographs, seed 0." in table.text()


def test_remarks_on_steps_are_sums_over_seeds_and_none_for_results_of_earlier_versions() -> None:
    def cell(updated: int, *failed: str, declared: tuple[int, int] = (1, 1)) -> dict[str, Any]:
        steps = {"batches": 4, "updated": updated, "failed": len(failed), "not_finite": sorted({*failed})}
        return {"steps": steps, "cost": {"declared": [*declared]}}

    earlier = {"cost": {"declared": [1, 1]}}
    assert remark_on_steps("A", [cell(3, "loss"), cell(2, "gradient", "loss"), earlier]) == (
        "A: 3 of 8 steps failed (gradient and loss not finite) and were taken back."
    )
    assert remark_on_steps("A", [earlier]) == remark_on_steps("A", [cell(4)]) == ""
    assert "none of 4 steps moved a parameter" in remark_on_steps("A", [cell(0)])
    assert remark_on_steps("Source", [cell(0, declared=(1, 0))]) == ""


@pytest.mark.usefixtures("undrawn")
def test_times_are_related_to_the_baseline_of_the_run_or_to_an_earlier_cells_own(run: Run) -> None:
    found = Results(run)
    (one, *_) = [b for b in found.baselines if b["threads"] == found.cells("TENT")[0]["state"]["threads"]]
    assert found.times("TENT")[0] == found.cells("TENT")[0]["cost"]["ms"] / one["ms"]["20"]
    page = html(run)
    assert "An earlier version ran cells" not in page
    assert f"A plain forward of 20 images in {one['ms']['20']:.3g} ms is the unit" in page
    old = with_results(run, lambda _, r: {**r, "cost": {**r["cost"], "plain_ms": 2.0, "relative": 1234.5}})
    assert "An earlier version ran cells of this page" in html(old)
    assert "1234.5×" in html(old)
    elsewhere = with_results(run, lambda _, r: {**r, "state": {**r["state"], "processor": "another"}})
    assert str(Results(elsewhere).times("TENT")[0]) == "nan"
    assert "–×" in html(elsewhere)


@pytest.mark.usefixtures("undrawn")
def test_a_page_without_what_was_not_measured(run: Run) -> None:
    bare = with_results(run, lambda _, r: {**r, "cost": {**r["cost"], "peak_memory": None}, "scores": {}})
    page = html(bare)
    assert "The scores of the images were not kept with these results." in page
    assert ">–</td></tr>" in page  # the peak


@pytest.mark.usefixtures("undrawn")
def test_a_closed_set_is_ranked_by_accuracy(run: Run) -> None:
    nothing = dict.fromkeys(("auroc", "h_score", "oscr", "fpr95"))
    closed = changed(
        run,
        dict.fromkeys(("TENT", "PAF+KIP", "Source"), nothing),
        columns=[{**run.about["about"]["columns"][0], "open_set": None}],
    )
    assert re.match(r"[\w+]+ (and [\w+]+ )?(has|share) the highest accuracy", lead(closed))
    assert [column.name for column in main_table(Results(closed)).columns] == ["ACC"]
    assert "This run had no unknown images." in html(closed)


@pytest.mark.usefixtures("undrawn")
def test_damaged_results_are_named(run: Run, tmp_path: Path) -> None:
    shutil.copytree(run.folder, tmp_path / "run")
    (path,) = (tmp_path / "run" / "results").glob("tent*seed_0*")
    whole = path.read_text()
    for text in (
        "",
        "{",
        "[]",
        "null",
        whole.replace('"domains"', '"others"'),
        whole.replace('"accuracy": [', '"accuracy": 3, "x": ['),
    ):
        path.write_text(text)
        with pytest.raises(DataError, match=r"results.* is damaged .*; (delete|repair)"):
            html(read_run(tmp_path / "run"))


@pytest.mark.usefixtures("undrawn")
def test_the_experiment_gives_tables_and_page(run: Run) -> None:
    one = online("digits-open")
    found = read_run(run.folder)
    assert unescape(one.page(found).title) == one.tables(found)[0].title == "digits-open, changed"


def test_shares_of_scores_sum_to_one_and_ignore_what_is_not_finite() -> None:
    rng = np.random.default_rng(0)
    shares = score_shares(np.append(rng.normal(0, 1, 500), np.nan), rng.normal(3, 1, 300))
    assert sum(shares["known"]) == pytest.approx(1, abs=1e-3)
    assert sum(shares["unknown"]) == pytest.approx(1, abs=1e-3)
    middle = np.arange(40)
    assert np.dot(middle, shares["known"]) < np.dot(middle, shares["unknown"])
    assert score_shares([], [np.nan]) == {"known": [], "unknown": []}
