"""The engine on numbers: results, order, resume, failures, versions; and what a second run finds."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_family import Toy, events

from testtime.claims import claimed
from testtime.errors import DataError
from testtime.experiments import Plan, Processes, Request, find_experiment, read_run, run_experiment
from testtime.experiments.backends import _shared_modules
from testtime.experiments.store import Store
from testtime.files import read_json, write_json

ASKED = Request("toy", precision="float32")


def silent(line: str) -> None:
    return None


def test_cells_have_the_values_of_their_needs_and_the_table_reads_them(tmp_path: Path) -> None:
    summary = run_experiment(Toy(), ASKED, tmp_path / "run", say=silent)
    assert summary.exit_code == 0
    assert sorted(summary.done) == sorted(
        [f"{name} {seed}" for seed in (0, 1) for name in ("source", "rate", "base", "one", "two")]
    )
    run = read_run(tmp_path / "run")
    (table,) = Toy().tables(run)
    assert {key[0]: dict(values) for key, values in table.values.items()} == {
        "base": {0: 0.5, 1: 20.5},
        "one": {0: 1.5, 1: 21.5},
        "two": {0: 2.5, 1: 22.5},
    }
    assert table.best(table.columns[0]) == "two"
    assert run.other("rate 1") == {"rate": 10.5}
    assert run.missing == []
    assert run.request.seeds == (0, 1)
    assert run.about["facts"] == {"numbers": "ff"}
    assert run.about["sessions"][0]["versions"].keys() >= {"testtime", "torch", "numpy", "python"}


def test_a_second_call_does_nothing_and_another_run_shares_the_store(tmp_path: Path) -> None:
    run_experiment(Toy(), ASKED, tmp_path / "run", say=silent)
    lines: list[str] = []
    assert run_experiment(Toy(), ASKED, tmp_path / "run", say=lines.append).done == []
    assert lines == ["8 of 8 units are finished already"]
    other = run_experiment(Toy(), replace(ASKED, seeds=(1, 2)), tmp_path / "other", say=silent)
    assert Counter(event["event"] for event in events(tmp_path / "store")) == {"started": 15, "finished": 15}
    assert sorted(other.done) == sorted(f"{name} 2" for name in ("source", "rate", "base", "one", "two"))
    assert read_run(tmp_path / "other").missing == []


def test_the_folder_of_a_run_is_enough_without_its_store(tmp_path: Path) -> None:
    run_experiment(Toy(), ASKED, tmp_path / "run", say=silent)
    (tmp_path / "store").rename(tmp_path / "gone")
    assert run_experiment(Toy(), ASKED, tmp_path / "run", say=silent).done == []
    # A new row needs artefacts, which are made again.
    more = run_experiment(Toy(three=3.0), replace(ASKED, seeds=(1,)), tmp_path / "run", say=silent)
    assert sorted(more.done) == ["rate 1", "source 1", "three 1"]
    (table,) = Toy().tables(read_run(tmp_path / "run"))
    assert table.values["three", "value"] == {1: 23.5}
    assert read_run(tmp_path / "run").missing == ["three, all, seed 0"]
    assert table.best(table.columns[0]) is None


def test_rows_and_seeds_are_added_and_other_settings_are_refused(tmp_path: Path) -> None:
    run_experiment(Toy(), replace(ASKED, rows=("ONE",), seeds=(0,)), tmp_path / "run", say=silent)
    assert [cell["row"] for cell in read_run(tmp_path / "run").about["cells"]] == ["base", "one"]
    done = run_experiment(Toy(), replace(ASKED, rows=("two",), seeds=(0,)), tmp_path / "run", say=silent).done
    assert done == ["two 0"]
    assert [cell["row"] for cell in read_run(tmp_path / "run").about["cells"]] == ["base", "one", "two"]
    with pytest.raises(
        ValueError, match="a run with the default limit, this one has limit 5; give another folder"
    ):
        run_experiment(Toy(), replace(ASKED, limit=5), tmp_path / "run", say=silent)
    with pytest.raises(ValueError, match="no row 'tow' .did you mean 'two'"):
        run_experiment(Toy(), replace(ASKED, rows=("tow",)), tmp_path / "run", say=silent)
    with pytest.raises(ValueError, match="no setting of toy 'slep' .did you mean 'sleep'"):
        run_experiment(Toy(), replace(ASKED, settings={"slep": 1}), tmp_path / "run", say=silent)


def test_a_failed_unit_leaves_its_error_and_the_others_go_on(tmp_path: Path) -> None:
    lines: list[str] = []
    summary = run_experiment(Toy(bad=None), replace(ASKED, seeds=(0,)), tmp_path / "run", say=lines.append)
    assert summary.exit_code == 1
    assert summary.failed == {"bad 0": "ArithmeticError: it diverges"}
    assert len(summary.done) == 5
    run = read_run(tmp_path / "run")
    (failure,) = run.failures.values()
    assert failure["error"] == "ArithmeticError: it diverges"
    assert failure["traceback"][0].startswith("Traceback")
    assert run.missing == ["bad, all, seed 0"]
    assert run.notes == ["Failed: bad 0: ArithmeticError: it diverges."]
    assert len(lines) == 1
    assert lines[0].startswith("failed: bad 0: ArithmeticError: it diverges (see ")


def test_what_needs_a_failed_unit_is_not_run(tmp_path: Path) -> None:
    request = replace(ASKED, seeds=(0,), settings={"steps": 0})  # it leaves no log to read
    summary = run_experiment(Toy(), request, tmp_path / "run", say=silent)
    assert list(summary.failed) == ["source 0"]
    assert summary.not_run == dict.fromkeys(("rate 0", "base 0", "one 0", "two 0"), "source 0")


def test_a_result_of_another_version_is_reported_and_made_again_when_asked(tmp_path: Path) -> None:
    def asked(number: str) -> Request:
        return replace(ASKED, seeds=(0,), settings={"version": number})

    run_experiment(Toy(), asked("1"), tmp_path / "run", say=silent)
    lines: list[str] = []
    changed = run_experiment(Toy(), asked("2"), tmp_path / "new", say=lines.append)
    assert changed.outdated == ["one 0"]
    assert "made with another version of the code and kept; --again makes them again: one 0" in lines
    assert read_run(tmp_path / "new").outdated == ["one 0"]
    assert read_run(tmp_path / "new").notes == ["Made with another version of the code: one 0."]
    again = run_experiment(Toy(), asked("2"), tmp_path / "new", say=silent, again=True)
    assert (again.done, again.outdated) == (["one 0"], [])
    assert read_run(tmp_path / "new").outdated == []


def test_processes_give_the_same_results_bit_for_bit_and_survive_a_killed_worker(tmp_path: Path) -> None:
    toy, lines = Toy(killed=-1.0), []
    with Processes(2) as backend:
        here = run_experiment(Toy(killed=1.0), ASKED, tmp_path / "a/run", say=silent)
        there = run_experiment(toy, ASKED, tmp_path / "b/run", backend=backend, say=lines.append)
    assert (here.exit_code, there.exit_code, lines) == (0, 0, [])
    ours, theirs = read_run(tmp_path / "a/run").results, read_run(tmp_path / "b/run").results
    common = ours.keys() & theirs.keys()
    assert len(common) == 10
    assert all(ours[key]["result"] == theirs[key]["result"] for key in common)
    (table,) = toy.tables(read_run(tmp_path / "b/run"))
    assert table.values["killed", "value"] == {0: -0.5, 1: 19.5}
    taken = [event for event in events(tmp_path / "b/store") if "took_over" in event]
    assert {"killed 0", "killed 1"} <= {event["name"] for event in taken}


def test_a_unit_that_another_process_holds_is_waited_for(tmp_path: Path) -> None:
    toy = Toy()
    run_experiment(toy, replace(ASKED, seeds=(0,), rows=("base",)), tmp_path / "run", say=silent)
    units = {u.name: u for u in toy.plan(replace(ASKED, seeds=(0,))).units}
    folder = Store(tmp_path / "store").folder(units["one 0"].address)
    order: list[str] = []

    def hold() -> None:
        with claimed(folder) as (own, _):
            assert own is not None
            time.sleep(1.5)
            order.append("released")

    thread = threading.Thread(target=hold)
    thread.start()
    time.sleep(0.2)
    summary = run_experiment(toy, replace(ASKED, seeds=(0,)), tmp_path / "run", say=silent)
    order.append("done")
    thread.join()
    assert order == ["released", "done"]
    assert summary.done == ["two 0", "one 0"]


def test_a_unit_that_kills_its_process_every_time_fails_alone(tmp_path: Path) -> None:
    request = replace(ASKED, seeds=(0,), settings={"sleep": 0.05})
    with Processes(3) as backend:
        toy = Toy(killer=-2.0)
        summary = run_experiment(toy, request, tmp_path / "run", backend=backend, say=silent)
    assert list(summary.failed) == ["killer 0"]
    assert summary.failed["killer 0"].startswith(
        "its process was killed 3 times, for memory (take fewer --jobs"
    )
    assert len(summary.done) == 5
    started = Counter(event["name"] for event in events(tmp_path / "store") if event["event"] == "started")
    assert started["killer 0"] == 3


def test_a_result_that_is_no_json_fails_its_unit(tmp_path: Path) -> None:
    summary = run_experiment(Toy(strange=1e3), replace(ASKED, seeds=(0,)), tmp_path / "run", say=silent)
    assert summary.failed == {"strange 0": "TypeError: Object of type complex is not JSON serializable"}


def test_an_own_method_gets_a_row_and_is_added_to_the_run(tmp_path: Path) -> None:
    toy = Toy()
    run_experiment(toy, replace(ASKED, seeds=(0,), rows=("one",)), tmp_path / "run", say=silent)
    request = replace(ASKED, seeds=(0,), rows=("one",), methods=("toy_family:Mine",))
    assert run_experiment(toy, request, tmp_path / "run", say=silent).done == ["one (toy_family:Mine) 0"]
    rows = read_run(tmp_path / "run").rows
    assert [(row.label, dict(row.about)) for row in rows] == [
        ("base", {"gain": 0.0}),
        ("one", {"gain": 1.0}),
        ("one (toy_family:Mine)", {"method": "toy_family:Mine"}),
    ]
    more = replace(request, rows=("base",), methods=("testtime.methods:PAFKIP",))
    run_experiment(toy, more, tmp_path / "run", say=silent)
    assert [row.label for row in read_run(tmp_path / "run").rows][2:] == ["one (toy_family:Mine)", "PAF+KIP"]


def test_a_unit_that_fails_in_another_process_is_reported_and_not_tried_again(tmp_path: Path) -> None:
    toy, request = Toy(), replace(ASKED, seeds=(0,))
    run_experiment(toy, replace(request, rows=("base",)), tmp_path / "run", say=silent)
    units = {unit.name: unit for unit in toy.plan(request).units}
    folder = Store(tmp_path / "store").folder(units["one 0"].address)
    begun = threading.Event()

    def fail() -> None:
        with claimed(folder) as (own, _):
            assert own is not None
            begun.set()
            time.sleep(1.0)
            write_json(folder / "error.json", {"error": "OSError: no", "traceback": "T", "token": own.token})

    thread = threading.Thread(target=fail)
    thread.start()
    begun.wait()
    summary = run_experiment(toy, request, tmp_path / "run", say=silent)
    thread.join()
    assert (summary.failed, summary.done) == ({"one 0": "OSError: no"}, ["two 0"])
    # The next command tries again.
    assert run_experiment(toy, request, tmp_path / "run", say=silent).done == ["one 0"]
    assert read_run(tmp_path / "run").failures == {}


def test_an_experiment_without_autocast_refuses_bfloat16_and_does_not_claim_it(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(Toy, "precisions", lambda self, request: ("float32",), raising=False)
    monkeypatch.setattr("testtime.processor.fast_bfloat16", lambda device: True)
    request = replace(ASKED, seeds=(0,), precision="auto")
    with pytest.raises(ValueError, match="toy computes in float32, not in bfloat16; leave --precision out"):
        run_experiment(Toy(), replace(request, precision="bfloat16"), tmp_path / "run", say=silent)
    assert not (tmp_path / "run").exists()
    run_experiment(Toy(), request, tmp_path / "run", say=silent)
    assert read_run(tmp_path / "run").request.precision == "float32"
    assert find_experiment("space-main").precisions(Request("space-main")) == ("float32",)
    paper = Request("space-main", settings={"preset": "paper-S"})
    assert find_experiment("space-main").precisions(paper) == ("float32", "bfloat16")


def test_the_provenance_names_versions_machine_precision_and_command(tmp_path: Path) -> None:
    request = replace(ASKED, seeds=(0,), precision="auto")
    run_experiment(Toy(), request, tmp_path / "run", say=silent, command=["testtime", "run", "toy"])
    run = read_run(tmp_path / "run")
    (session,) = run.about["sessions"]
    assert session["command"] == ["testtime", "run", "toy"]
    assert session["versions"]["torch"] == version("torch")
    assert run.request.precision == session["precision"] in ("float32", "bfloat16")
    assert session["threads"] == torch.get_num_threads()
    assert session["machine"]["processor"]
    # A second command with "auto" keeps the precision, whatever the processor is.
    path = tmp_path / "run" / "run.toml"
    path.write_text(path.read_text().replace(f'"{run.request.precision}"', '"bfloat16"'))
    run_experiment(Toy(), request, tmp_path / "run", say=silent)
    assert read_run(tmp_path / "run").request.precision == "bfloat16"


def test_processes_that_begin_a_run_at_once_agree_on_it(tmp_path: Path) -> None:
    class Slow(Toy):
        def plan(self, request: Request) -> Plan:
            if threading.current_thread() not in met:
                met.append(threading.current_thread())
                barrier.wait(30)
            return super().plan(request)

    barrier, met = threading.Barrier(2), list[threading.Thread]()
    planned = [Slow(), Slow()]

    def begin(toy: Toy, seed: int) -> None:
        run_experiment(toy, replace(ASKED, seeds=(seed,), rows=("one",)), tmp_path / "run", say=silent)

    threads = [threading.Thread(target=begin, args=(toy, seed)) for seed, toy in enumerate(planned)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    run = read_run(tmp_path / "run")
    assert (run.request.seeds, run.missing, len(run.about["sessions"])) == ((0, 1), [], 2)
    assert not list((tmp_path / "run").glob("claim-*"))


def test_a_folder_of_a_later_version_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    run_experiment(Toy(), replace(ASKED, seeds=(0,)), tmp_path / "run", say=silent)
    path = tmp_path / "run" / "run.json"
    write_json(path, read_json(path, "") | {"schema": 99})
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*.*")}
    with pytest.raises(DataError, match="it has schema 99, this version of testtime reads up to 1"):
        run_experiment(Toy(), replace(ASKED, seeds=(1,)), tmp_path / "run", say=silent)
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*.*")} == before


def test_units_are_tried_again_where_the_process_that_starts_workers_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failed: list[str] = []
    start = ProcessPoolExecutor.submit

    def submit(self: ProcessPoolExecutor, *args: Any) -> Any:
        if not failed:
            failed.append("once")
            raise EOFError("unexpected EOF")
        return start(self, *args)

    monkeypatch.setattr(ProcessPoolExecutor, "submit", submit)
    with Processes(2) as backend:
        summary = run_experiment(
            Toy(), replace(ASKED, seeds=(0,)), tmp_path / "run", backend=backend, say=silent
        )
    assert (failed, summary.failed, len(summary.done)) == (["once"], {}, 5)


def test_workers_share_what_is_loaded_but_not_the_code_of_others() -> None:
    shared = _shared_modules("testtime.experiments.demo:adapt_to_digits")
    assert shared[0] == "torch"
    assert shared[-1] == "testtime.experiments.demo"
    assert "testtime.experiments.engine" in shared  # which this process has loaded
    assert "toy_family" not in _shared_modules("toy_family:cell")
