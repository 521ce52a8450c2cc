"""The plain forward that times are related to: one for a run and a state of the machine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from testtime.bench import baseline
from testtime.bench.baseline import machine_state, measure_baseline, plain_milliseconds
from testtime.bench.protocol import Protocol, Row
from testtime.bench.protocols import protocol
from testtime.bench.report import read_run


def small(*sizes: int) -> Protocol:
    one = protocol("digits-open")
    return replace(one, columns=tuple(replace(one.columns[0], name=str(n), batch_size=n) for n in sizes))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Batch size and threads of each measurement, which takes 2 ms an image."""
    calls: list[tuple[int, int]] = []

    def take(name: str, data: str, device: str, precision: str, count: int) -> float:
        calls.append((count, torch.get_num_threads()))
        return 2.0 * count

    monkeypatch.setattr(baseline, "_measured", take)
    return calls


def test_each_batch_size_is_measured_once(measured: list[tuple[int, int]]) -> None:
    first = measure_baseline([], small(50, 100, 50), ".", "cpu", "float32", 1)
    assert [one["ms"] for one in first] == [{"50": 100.0, "100": 200.0}]
    assert set(first[0]) == {"processor", "device", "precision", "threads", "load", "ms"}
    assert measure_baseline(first, small(100), ".", "cpu", "float32", 1) is first
    more = measure_baseline(first, small(200), ".", "cpu", "float32", 1)
    assert more[0]["ms"] == {"50": 100.0, "100": 200.0, "200": 400.0}
    assert first[0]["ms"] == {"50": 100.0, "100": 200.0}
    assert [count for count, _ in measured] == [50, 100, 200]


def test_another_state_of_the_machine_has_its_own(measured: list[tuple[int, int]]) -> None:
    own = torch.get_num_threads()
    first = measure_baseline([], small(50), ".", "cpu", "float32", 1)
    second = measure_baseline(first, small(50), ".", "cpu", "float32", 2)
    third = measure_baseline(second, small(50), ".", "cpu", "bfloat16", 2)
    assert [(one["threads"], one["precision"]) for one in third] == [
        (1, "float32"),
        (2, "float32"),
        (2, "bfloat16"),
    ]
    assert measured == [(50, 1), (50, 2), (50, 2)]
    assert torch.get_num_threads() == own
    third[1]["ms"]["50"] = 7.0
    cell = {"config": {"batch_size": 50}, "state": machine_state("cpu", "float32", 2)}
    assert plain_milliseconds(third, cell) == 7.0
    elsewhere = {**cell, "state": {**cell["state"], "processor": "another"}}
    for unknown in (elsewhere, {**cell, "config": {"batch_size": 51}}, {"config": {"batch_size": 50}}):
        assert str(plain_milliseconds(third, unknown)) == "nan"


def test_the_measurement_itself_is_a_time() -> None:
    assert 0 < baseline._measured("digits-cnn", ".", "cpu", "float32", 4) < 1000


def test_a_report_divides_by_the_baseline_of_the_run_or_by_an_earlier_cells_own(tmp_path: Path) -> None:
    state = {"processor": "one", "device": "cpu", "precision": "float32", "threads": 1}
    config = {"batch_size": 200}
    cells = {
        "now": {"cost": {"ms": 60.0}, "config": config, "state": state},
        "slower": {"cost": {"ms": 60.0}, "config": config, "state": {**state, "processor": "other"}},
        "before": {"cost": {"ms": 60.0, "plain_ms": 12.0, "relative": 5.0}, "config": config},
    }
    for name, cell in cells.items():
        (tmp_path / "cells" / name).mkdir(parents=True)
        (tmp_path / "cells" / name / "result.json").write_text(json.dumps({"label": name, **cell}))
    baselines = [{**state, "load": 0.5, "ms": {"200": 20.0}}]
    (tmp_path / "run.json").write_text(json.dumps({"cells": list(cells), "baselines": baselines}))
    run = read_run(tmp_path)
    times = {result["label"]: run.relative(result) for result in run.results}
    assert (times["now"], times["before"], str(times["slower"])) == (3.0, 5.0, "nan")


def test_every_cell_of_a_run_has_the_same_unit(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    from testtime.bench.grid import run_grid

    tiny = replace(
        small(20), rows=(Row("Source", "Source"), Row("TENT", "Tent")), corruptions=("fog",), limit=10
    )
    for rows in (tiny.rows[:1], tiny.rows):
        assert run_grid(replace(tiny, rows=rows), ".", tmp_path / "run", say=lambda line: None) == []
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    (one,) = about["baselines"]
    run = read_run(tmp_path / "run")
    assert len(run.results) == 2
    for result in run.results:
        assert result["state"] == {
            name: one[name] for name in ("processor", "device", "precision", "threads")
        }
        assert not {"relative", "plain_ms"} & set(result["cost"])
        assert run.relative(result) == result["cost"]["ms"] / one["ms"]["20"]


def test_a_device_that_is_not_there_leaves_no_folder(tmp_path: Path) -> None:
    from testtime.bench.grid import run_grid

    for device, precision in (("gpu", "float32"), ("cpu", "half")):
        with pytest.raises(ValueError, match=r"no device 'gpu' here|precision is one of"):
            run_grid(small(20), ".", tmp_path / "run", device, precision=precision, say=lambda line: None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []
