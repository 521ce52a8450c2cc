"""Experiments on public sets, from files in the published layouts to a table: train, choose a rate, adapt, report."""

import math
from pathlib import Path
from typing import Any

import pytest
from published_sets import write_all, write_omnidata
from speck import SPECK

from testtime.cli import main
from testtime.data import TASKONOMY_NYUD_CLASSES
from testtime.errors import DataError
from testtime.experiments import Request, read_run, run_experiment
from testtime.experiments.experiment import closure
from testtime.experiments.multitask.planning import PRESETS
from testtime.experiments.multitask.studies import Study, find_row
from testtime.multitask.branches import build
from testtime.multitask.protocol import Protocol
from testtime.multitask.public import tasks_with
from testtime.tasks import tasks_of

pytest.importorskip("PIL", reason="pip install -e '.[images]'")
pytest.importorskip("scipy", reason="pip install -e '.[images]'")

FOUR = ["semseg", "depth", "normals", "edge"]
SETS = {
    "taskonomy-nyud": (FOUR, 5),
    "taskonomy-pascal": (["semseg", "normals", "edge"], 5),
    "nyud-taskonomy": (FOUR, 4),
    "pascal-taskonomy": (["semseg", "normals", "edge"], 4),
    "taskonomy-replica": (["depth", "normals", "edge"], 8),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_all(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def speck(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = {"nyud": [24, 32], "taskonomy": [32, 32], "pascal-context": [32, 32], "replica": [32, 32]}
    recipe = {**SPECK["recipe"], "iterations": 30, "lr": 1e-2, "every": 30}  # enough to find a class
    public = {"sizes": sizes, "images": {"source": 6}}
    monkeypatch.setitem(PRESETS, "speck", {**SPECK, "recipe": recipe, "public": public})


def asked(name: str, data: Path, **facts: Any) -> Request:
    settings = {"preset": "speck", **facts.pop("settings", {})}
    return Request(f"multitask-{name}", (0,), precision="float32", data=str(data), settings=settings, **facts)


@pytest.mark.parametrize("name", SETS)
def test_from_published_files_to_a_table(name: str, data: Path, tmp_path: Path) -> None:
    study, (tasks, count) = Study(f"multitask-{name}"), SETS[name]
    study.protocol = Protocol(steps=2, batch=4, record_every=2)
    study.rows = [
        find_row({"like": "Unadapted", "label": "Base"}),
        find_row({"control": "S4T", "label": "BN only"}),
        find_row({"like": "S4T", "label": "S4T", "rates": [1e-3]}),
    ]
    summary = run_experiment(study, asked(name, data), tmp_path / "run", say=lambda line: None)
    assert summary.failed == {}
    run = read_run(tmp_path / "run")
    assert run.missing == []
    assert run.stand_ins == {"encoder": ("random initialisation", "ImageNet weights")}
    found = {one.row: one.result["values"] for one in run.records()}
    assert all(list(values) == tasks for values in found.values())
    assert all(math.isfinite(value[-1]) for values in found.values() for value in values.values())
    assert found["Base"]["normals"][0] == found["Base"]["normals"][-1]
    assert found["S4T"]["normals"][0] != found["S4T"]["normals"][-1]
    (table,) = study.tables(run)
    assert table.value("Base", table.column("Δ last")) == 0
    assert math.isfinite(table.value("S4T", table.column("Δ beyond")))
    domains = run.about["about"]["domains"]
    assert domains["target"]["count"] == count
    assert domains["source"]["count"] == min(6, 8 if name.startswith("taskonomy") else 5)
    assert len(domains["source"]["digest"]) == 64


@pytest.mark.usefixtures("undrawn")
def test_the_command_reports_a_table_and_goes_on(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [
        "run",
        "multitask-taskonomy-nyud",
        "--data",
        str(data),
        "--set",
        "preset=speck",
        "--seeds",
        "0",
    ]
    command += ["--rows", "labels of the batch", "--out", str(tmp_path / "run"), "--precision", "float32"]
    assert main(command) == 0
    out = capsys.readouterr().out
    assert "target, after step 40" in out
    assert "labels of the batch" in out
    assert main(command) == 0  # everything is there
    run = read_run(tmp_path / "run")
    assert run.missing == []
    chosen = run.other("rate of labels of the batch")
    assert set(chosen["tried"]) == {"0.0001", "0.0003", "0.001"}
    assert {one.result["rate"] for one in run.records() if one.row == "labels of the batch"} == {
        chosen["rate"]
    }


def test_networks_have_the_shared_classes_and_parts_their_tasks(data: Path) -> None:
    plan = Study("multitask-taskonomy-nyud").plan(asked("taskonomy-nyud", data))
    units = {unit.kind.split(":")[1]: unit for unit in closure(plan.units)}
    network = units["train_network"].parameters["network"]
    model = build(tasks_with(network["classes"]), network, 0)
    assert tasks_of(model)["semseg"].classes == TASKONOMY_NYUD_CLASSES
    assert units["train_network"].places == {"data": str(data)}
    assert "render" not in units
    assert units["adapt"].parameters["houses"]["size"] == [24, 32]
    assert units["choose_rate"].parameters["houses"]["noise"] == 0.2
    assert units["train_network"].parameters["recipe"]["weighting"] == "automatic"


def test_another_content_is_another_unit(data: Path, tmp_path: Path) -> None:
    other = write_all(tmp_path / "other")
    write_omnidata(other / "taskonomy", "taskonomy", ("brook", "alba"))
    study = Study("multitask-taskonomy-nyud")
    one, two = (
        {u.address for u in closure(study.plan(asked("taskonomy-nyud", d)).units)} for d in (data, other)
    )
    assert not one & two
    same = {
        u.address for u in closure(study.plan(asked("taskonomy-nyud", write_all(tmp_path / "same"))).units)
    }
    assert one == same


def test_what_is_missing_is_said_before_anything_is_written(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty" / "photos").mkdir(parents=True)
    out = str(tmp_path / "run")
    assert main(["run", "multitask-taskonomy-nyud", "--data", str(tmp_path / "empty"), "--out", out]) == 2
    said = capsys.readouterr().err
    assert (
        "expected Taskonomy in the folder taskonomy or Taskonomy, as <domain>/taskonomy/<building>/" in said
    )
    assert "found photos; give the folder that holds it (or links to it) with --data" in said
    assert not (tmp_path / "run").exists()
    few = write_all(tmp_path / "few")
    table = few / "taskonomy" / "splits_taskonomy" / "train_val_test_tiny.csv"
    table.write_text("id,train,val,test\nelsewhere,1,0,0\n")
    study = Study("multitask-taskonomy-nyud")
    with pytest.raises(
        DataError, match=r"buildings of the split train .*\(elsewhere\), found those of alba, brook, cove"
    ):
        study.plan(asked("taskonomy-nyud", few))
    table.unlink()
    with pytest.raises(DataError, match=r"tiny.csv: no such file.*Taskonomy is read as <domain>"):
        study.plan(asked("taskonomy-nyud", few))
    for path in (few / "PASCAL_MT" / "normals_distill").iterdir():
        path.unlink()
    with pytest.raises(
        DataError, match=r"annotation of 'normals'.*normals_distill/, pascal-context/trainval/\)"
    ):
        Study("multitask-pascal-taskonomy").plan(asked("pascal-taskonomy", few))


def test_settings_reach_the_parts_that_declare_them(data: Path) -> None:
    study = Study("multitask-taskonomy-pascal")
    with pytest.raises(ValueError, match="expected the setting axes in the form of"):
        study.check_settings(asked("taskonomy-pascal", data, settings={"axes": 1}))
    plan = study.plan(asked("taskonomy-pascal", data, settings={"axes": [1, -1, 1]}))
    assert plan.about["domains"]["target"]["axes"] == [1, -1, 1]
    assert "axes" not in plan.about["domains"]["source"]
