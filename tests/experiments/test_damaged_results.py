"""Damaged results of committed runs: an error that names the file and the place, and nulls as values that are not there."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from testtime.cli import main
from testtime.errors import DataError
from testtime.experiments import find_experiment, read_run
from testtime.experiments.registry import result_shapes

RESULTS = Path(__file__).parents[2] / "results"
pytestmark = pytest.mark.skipif(not RESULTS.is_dir(), reason="the results are in the repository alone")
GONE = object()


def changed(tmp_path: Path, run: str, name: str, place: tuple[Any, ...], value: Any) -> Path:
    """Copy a run and change one value of the file whose name begins so."""
    folder = shutil.copytree(RESULTS / run, tmp_path / "run")
    path = next(iter(sorted([*folder.glob(f"results/{name}*"), *folder.glob(name)])))
    content = json.loads(path.read_text())
    at = content
    for key in place[:-1]:
        at = at[key]
    if value is GONE:
        del at[place[-1]]
    else:
        at[place[-1]] = value
    path.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("run", "name", "place", "value", "problem"),
    [
        ("multitask/cost", "multitask", ("result", "TTT", "parameters"), None, "result.TTT.parameters: expected float"),
        ("multitask/cost", "multitask", ("result", "TTT"), GONE, "KeyError: 'TTT'"),
        ("multitask/direction", "multitask", ("result", "cosines"), GONE, "result.cosines is missing"),
        ("multitask/affinity", "multitask", ("result", "affinity", 1), [1.0], "inhomogeneous"),
        ("multitask/affinity", "multitask", ("result", "affinity"), [[1.0]], r"expected 4 x 4 affinities, got \(1, 1\)"),
        ("multitask/online", "s4t", ("result", "values", "depth"), [1.0], "expected a value of each task for"),
        ("space/retrieval", "retrieval", ("result", "chance R@1"), GONE, "result.chance R@1 is missing"),
        ("space/main", "segmentation", ("result", "IoU", "bed"), 10**400, "result.IoU.bed: expected float or null"),
        ("space/main", "run.json", ("cells", 0, "about", "measure"), "AP", "KeyError: 'AP'"),
        ("space/main", "run.json", ("sessions",), [], "expected at least one session"),
        ("space/main", "run.json", ("about", "preset"), 3, "about.preset: expected str, found int"),
        ("soak", "tent", ("result", "tenths", "p99_ms"), {}, "result.tenths.p99_ms: expected list, found dict"),
        ("field-mixed", "tent", ("result", "cost", "declared"), [2.0], "not enough values to unpack"),
        ("field-mixed", "run.json", ("about", "stream", "order"), "mixt", "mixt"),
        ("field-mixed", "run.json", ("rows", 0, "about", "method"), GONE, "row 'Source'.method is missing"),
        ("field-mixed", "run.json", ("rows", 0, "about", "arguments"), "a", "row 'Source'.arguments: expected dict, found str"),
        ("field-mixed", "run.json", ("rows", 0, "role"), "bass", r"no role 'bass' \(did you mean 'base'\?\)"),
        ("field-mixed", "run.json", ("cells", 0, "row"), "Sauce", r"no row 'Sauce' \(did you mean 'Source'\?\)"),
        ("field-mixed", "run.json", ("cells", 0, "column"), "open", "no column 'open'; there are closed set"),
        ("field-mixed", "run.json", ("schema",), 0, "it has schema 0"),
        ("multitask/online", "run.json", ("rows",), [], "no row 'Base'"),
        ("multitask/online", "run.json", ("rows", 0, "about"), {}, "row 'Base'.method is missing"),
        ("multitask/online", "run.json", ("rows", 0, "about", "rates"), [None], r"rates\[0\]: expected float, found NoneType"),
    ],
)  # fmt: skip
def test_a_damaged_run_is_refused_with_the_place(
    tmp_path: Path, run: str, name: str, place: tuple[Any, ...], value: Any, problem: str
) -> None:
    folder = changed(tmp_path, run, name, place, value)
    with pytest.raises(DataError, match=f"is damaged .*{problem}.*; delete"):
        find_experiment(json.loads((folder / "run.json").read_text())["experiment"]).tables(read_run(folder))


def test_a_null_is_a_value_that_is_not_there(tmp_path: Path) -> None:
    folder = changed(
        tmp_path, "multitask/masked-loss", "multitask", ("result", "losses", "0.9", "depth"), None
    )
    run = read_run(folder)
    (table,) = find_experiment("multitask-masked-loss").tables(run)
    assert len(table.values["depth", "masked share 0.9"]) == len(table.values["edge", "masked share 0.9"]) - 1

    shutil.rmtree(folder)
    folder = changed(tmp_path, "space/main", "segmentation_of_scratch__rgb__seed_0", ("result", "mIoU"), None)
    (table,) = find_experiment("space-main").tables(read_run(folder))
    place = table.columns[0].key
    assert [sorted(table.values[row, place]) for row in ("Scratch, RGB", "TST-MM (all)")] == [
        [1, 2],
        [0, 1, 2],
    ]


def test_families_of_other_packages_have_no_shapes() -> None:
    assert result_shapes("toy") == {}
    assert set(result_shapes("production")) == {"about", "follow"}


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The line with which a command of the user is refused."""
    assert main([*words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_report_names_the_file_of_a_run_that_does_not_fit_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(tmp_path, "field-mixed", "run.json", ("family",), "onlin")
    assert f"{folder}: field-mixed is of the family online, its run.json says onlin" in refused(
        capsys, "report", str(folder)
    )
    shutil.rmtree(folder)
    folder = changed(tmp_path, "field-mixed", "run.json", ("experiment",), "field-mixt")
    (folder / "run.toml").write_text('experiment = "field-mixt"\n')
    line = refused(capsys, "report", str(folder))
    assert f"{folder}: no experiment 'field-mixt' (did you mean 'field-mixed'?)" in line
    assert "another package, may have it" in line
    shutil.rmtree(folder)
    folder = changed(tmp_path, "space/propagate", "run.json", ("cells",), [])
    assert f"{folder}: the run has no cells; run space-propagate with other rows" in refused(
        capsys, "report", str(folder)
    )


def test_a_request_that_is_missing_or_another_runs_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(RESULTS / "soak", tmp_path / "run")
    (folder / "run.toml").write_text('experiment = "poisoning"\n')
    line = refused(capsys, "report", str(folder))
    assert "run.toml asks for poisoning, and run.json holds soak; delete it and run the same" in line
    (folder / "run.toml").unlink()
    assert "run.toml is missing; run the same testtime run command again" in refused(
        capsys, "report", str(folder)
    )
