"""Runs side by side: the figures are those of the runs, and the findings follow from them."""

import json
import math
import re
from pathlib import Path

import pytest

from testtime.bench.compare import compare, comparison_figures, comparison_text, write_comparison
from testtime.cli import main

COST = {"Source": (1, 0), "TENT": (1, 1), "slow": (20, 1), "broken": (2, 1)}


def run(
    folder: Path, protocol: str, errors: dict[str, tuple[float, ...]], open_set: str | None = None
) -> Path:
    """A run's folder with what a comparison reads of it."""
    cells = []
    for label, values in errors.items():
        for seed, error in enumerate(values):
            name = f"{label}-{seed}"
            (folder / "cells" / name).mkdir(parents=True)
            result = {
                "label": label,
                "column": "a column",
                "seed": seed,
                "average": {
                    "accuracy": 100 - error,
                    "error": error,
                    "ece": error / 2,
                    "auroc": 70.0 if open_set else None,
                    "h_score": 65.0 if open_set else None,
                },
                "forgetting": {"before": 90.0, "after": 88.0},
                "cost": {"declared": list(COST[label]), "relative": 1.5 * sum(COST[label])},
                "images": 200 if label == "slow" else 500,
            }
            (folder / "cells" / name / "result.json").write_text(json.dumps(result))
            cells.append(name)
    about = {
        "protocol": protocol,
        "rows": [{"label": label} for label in errors],
        "columns": [{"name": "a column", "open_set": open_set}],
        "cells": cells,
        **dict.fromkeys(("model", "closed", "order", "limit", "versions", "machine"), "as told"),
    }
    (folder / "run.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    return [
        run(
            tmp_path / "one",
            "field-continual",
            {"Source": (40.0,), "TENT": (30.0, 32.0), "slow": (30.8,), "broken": (40.0,)},
        ),
        run(
            tmp_path / "two", "field-mixed", {"Source": (40.0,), "TENT": (45.0,), "slow": (38.0,)}, "cifar100"
        ),
    ]


def test_methods_by_mean_error_and_those_without_all_streams_last(two: list[Path]) -> None:
    found = compare(two)
    assert [at.name for at in found.settings] == ["continual", "mixed, open"]
    assert found.rows == ("slow", "TENT", "Source", "broken")
    one, other = found.settings
    assert (found.error("TENT", one), found.error("TENT", other)) == (31, 45)
    assert found.forgetting("slow", one) == 2
    assert found.cost("slow") == 22
    assert found.time("TENT") == 3
    assert found.images("slow", one) == 200


def test_what_does_not_beat_source_or_a_cheaper_one(two: list[Path]) -> None:
    found = compare(two)
    assert found.worse_than_source() == {"TENT": ["mixed, open"], "broken": ["continual"]}
    # slow is within half a point of TENT on one stream, but not on the other; TENT is better than Source on one.
    assert found.without_benefit() == {"broken": "Source"}
    assert compare(two[:1]).without_benefit() == {"broken": "Source", "slow": "TENT"}


def test_methods_are_compared_on_the_seeds_that_both_have(tmp_path: Path) -> None:
    errors = {
        "Source": (32.0, 45.0),
        "TENT": (30.0, 44.0),
        "slow": (31.0,),
    }  # the second seed is the harder one
    found = compare([run(tmp_path / "one", "field-continual", errors)])
    (at,) = found.settings
    assert found.error("TENT", at) == 37
    assert (found.gap("TENT", "slow", at), found.gap("TENT", "Source", at)) == (-1, -1.5)
    assert math.isnan(found.gap("TENT", "nobody", at))
    assert found.rows == ("TENT", "slow", "Source")
    assert found.worse_than_source() == {}
    assert found.without_benefit() == {"slow": "TENT"}


def test_the_tables_as_text(two: list[Path]) -> None:
    text = comparison_text(compare(two))
    assert "| TENT | 31.0 ± 1.4 | 45.0 | 1 | 1 | 3.0 |" in text
    assert "| slow* | 30.8 | 38.0 | 20 | 1 | 31.5 |" in text
    assert "| broken | 40.0 | – |" in text
    assert "| TENT | 15.5 ± 0.7 | 22.5 | 2.0 | 2.0 |" in text
    assert "| AUROC mixed, open | H mixed, open |" in text
    assert "- TENT: mixed, open" in text
    assert "- broken: Source" in text


def test_the_page_and_the_command(
    two: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "page.html"
    figures = tmp_path / "figures.json"
    assert main(["report", *map(str, two), "--out", str(out), "--json", str(figures)]) == 0
    kept = json.loads(figures.read_text())
    assert kept["continual"]["methods"]["TENT"]["error"] == [30, 32]
    assert kept["mixed, open"]["methods"]["slow"]["auroc"] == [70]
    assert "slow*" in capsys.readouterr().out
    page = out.read_text()
    assert "TENT</th><td>31.0 ± 1.4</td><td>45.0</td><td>3.0</td>" in page
    assert "slow*</th>" in page
    assert "on fewer images of each domain" in page
    assert page.count('class="dot') == 7
    assert write_comparison(compare(two[:1]), out).read_text() != page


def test_no_run_is_named(tmp_path: Path, two: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(two[0]), str(tmp_path / "none")]) == 2
    assert "not the folder of a run" in capsys.readouterr().err


def lead(folders: list[Path], out: Path) -> str:
    html = write_comparison(compare(folders), out / "comparison.html").read_text()
    return re.sub("<[^>]*>", "", re.search('<p class="lead">(.*?)</p>', html)[1])  # type: ignore[index]


def test_the_lead_names_the_lowest_mean_error_ties_and_what_is_not_finished(
    two: list[Path], tmp_path: Path
) -> None:
    assert lead(two, tmp_path) == "Lowest mean error: slow*, 34.4 %."
    tie = run(tmp_path / "tie", "field-mixed", {"Source": (40.0,), "TENT": (37.8,), "slow": (38.0,)})
    assert lead([two[0], tie], tmp_path) == "Lowest mean error (equal in print): TENT and slow*, 34.4 %."
    about = json.loads((tie / "run.json").read_text())
    (tie / "run.json").write_text(json.dumps({**about, "cells": [*about["cells"], "one more"]}))
    assert lead([two[0], tie], tmp_path) == f"Not finished: {tie}. No method is called the best before."


def test_figures_for_programs_are_strict_json(two: list[Path]) -> None:
    figures = comparison_figures(compare(two))
    text = json.dumps(figures, allow_nan=False)
    assert json.loads(text)["continual"]["methods"]["TENT"]["auroc"] == [None, None]


def test_streams_of_one_protocol_keep_their_own_columns(tmp_path: Path) -> None:
    runs = [
        run(tmp_path / name, "field-mixed", {"Source": (error,)})
        for name, error in (("a", 40.0), ("b", 10.0))
    ]
    found = compare(runs)
    names = [f"mixed (a column, {folder})" for folder in runs]
    assert [at.name for at in found.settings] == names
    figures = comparison_figures(found)
    assert [figures[name]["methods"]["Source"]["error"] for name in names] == [[40.0], [10.0]]
    with pytest.raises(ValueError, match="expected each run once"):
        compare([runs[0], tmp_path / "b" / ".." / "a"])


def test_the_text_names_runs_that_are_not_finished(two: list[Path]) -> None:
    assert not comparison_text(compare(two)).startswith("Not finished")
    about = json.loads((two[1] / "run.json").read_text())
    (two[1] / "run.json").write_text(json.dumps({**about, "cells": [*about["cells"], "one more"]}))
    assert comparison_text(compare(two)).startswith(f"Not finished: {two[1]}.\n\n| error in %")
