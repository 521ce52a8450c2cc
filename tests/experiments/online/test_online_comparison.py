"""Runs side by side: the figures are those of the runs, and the findings follow from them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from testtime.cli import main
from testtime.experiments import read_run
from testtime.experiments.online.comparison import Comparison
from testtime.experiments.run import ABOUT, read_result
from testtime.report import page_html
from testtime.report.markup import plain

COST = {"Source": (1, 0), "TENT": (1, 1), "slow": (20, 1), "broken": (2, 1)}
STREAM = {
    "order": "continual",
    "severity": 5,
    "rounds": 1,
    "corruptions": ["fog"],
    "reset": False,
    "returns": False,
}
STREAM |= dict.fromkeys(("slow_limit", "target", "pace", "speed"))


def write_run(
    folder: Path,
    experiment: str,
    errors: dict[str, tuple[float, ...]],
    open_set: str | None = None,
    missing: int = 0,
) -> Path:
    """A run's folder with what a comparison reads of it."""
    column = {"name": "a column", "open_set": open_set, "batch_size": 200, "ratio": 1.0, "note": ""}
    cells, units = [], {}
    (folder / "results").mkdir(parents=True)
    for label, values in errors.items():
        for seed, error in enumerate(values):
            opened = {"auroc": 70.0, "h_score": 65.0} if open_set else dict.fromkeys(("auroc", "h_score"))
            result = {
                "average": {"accuracy": 100 - error, "error": error, "ece": error / 2, **opened},
                "domains": [{"domain": "fog"}],
                "time": {"accuracy": [], "auroc": [], "h_score": [], "visit": []},
                "filters": {"all": {}, "time": {}},
                "forgetting": {"before": 90.0, "after": 88.0},
                "cost": {
                    **dict.fromkeys(("forwards", "backwards", "ms")),
                    **{"declared": list(COST[label]), "relative": 1.5 * sum(COST[label])},
                },
                "images": 200 if label == "slow" else 500,
            }
            address = f"{label}{seed}".ljust(32, "0")
            unit = {
                "address": address,
                "name": address,
                "kind": "a:b",
                "parameters": {},
                "needs": {},
                "code": {},
            }
            content = {"schema": 1, "unit": unit, "result": result, "made": {}}
            (folder / "results" / f"{address}.json").write_text(json.dumps(content))
            cells.append({"row": label, "column": "a column", "seed": seed, "unit": address, "about": {}})
            units[address] = {"name": address, "code": {}}
    for seed in range(missing):
        cells.append({"row": "TENT", "column": "a column", "seed": 90 + seed, "unit": "none", "about": {}})
        units["none"] = {"name": "none", "code": {}}
    rows = [{"label": label, "role": "method", "note": "", "about": {"method": label}} for label in errors]
    facts = {
        **{"closed": "cifar10", "model": "cifar10-resnet20", "columns": [column]},
        "stream": STREAM,
        "limit": 500,
        "left_out": [],
        "published": {},
        "latency": {},
    }
    empty: dict[str, Any] = {key: {} for key in ("others", "facts", "used", "resources")}
    words = {"experiment": experiment, "family": "online", "title": "A title", "source": "", "note": ""}
    about = {
        "schema": 1,
        **words,
        "rows": rows,
        "cells": cells,
        "units": units,
        **empty,
        "about": facts,
        "sessions": [{"started": "", "command": [], "versions": {}, "machine": {}, "device": "cpu"}],
    }
    assert about.keys() == ABOUT.keys()
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "run.toml").write_text(f'experiment = "{experiment}"\nseeds = [0]\nprecision = "float32"\n')
    return folder


def compared(*folders: Path) -> Comparison:
    return Comparison([read_run(folder) for folder in folders])


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    one = {"Source": (40.0,), "TENT": (30.0, 32.0), "slow": (30.8,), "broken": (40.0,)}
    other = {"Source": (40.0,), "TENT": (45.0,), "slow": (38.0,)}
    return [
        write_run(tmp_path / "one", "field-continual", one),
        write_run(tmp_path / "two", "field-mixed", other, "cifar100"),
    ]


def test_methods_by_mean_error_and_those_without_all_streams_last(two: list[Path]) -> None:
    found = compared(*two)
    assert list(found.streams) == ["continual", "mixed, open"]
    assert [row.label for row in found.rows] == ["slow", "TENT", "Source", "broken"]
    errors, more, opened = found.tables()
    one, other = (errors.column(name) for name in found.streams)
    assert (errors.value("TENT", one), errors.value("TENT", other)) == (31, 45)
    assert more.value("slow", more.column("lost continual")) == 2
    assert more.value("TENT", more.column("ECE mixed, open")) == 22.5
    assert [errors.value("slow", errors.column(name)) for name in ("forwards", "backwards", "time")] == [
        20,
        1,
        31.5,
    ]
    assert errors.value("TENT", errors.column("time")) == 3
    assert [column.key for column in opened.columns] == ["AUROC mixed, open", "H mixed, open"]
    assert opened.value("slow", opened.column("AUROC mixed, open")) == 70


def test_what_does_not_beat_source_or_a_cheaper_one(two: list[Path]) -> None:
    found = compared(*two)
    assert found.worse_than_source() == {"TENT": ["mixed, open"], "broken": ["continual"]}
    # slow is within half a point of TENT on one stream, but not on the other; TENT is better than Source on one.
    assert found.without_benefit() == {"broken": "Source"}
    assert compared(two[0]).without_benefit() == {"broken": "Source", "slow": "TENT"}


def test_methods_are_compared_on_the_seeds_that_both_have(tmp_path: Path) -> None:
    errors = {
        "Source": (32.0, 45.0),
        "TENT": (30.0, 44.0),
        "slow": (31.0,),
    }  # the second seed is the harder one
    found = compared(write_run(tmp_path / "one", "field-continual", errors))
    (at,) = found.of_streams
    assert found.errors.value("TENT", at) == 37
    assert found.errors.paired("TENT", "slow", at).mean == -1
    assert found.errors.paired("TENT", "Source", at).mean == -1.5
    assert math.isnan(found.errors.paired("TENT", "nobody", at).mean)
    assert [row.label for row in found.rows] == ["TENT", "slow", "Source"]
    assert found.worse_than_source() == {}
    assert found.without_benefit() == {"slow": "TENT"}


def test_the_tables_as_markdown(two: list[Path]) -> None:
    text = "\n".join(table.markdown() for table in compared(*two).tables())
    assert "| TENT | 31.0 ±1.4 | 45.0 | 1 | 1 | 3.0 |" in text
    assert "| slow† | **30.8** | **38.0** | 20 | 1 | 31.5 |" in text
    assert "| broken | 40.0 | – |" in text
    assert "| TENT | 15.5 ±0.7 | 22.5 | 2.0 | 2.0 |" in text
    assert "| AUROC mixed, open, % | H mixed, open, % |" in text
    assert "Not better than the source model: TENT (mixed, open), broken (continual)." in text
    assert "within 0.5 point of error): broken (Source)." in text


def test_the_page_and_the_command(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, figures = tmp_path / "page.html", tmp_path / "figures.json"
    assert main(["report", *map(str, two), "--out", str(out), "--json", str(figures)]) == 0
    rows = json.loads(figures.read_text())[0]["rows"]
    tent = next(row["cells"] for row in rows if row["label"] == "TENT")
    assert tent["continual"]["seeds"] == {"0": 30, "1": 32}
    assert "slow†" in capsys.readouterr().out
    page = out.read_text()
    for text in (
        "slow<sup>†</sup></th>",
        "On fewer images of each domain",
        "31.0",
        "broken: continual",
        "broken: Source",
    ):
        assert text in page


def test_no_run_is_named(tmp_path: Path, two: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(two[0]), str(tmp_path / "none")]) == 2
    assert "not the folder of a run" in capsys.readouterr().err


def lead(*folders: Path) -> str:
    page = compared(*folders).page()
    return plain(page.unfinished) or plain(page.lead)  # type: ignore[arg-type]


def test_the_lead_names_the_lowest_mean_error_ties_and_what_is_not_finished(
    two: list[Path], tmp_path: Path
) -> None:
    assert lead(*two) == "Lowest mean error: slow†, 34.4 %."
    errors = {"Source": (40.0,), "TENT": (37.8,), "slow": (38.0,)}
    tie = write_run(tmp_path / "tie", "field-mixed", errors)
    assert lead(two[0], tie) == "Lowest mean error (equal in print): TENT and slow†, 34.4 %."
    part = write_run(tmp_path / "part", "field-mixed", errors, missing=1)
    assert lead(two[0], part) == f"{part}. No method is called the best before."
    assert "Not finished." in page_html(compared(two[0], part).page())
    assert "Not finished, 1 without a result" in compared(two[0], part).tables()[0].text()


def test_streams_of_one_experiment_keep_their_own_columns(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name, "field-mixed", {"Source": (error,)})
        for name, error in (("a", 40.0), ("b", 10.0))
    ]
    found = compared(*runs)
    names = [f"mixed (a column, {folder})" for folder in runs]
    assert list(found.streams) == names
    assert [found.errors.value("Source", found.errors.column(name)) for name in names] == [40.0, 10.0]
    with pytest.raises(ValueError, match="expected each run once"):
        compared(runs[0], tmp_path / "b" / ".." / "a")


def test_a_stream_is_named_as_shortly_as_can_be(tmp_path: Path) -> None:
    runs = [
        write_run(tmp_path / name, f"field-{name}", {"Source": (1.0,)}) for name in ("mixed", "continual")
    ]
    path = runs[0] / "run.json"
    about = json.loads(path.read_text())
    about["about"]["columns"].append({**about["about"]["columns"][0], "name": "another"})
    about["cells"].append({**about["cells"][0], "column": "another"})
    path.write_text(json.dumps(about))
    assert list(compared(*runs).streams) == ["mixed (a column)", "mixed (another)", "continual"]


def test_a_result_that_was_written_for_these_tests_is_one(two: list[Path]) -> None:
    for path in two[0].glob("results/*.json"):
        assert read_result(path)["result"]["images"] in (200, 500)


def test_costs_count_as_no_seed_and_no_source_is_said(tmp_path: Path) -> None:
    errors = {"Source": (50.0, 50.0), "TENT": (40.0, 42.0)}
    folders = [write_run(tmp_path / name, name, errors) for name in ("one", "two")]
    for folder in folders:  # of the seeds 1 and 2
        about = json.loads((folder / "run.json").read_text())
        for cell in about["cells"]:
            cell["seed"] += 1
        (folder / "run.json").write_text(json.dumps(about))
    found = Comparison([read_run(folder) for folder in folders])
    assert "\n2 seeds, mean ± standard deviation" in found.errors.text()
    alone = [write_run(tmp_path / name, name, {"TENT": (40.0,)}) for name in ("three", "four")]
    notes = Comparison([read_run(folder) for folder in alone]).tables()[0].notes
    assert notes[0] == "Not better than the source model: not known, for Source was not run."
