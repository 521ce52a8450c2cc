"""A cell of a run: what it keeps, that it goes on exactly where it stopped, and what its time is related to."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_online import ROWS, asked, finished, results, run, unit, workspace

from testtime import evaluation
from testtime.evaluation import Progress, read_samples
from testtime.experiments import Unit, read_run
from testtime.experiments.online import cell as cell_module
from testtime.experiments.online.cell import adapt_online, machine_state, measure_baseline, plain_milliseconds
from testtime.experiments.online.experiment import online
from testtime.experiments.online.stream import make_stream
from testtime.methods import Tent
from testtime.metrics import Samples

pytest.importorskip("sklearn", reason="the embedded data come with testtime[demo]")
PLACES = {"data": "."}


def parameters(limit: int = 30, **changes: Any) -> dict[str, Any]:
    """The parameters of the small stream."""
    return dict(unit("Source", limit=limit, **changes).parameters)


def test_a_cell_keeps_what_its_figures_are_computed_from(tmp_path: Path) -> None:
    work = workspace(unit(), tmp_path / "cell")
    result = adapt_online(work)
    samples = read_samples(work.folder)
    assert (len(samples), int(samples.known.sum())) == (120, 60)
    per_domain = [
        100 * np.mean(samples.correct[samples.known & (samples.visit == visit)]) for visit in (0, 1)
    ]
    assert result["average"]["accuracy"] == pytest.approx(np.mean(per_domain))
    lines = [json.loads(line) for line in (work.folder / "batches.jsonl").read_text().splitlines()]
    assert [line["batch"] for line in lines] == list(range(6))
    assert sum(line["correct"] for line in lines) == samples.correct.sum()
    assert (result["cost"]["forwards"], result["cost"]["backwards"]) == (1, 1)
    assert (result["images"], result["unknown"], result["batches"], result["limit"]) == (60, 60, 6, 30)
    assert sum(result["scores"]["known"]) == pytest.approx(1, abs=1e-3)
    assert sorted(path.name for path in work.folder.iterdir()) == ["batches.jsonl", "samples.safetensors"]


def test_a_run_holds_all_that_is_needed_to_repeat_it(tmp_path: Path) -> None:
    found = finished(tmp_path / "run", asked(seeds=(0, 1)))
    assert found.request.seeds == (0, 1)
    assert found.missing == []
    assert [row.label for row in found.rows] == ROWS
    assert (found.about["facts"]["weights"], len(found.about["facts"]["digits"])) == ("packaged", 64)
    assert found.about["facts"]["corruptions"].startswith("ours-")
    assert found.about["about"]["stream"]["order"] == "continual"
    assert {record.result["made"]["precision"] for record in found.records()} == {"float32"}


Stop = type("Stop", (BaseException,), {})


def stopped(one: Unit, folder: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a cell with a checkpoint after each batch, and stop it after so many batches, before the next one is saved."""

    def stop(share: float) -> None:
        if round(6 * share) == after + 1:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "CHECKPOINT", 0.0)
        with pytest.raises(Stop):
            adapt_online(workspace(one, folder, stop))


@pytest.mark.parametrize(("method", "reset"), [("TENT", False), ("PAF+KIP", False), ("TENT", True)])
def test_an_interrupted_cell_goes_on_and_ends_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, reset: bool
) -> None:
    one = unit(method, reset=reset)
    whole = adapt_online(workspace(one, tmp_path / "whole"))
    stopped(one, tmp_path / "cut", 3, monkeypatch)
    assert not (tmp_path / "cut" / "samples.safetensors").exists()
    seen: list[int] = []
    cut = adapt_online(workspace(one, tmp_path / "cut", lambda share: seen.append(round(6 * share))))
    assert seen == [4, 5, 6]  # the fourth batch was predicted but not yet saved
    a, b = (read_samples(tmp_path / name) for name in ("whole", "cut"))
    assert np.array_equal(a.predicted, b.predicted)
    assert np.array_equal(a.score, b.score)
    assert np.array_equal(a.batch, b.batch)
    for name in ("average", "domains", "time", "filters", "forgetting", "scores"):
        assert whole[name] == cut[name]
    for name in ("declared", "forwards", "backwards", "state_bytes"):
        assert whole["cost"][name] == cut["cost"][name]
    assert not (tmp_path / "cut" / evaluation.STATE).exists()


@pytest.mark.parametrize("keep", [0, 60, -1])
def test_a_cell_with_a_damaged_checkpoint_starts_again_and_says_so(
    keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    one, folder = unit(), tmp_path / "cell"
    stopped(one, folder, 3, monkeypatch)
    path = folder / evaluation.STATE
    path.write_bytes(path.read_bytes()[:keep])
    with caplog.at_level(logging.WARNING):
        result = adapt_online(workspace(one, folder))
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("cell starts again, its checkpoint cannot be used: ")
    assert path.name in message
    assert (result["batches"], result["images"], result["cost"]["forwards"]) == (6, 60, 1)
    assert len((folder / "batches.jsonl").read_text().splitlines()) == 6


def test_lines_that_came_after_the_checkpoint_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, folder = unit(), tmp_path / "cell"
    stopped(one, folder, 2, monkeypatch)
    with (folder / "batches.jsonl").open("a") as log:
        log.write('{"batch": 5, "vi')
    adapt_online(workspace(one, folder))
    lines = [json.loads(line)["batch"] for line in (folder / "batches.jsonl").read_text().splitlines()]
    assert lines == list(range(6))


def killed_in_checkpoints(folder: Path, kills: int) -> set[int]:
    """Kill a process that does nothing but write checkpoints; each has to leave one that can be used."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    adapter, x = Tent(net), torch.rand(2, 3, 4, 4)
    folder.mkdir()
    rng, found = np.random.default_rng(0), set()
    for _ in range(kills):
        (folder / evaluation.STATE).unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            progress = Progress()
            adapter.reset()
            for i in range(2000):
                adapter(x)
                columns = {name: np.full(2, i, np.int32) for name in evaluation.COLUMNS}
                progress.parts.append(Samples(**columns, selected={"kept": np.ones(2, bool)}))
                progress.lines.append({"visit": 0})
                progress.used = {"forwards": 2 * i + 2, "backwards": 0, "peak_memory": 1}
                evaluation.save(folder, adapter, progress)
            os._exit(0)
        while not (folder / evaluation.STATE).exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        progress = evaluation.resume(folder, adapter)
        assert progress.done >= 1
        assert progress.used["forwards"] == 2 * progress.done
        assert int(adapter.state_dict()["clock"]) == progress.done
        assert progress.parts[0].score.tolist() == [i for i in range(progress.done) for _ in range(2)]
        found.add(progress.done)
    return found


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_a_kill_in_a_checkpoint_leaves_one_that_can_be_used(tmp_path: Path) -> None:
    assert len(killed_in_checkpoints(tmp_path / "cell", 15)) > 1


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_many_kills_in_checkpoints_leave_one_that_can_be_used(tmp_path: Path) -> None:
    killed_in_checkpoints(tmp_path / "cell", 400)


def test_a_method_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from testtime import Adapter\nclass Broken(Adapter):\n    def step(self, x):\n        raise ArithmeticError('no')\n"
    )
    request = asked(rows=("Source",), methods=(f"broken_{id(tmp_path)}:Broken",))
    (tmp_path / "broken.py").rename(tmp_path / f"broken_{id(tmp_path)}.py")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        summary = run(tmp_path / "run", request)
    assert list(summary.failed) == ["Broken, Photographs, seed 0"]
    found = read_run(tmp_path / "run")
    assert list(results(tmp_path / "run")) == [("Source", "Photographs", 0)]
    error = "ArithmeticError: no (raised in Broken, on a batch of shape (20, 3, 32, 32))"
    assert [failure["error"] for failure in found.failures.values()] == [error]
    assert found.missing == ["Broken, Photographs, seed 0"]


def test_processes_give_the_same_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # a process has the module as it is
    finished(tmp_path / "one" / "run")
    assert run(tmp_path / "two" / "run", jobs=2).exit_code == 0
    a, b = (results(tmp_path / name / "run") for name in ("one", "two"))
    assert a.keys() == b.keys()
    for place in a:
        for name in ("average", "domains", "time", "filters", "scores", "forgetting"):
            assert a[place][name] == b[place][name]


def test_a_damaged_table_of_images_is_made_again(tmp_path: Path) -> None:
    one = unit("Source")
    before = adapt_online(workspace(one, tmp_path / "a"))
    tables = sorted((tmp_path / "cache").glob("*.npy"))
    assert len(tables) == 4
    for place, path in enumerate(tables):
        path.write_bytes(path.read_bytes()[: 200 * place])
    after = adapt_online(workspace(one, tmp_path / "b"))
    assert after["average"] == before["average"]
    assert np.array_equal(read_samples(tmp_path / "a").score, read_samples(tmp_path / "b").score)


def test_orders_of_arrival() -> None:
    names = {}
    for order in ("continual", "gradual", "mixed", "correlated", "mixed-correlated", "label-shift"):
        stream = make_stream(parameters(order=order), PLACES, 10)
        names[order] = list(dict.fromkeys(plan.domain for plan in stream.plans))
    assert names["continual"] == names["correlated"] == names["label-shift"] == ["fog", "contrast"]
    assert names["mixed"] == names["mixed-correlated"] == ["mixed"]
    assert names["gradual"][:5] == ["fog-1", "fog-2", "fog-3", "fog-4", "fog"]
    gradual = make_stream(parameters(order="gradual"), PLACES, 10)
    assert max(plan.visit for plan in gradual.plans) == 17


def test_what_returns_is_clean() -> None:
    stream = make_stream(parameters(returns=True), PLACES, 10)
    assert list(dict.fromkeys(plan.domain for plan in stream.plans)) == ["fog", "contrast", "clean"]


def test_a_reset_makes_every_domain_the_first(tmp_path: Path) -> None:
    scores = {}
    for name, reset in (("both", True), ("never", False)):
        adapt_online(workspace(unit(reset=reset), tmp_path / name))
        scores[name] = read_samples(tmp_path / name).score
    half = len(scores["both"]) // 2
    assert np.array_equal(scores["both"][:half], scores["never"][:half])
    assert not np.array_equal(scores["both"][half:], scores["never"][half:])


def test_a_stream_that_does_not_wait_is_predicted_by_the_source_model_meanwhile(tmp_path: Path) -> None:
    updated = {}
    for name, speed in (("waits", None), ("fast", 1.0)):
        adapt_online(workspace(unit(speed=speed), tmp_path / name))
        lines = (tmp_path / name / "batches.jsonl").read_text().splitlines()
        updated[name] = [json.loads(line)["updated"] for line in lines]
    assert updated["waits"] == [True] * 6
    assert updated["fast"] == [True, False, False, True, False, False]  # a forward and a backward take three
    adapt_online(workspace(unit("Source"), tmp_path / "source"))
    fast, plain = (read_samples(tmp_path / name) for name in ("fast", "source"))
    missed = np.isin(fast.batch, [1, 2, 4, 5])
    assert np.array_equal(fast.predicted[missed], plain.predicted[missed])


def test_a_wandering_stream_keeps_to_the_accuracy_that_was_asked_for(tmp_path: Path) -> None:
    wandering = {"order": "wandering", "target": 0.5, "pace": 10}
    stream = make_stream(parameters(50, open_sets=["none"], **wandering), PLACES, 50, tmp_path)
    assert len(stream) == 5
    assert {plan.domain for plan in stream.plans} <= {"fog > contrast", "contrast > fog"}
    (kept,) = tmp_path.glob("difficulty-*.json")
    known = json.loads(kept.read_text())
    assert {"clean", "fog-5", "contrast-5", "contrast-3+fog-2"} <= known.keys()
    assert known["clean"] > 0.9
    opened = make_stream(parameters(50, **wandering), PLACES, 50, tmp_path)
    assert all(0 < int((batch.y < 0).sum()) < len(batch) for batch in opened)
    units = [unit("Source", **wandering), unit("Source")]
    assert [("model" in one.needs["images"].parameters) for one in units] == [True, False]


def test_the_packaged_difficulty_is_that_of_its_model() -> None:
    file = Path(cell_module.__file__).parent / "difficulties" / "cifar10-cifar10-resnet20.json"
    assert len(json.loads(file.read_text())) == 1 + 15 * 5 + 105 * 25


def test_slow_methods_see_fewer_images(tmp_path: Path) -> None:
    result = adapt_online(workspace(unit("CoTTA"), tmp_path / "cell"))
    assert (result["limit"], result["images"], result["cost"]["declared"]) == (10, 20, [34, 1])


def test_each_batch_size_and_number_of_threads_has_its_baseline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def take(work: Any, count: int) -> float:
        calls.append((count, torch.get_num_threads()))
        return 2.0 * count * torch.get_num_threads()

    monkeypatch.setattr(cell_module, "_measured", take)
    one = online("digits-open")
    baseline = one._baseline(asked(), one.find_inputs(asked(), one.columns, {"data": "."}), one.columns * 2)
    assert (baseline.alone, baseline.parameters["batch_sizes"]) == (True, [100])
    work = workspace(baseline, tmp_path / "baseline")
    work = type(work)(
        {**work.parameters, "threads": [1, 2], "batch_sizes": [50, 100]}, *list(vars(work).values())[1:]
    )
    own = torch.get_num_threads()
    found = measure_baseline(work)["baselines"]
    assert torch.get_num_threads() == own
    assert calls == [(50, 1), (100, 1), (50, 2), (100, 2)]
    assert [entry["ms"] for entry in found] == [{"50": 100.0, "100": 200.0}, {"50": 200.0, "100": 400.0}]
    state = machine_state("cpu", "float32", 2)
    assert plain_milliseconds(found, state, 50) == 200.0
    for unknown in ({**state, "processor": "another"}, {**state, "precision": "bfloat16"}, {}):
        assert str(plain_milliseconds(found, unknown, 50)) == "nan"
    assert str(plain_milliseconds(found, state, 51)) == "nan"


def test_the_measurement_itself_is_a_time(tmp_path: Path) -> None:
    one = online("digits-open")
    baseline = one._baseline(asked(), one.find_inputs(asked(), one.columns, {"data": "."}), one.columns)
    (first, *_) = measure_baseline(workspace(baseline, tmp_path / "baseline"))["baselines"]
    assert 0 < first["ms"]["100"] < 5000
    assert first.keys() == {"processor", "device", "precision", "threads", "load", "ms"}


def test_a_device_that_is_not_there_leaves_no_folder(tmp_path: Path) -> None:
    from dataclasses import replace

    with pytest.raises(ValueError, match="no device 'gpu' here"):
        run(tmp_path / "run", replace(asked(), device="gpu"))
    assert list(tmp_path.iterdir()) == []


def test_results_of_a_run_that_was_copied_are_enough(tmp_path: Path) -> None:
    finished(tmp_path / "a" / "run", asked(rows=("Source",)))
    shutil.copytree(tmp_path / "a" / "run", tmp_path / "b" / "run")
    said: list[str] = []
    assert run(tmp_path / "b" / "run", asked(rows=("Source",)), say=said.append).done == []
    assert said == ["2 of 2 units are finished already"]
