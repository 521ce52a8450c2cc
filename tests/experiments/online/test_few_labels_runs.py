"""The experiments on estimates from few labels, and the estimate of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_online import silent

from testtime.cli import main
from testtime.evaluation import read_samples
from testtime.experiments import Request, Run, Store, find_experiment, read_run, run_experiment
from testtime.experiments.online.few_labels import FewLabels, run_predictions
from testtime.metrics.few_labels import predictions_of
from testtime.metrics.repeated_draws import repeat_draws

pytest.importorskip("sklearn", reason="the embedded data come with testtime[demo]")
SETTINGS = {"beside": ["Source"], "labels": [10, 20], "draws": 15}
ASKED = Request("labels-digits", limit=8, precision="float32", settings=SETTINGS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("few") / "run"
    assert run_experiment(FewLabels("labels-digits"), ASKED, folder, say=silent).exit_code == 0
    return read_run(folder)


def test_a_run_has_a_row_for_each_design_and_reads_coverage_and_variance(run: Run) -> None:
    (table,) = find_experiment("labels-digits").tables(run)
    assert [(row.label, row.role) for row in table.rows] == [
        ("plain sampling", "base"),
        ("all signals", "control"),
        ("few signals", "method"),
        ("few signals, drawn by confidence", "method"),
    ]
    assert [column.key for column in table.columns] == [
        f"{name} {n} labels" for name in ("coverage", "variance") for n in (10, 20)
    ]
    unit = run.about["cells"][3]["unit"]
    needs = run.results[unit]["unit"]["needs"]
    assert [*needs] == ["Source", "TENT"]
    store = Store(run.folder.parent / "store")
    samples = {name: read_samples(store.folder(address)) for name, address in needs.items()}
    found = predictions_of(samples, "TENT")
    drawn = repeat_draws(samples["TENT"].correct, found.table, found.chances, 20, "drawn", draws=15, seed=0)
    assert table.value(table.rows[3].label, table.column("coverage 20 labels")) == drawn["coverage"]
    assert table.value(table.rows[3].label, table.column("variance 20 labels")) == pytest.approx(
        drawn["ratio"]
    )
    assert (
        table.notes[-1]
        == f"TENT is right in {100 * samples['TENT'].correct.mean():.1f} % of 120 samples; 15 draws."
    )


def test_any_row_can_be_the_deployed_one() -> None:
    def needs(deployed: str) -> set[str]:
        asked = replace(ASKED, seeds=(0,), settings={**SETTINGS, "deployed": deployed})
        return {*find_experiment("labels-digits").plan(asked).cells[0].unit.needs}

    assert needs("BN-adapt") == {"BN-adapt", "Source"}
    with pytest.raises(ValueError, match="no row 'tentt'"):
        needs("tentt")


def test_more_labels_than_samples_are_refused_before_the_stream() -> None:
    asked = replace(ASKED, seeds=(0,))
    for labels, message in (([10, 121], "at most 120 labels, .* got 121"), ([1], "whole numbers from 2")):
        with pytest.raises(ValueError, match=message):
            find_experiment("labels-digits").plan(replace(asked, settings={**SETTINGS, "labels": labels}))
    assert find_experiment("labels-digits").plan(replace(asked, settings={**SETTINGS, "labels": [120]})).cells


def test_the_accuracy_of_a_row_of_a_run_from_labels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    small = [
        "--limit",
        "8",
        "--precision",
        "float32",
        "--rows",
        "TENT",
        "--set",
        'open_sets=["none"]',
        "batch_size=20",
    ]
    assert main(["run", "digits-open", *small, 'corruptions=["fog"]']) == 0
    capsys.readouterr()
    assert main(["estimate", "runs/digits-open", "--next", "9"]) == 2
    assert "expected --row, the method in use; the rows with predictions" in capsys.readouterr().err
    found = run_predictions("runs/digits-open", "TENT")
    assert [*found.signals][:3] == ["confidence", "score", "agreement with Source"]
    unit = next(c["unit"] for c in read_run("runs/digits-open").about["cells"] if c["row"] == "TENT")
    samples = read_samples(Store(tmp_path / "runs/store").folder(unit))
    lines = [f"{i},{samples.label[i]}" for i in np.random.default_rng(0).permutation(8)]
    Path("labels.csv").write_text("\n".join(["index,label", *lines]))
    assert main(["estimate", "runs/digits-open", "--row", "TENT", "--labels", "labels.csv"]) == 0
    exact = 100 * samples.correct.mean()  # all samples have labels
    printed = capsys.readouterr().out
    assert printed.startswith(
        f"accuracy {exact:.1f} %, 95 % interval {exact:.1f} to {exact:.1f} %\n8 labels of 8 samples"
    )
