"""A grid of cells: what it writes, that it goes on where it stopped, that one failure does not end the others."""

import json
import os
import shutil
import signal
import time
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from testtime.bench import cell as cell_module
from testtime.bench import sets
from testtime.bench.cache import cached, missing
from testtime.bench.cell import Cell, make_stream, read_samples, run_cell
from testtime.bench.grid import Grid, _batches, _one, cells, run_grid
from testtime.bench.protocol import Protocol, Row
from testtime.bench.protocols import protocol
from testtime.bench.report import write_report
from testtime.files import write_lines
from testtime.methods import Tent
from testtime.metrics import Samples
from testtime.parts import adam

pytest.importorskip("sklearn")

SMALL = replace(
    protocol("digits-open"),
    rows=(Row("Source", "Source"), Row("TENT", "Tent")),
    corruptions=("fog", "contrast"),
    limit=30,
    slow_limit=10,
)


def small(**changes: object) -> Protocol:
    narrowed = SMALL.narrowed(batch_size=20)
    return replace(narrowed, **changes)  # type: ignore[arg-type]


def quiet(line: str) -> None:
    """Nobody listens."""


def test_a_run_holds_all_that_is_needed_to_repeat_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert run_grid(small(seeds=(0, 1)), ".", out, command=["testtime", "bench"], say=quiet) == []
    about = json.loads((out / "run.json").read_text())
    assert about["seeds"] == [0, 1]
    assert about["command"] == ["testtime", "bench"]
    assert set(about["versions"]) == {"testtime", "torch", "numpy", "python"}
    assert about["facts"]["weights"] == "packaged"
    assert len(about["facts"]["digits"]) == 64
    assert about["facts"]["corruptions"].startswith("ours-")
    assert len(about["cells"]) == 4
    for name in about["cells"]:
        folder = out / "cells" / name
        result = json.loads((folder / "result.json").read_text())
        samples = read_samples(folder / "samples")
        assert (len(samples), int(samples.known.sum())) == (120, 60)
        per_domain = [
            100 * np.mean(samples.correct[samples.known & (samples.visit == visit)]) for visit in (0, 1)
        ]
        assert result["average"]["accuracy"] == pytest.approx(np.mean(per_domain))
        lines = [json.loads(line) for line in (folder / "batches.jsonl").read_text().splitlines()]
        assert [line["batch"] for line in lines] == list(range(6))
        assert sum(line["correct"] for line in lines) == samples.correct.sum()
        assert (result["cost"]["forwards"], result["cost"]["backwards"]) == (
            (1, 0) if result["label"] == "Source" else (1, 1)
        )
    assert not list(out.rglob("*.part"))


def test_finished_cells_are_not_run_again(tmp_path: Path) -> None:
    out, said = tmp_path / "run", []
    run_grid(small(rows=SMALL.rows[:1]), ".", out, say=quiet)
    (first,) = out.glob("cells/*/result.json")
    stamp = first.stat().st_mtime_ns
    run_grid(small(), ".", out, say=said.append)
    assert first.stat().st_mtime_ns == stamp
    assert len(list(out.glob("cells/*/result.json"))) == 2
    assert any("1 of 2 cells are finished already" in line for line in said)


def test_cells_of_another_version_of_a_method_are_named(tmp_path: Path) -> None:
    out, said = tmp_path / "run", []
    run_grid(small(), ".", out, say=said.append)
    run_grid(small(), ".", out, say=said.append)
    assert not any("another version" in line for line in said)
    (path,) = out.glob("cells/tent*/result.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "code": "older"}))
    run_grid(small(), ".", out, say=said.append)
    assert [path.parent.name in line for line in said if "another version" in line] == [True]


@pytest.mark.parametrize(("method", "reset"), [("Tent", False), ("PAFKIP", False), ("Tent", True)])
def test_an_interrupted_cell_goes_on_and_ends_as_if_nothing_had_happened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, reset: bool
) -> None:
    monkeypatch.setattr(cell_module, "CHECKPOINT", 0.0)
    (plan,) = cells(small(rows=(Row("it", method),), reset=reset), ".")
    run_cell(plan, tmp_path / "whole", tmp_path / "cache")
    seen = []

    def stop(name: str, done: int, total: int) -> None:
        seen.append(done)
        if seen == [1, 2, 3, 4]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cell(plan, tmp_path / "cut", tmp_path / "cache", stop)
    assert not (tmp_path / "cut" / "result.json").exists()
    run_cell(plan, tmp_path / "cut", tmp_path / "cache", stop)
    assert seen == [1, 2, 3, 4, 4, 5, 6]  # the fourth batch was answered but not yet saved
    a, b = (read_samples(tmp_path / name / "samples") for name in ("whole", "cut"))
    assert np.array_equal(a.predicted, b.predicted)
    assert np.array_equal(a.score, b.score)
    assert np.array_equal(a.batch, b.batch)
    assert not (tmp_path / "cut" / "state.safetensors").exists()


def test_a_damaged_checkpoint_means_a_new_start(tmp_path: Path) -> None:
    (plan,) = cells(small(rows=SMALL.rows[1:]), ".")
    (tmp_path / "cell").mkdir()
    (tmp_path / "cell" / "state.safetensors").write_bytes(b"not what it should be")
    result = run_cell(plan, tmp_path / "cell", tmp_path / "cache")
    assert result["batches"] == 6


Stop = type("Stop", (BaseException,), {})


def stopped(plan: Cell, folder: Path, cache: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a cell with a checkpoint after each batch, and stop it after so many batches."""

    def stop(name: str, done: int, total: int) -> None:
        if done == after + 1:
            raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(cell_module, "CHECKPOINT", 0.0)
        with pytest.raises(Stop):
            run_cell(plan, folder, cache, stop)


@pytest.mark.parametrize(
    ("name", "keep"),
    [("partial/score.npy", 0), ("partial/batch.npy", 200), ("state.safetensors", 60), ("batches.jsonl", 99)],
)
def test_a_cell_with_a_damaged_checkpoint_starts_again_and_says_so(
    name: str, keep: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plan,) = cells(small(rows=SMALL.rows[1:]), ".")
    folder = tmp_path / plan.name
    stopped(plan, folder, tmp_path / "cache", 3, monkeypatch)
    path = folder / name
    path.write_bytes(path.read_bytes()[:keep])
    said: list[str] = []
    result = run_cell(plan, folder, tmp_path / "cache", None, said.append)
    assert [plan.name in line and "starts again" in line and path.name in line for line in said] == [True]
    assert (result["batches"], result["images"]) == (6, 60)
    assert (result["cost"]["forwards"], result["cost"]["backwards"]) == (1, 1)
    assert len((folder / "batches.jsonl").read_text().splitlines()) == 6


def test_answers_that_came_after_the_state_do_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kill between the answers of a checkpoint and its state leaves the older state."""
    (plan,) = cells(small(rows=SMALL.rows[1:]), ".")
    stopped(plan, tmp_path / "cell", tmp_path / "cache", 2, monkeypatch)
    state = (tmp_path / "cell" / "state.safetensors").read_bytes()
    stopped(plan, tmp_path / "cell", tmp_path / "cache", 4, monkeypatch)
    (tmp_path / "cell" / "state.safetensors").write_bytes(state)
    with (tmp_path / "cell" / "batches.jsonl").open("a") as log:
        log.write('{"batch": 5, "vi')
    seen: list[int] = []
    said: list[str] = []
    run_cell(
        plan, tmp_path / "cell", tmp_path / "cache", lambda name, done, total: seen.append(done), said.append
    )
    assert (seen, said) == ([3, 4, 5, 6], [])
    run_cell(plan, tmp_path / "whole", tmp_path / "cache")
    a, b = (read_samples(tmp_path / name / "samples") for name in ("whole", "cell"))
    assert np.array_equal(a.score, b.score)


@pytest.mark.parametrize("after", [1, 5])
def test_cost_does_not_depend_on_interruptions(
    after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (plan,) = cells(small(rows=SMALL.rows[1:]), ".")
    whole = run_cell(plan, tmp_path / "whole", tmp_path / "cache")["cost"]
    stopped(plan, tmp_path / "cut", tmp_path / "cache", after, monkeypatch)
    cut = run_cell(plan, tmp_path / "cut", tmp_path / "cache")["cost"]
    for name in ("declared", "forwards", "backwards", "state_bytes"):
        assert whole[name] == cut[name]
    assert whole["forwards"] == 1


def killed_in_checkpoints(folder: Path, kills: int) -> set[int]:
    """Kill a process that does nothing but write checkpoints; each has to leave one that can be used."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Flatten())
    adapter, x = Tent(net), torch.rand(2, 3, 4, 4)
    columns = [f.name for f in fields(Samples) if f.name != "selected"]
    lines = write_lines(folder / "batches.jsonl", [{"visit": 0}] * 2000).read_text().splitlines()
    rng, found = np.random.default_rng(0), set()
    for _ in range(kills):
        (folder / "state.safetensors").unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            parts: list[Samples] = []
            adapter.reset()
            for i in range(len(lines)):
                adapter(x)
                full = {name: np.full(2, i, np.int32) for name in columns}
                parts.append(Samples(**full, selected={"kept": np.ones(2, bool)}))
                used = {"forwards": 2 * i + 2, "backwards": 0, "peak_memory": 1}
                cell_module._checkpoint(folder, adapter, parts, i + 1, used)
            os._exit(0)
        while not (folder / "state.safetensors").exists():
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        progress = cell_module._read_checkpoint(folder, adapter, False)
        assert progress.used["forwards"] == 2 * progress.done
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


def test_an_error_is_written_even_where_there_is_no_folder(tmp_path: Path) -> None:
    (plan,) = cells(small(rows=SMALL.rows[1:]), ".", "no-such-device")
    (failure,) = _one(plan, tmp_path / "a" / "b", tmp_path / "cache", lambda *_: None, quiet)
    assert "no-such-device" in (tmp_path / "a" / "b" / "error.txt").read_text()
    assert failure.endswith(f"(see {tmp_path / 'a' / 'b' / 'error.txt'})")
    (tmp_path / "file").write_text("")
    (failure,) = _one(plan, tmp_path / "file", tmp_path / "cache", lambda *_: None, quiet)
    assert "error.txt could not be written" in failure


DAMAGE = ["", "{", "[]", "3", "null", '{"cells": 3}', "[" * 10_000, '{"rows": NaN}', "\x00\x01"]


@pytest.mark.parametrize("text", DAMAGE)
def test_damaged_runs_name_the_file_and_what_to_do(text: str, tmp_path: Path) -> None:
    shutil.copytree(_finished_run(tmp_path.parent), tmp_path / "run")
    out = tmp_path / "run"
    (result,) = out.glob("cells/*/result.json")
    for path in (result, out / "run.json"):
        whole = path.read_bytes()
        path.write_text(text)
        with pytest.raises(ValueError, match=rf"{path.name} is damaged .*; delete .*again"):
            write_report(out)
        path.write_bytes(whole)
    path.write_text(text)
    with pytest.raises(ValueError, match="run\\.json|holds a run with"):
        run_grid(small(rows=SMALL.rows[:1]), ".", out, say=quiet)
    path.write_bytes(whole)
    if "{" not in text or "NaN" in text or text == "{":
        result.write_text(text)
        with pytest.raises(ValueError, match=r"result\.json is damaged"):
            run_grid(small(rows=SMALL.rows[:1]), ".", out, say=quiet)


def _finished_run(folder: Path) -> Path:
    out = folder / "finished-run"
    if not (out / "run.json").is_file():
        assert run_grid(small(rows=SMALL.rows[:1]), ".", out, cache=folder / "cache", say=quiet) == []
    return out


def test_a_damaged_table_of_images_is_made_again(tmp_path: Path) -> None:
    (plan,) = cells(small(rows=SMALL.rows[:1]), ".")
    run_cell(plan, tmp_path / "a", tmp_path / "cache")
    for place, path in enumerate(sorted((tmp_path / "cache").iterdir())):
        path.write_bytes(path.read_bytes()[: 200 * place])
    run_cell(plan, tmp_path / "b", tmp_path / "cache")
    a, b = (read_samples(tmp_path / name / "samples") for name in ("a", "b"))
    assert np.array_equal(a.score, b.score)


def test_a_method_that_fails_does_not_end_the_others(tmp_path: Path) -> None:
    rows = (Row("broken", "Tent", {"norm": None}), Row("Source", "Source"))
    failures = run_grid(small(rows=rows), ".", tmp_path / "run", say=quiet)
    assert len(failures) == 1
    assert failures[0].startswith("broken")
    assert len(list((tmp_path / "run").glob("cells/*/result.json"))) == 1
    assert len(list((tmp_path / "run").glob("cells/broken*/error.txt"))) == 1


def test_processes_give_the_same_numbers(tmp_path: Path) -> None:
    run_grid(small(), ".", tmp_path / "one", say=quiet)
    run_grid(small(), ".", tmp_path / "two", jobs=2, cache=tmp_path / "other", say=quiet)
    for cell in cells(small(), "."):
        a, b = (read_samples(Grid(tmp_path / name).of(cell) / "samples") for name in ("one", "two"))
        assert np.array_equal(a.score, b.score)


def test_the_name_of_a_cell_is_a_function_of_what_it_depends_on() -> None:
    (one, *_) = cells(small(), ".")
    (again, *_) = cells(small(), ".")
    assert one.name == again.name
    assert one.name != cells(small(limit=31), ".")[0].name
    assert one.name != replace(one, seed=1).name


def test_tables_of_corrupted_images_are_the_images(tmp_path: Path) -> None:
    column = small().columns[0]
    whole = make_stream(small(), column, 0, ".", 30)
    part = make_stream(small(), column, 0, ".", 10)
    assert len(missing(whole, tmp_path)) == 4
    ready, head = cached(whole, tmp_path), cached(part, tmp_path, whole)
    assert missing(whole, tmp_path) == []
    assert len(list(tmp_path.glob("*.npy"))) == 4
    for plain, stored in ((whole, ready), (part, head)):
        assert len(plain) == len(stored)
        assert all(torch.equal(a.x, b.x) for a, b in zip(plain, stored, strict=True))
        assert all(torch.equal(a.y, b.y) for a, b in zip(plain, stored, strict=True))


def test_orders_of_arrival(tmp_path: Path) -> None:
    column = small().columns[0]
    names = {}
    for order in ("continual", "gradual", "mixed", "correlated", "mixed-correlated", "label-shift"):
        stream = make_stream(small(order=order), column, 0, ".", 10)
        names[order] = list(dict.fromkeys(plan.domain for plan in stream.plans))
    assert names["continual"] == names["correlated"] == names["label-shift"] == ["fog", "contrast"]
    assert names["mixed"] == names["mixed-correlated"] == ["mixed"]
    assert names["gradual"][:5] == ["fog-1", "fog-2", "fog-3", "fog-4", "fog"]
    gradual = make_stream(small(order="gradual"), column, 0, ".", 10)
    assert max(plan.visit for plan in gradual.plans) == 17


def test_what_returns_is_clean_and_is_counted() -> None:
    one = small(returns=True)
    stream = make_stream(one, one.columns[0], 0, ".", 10)
    assert list(dict.fromkeys(plan.domain for plan in stream.plans)) == ["fog", "contrast", "clean"]
    assert _batches(cells(one, ".")[0]) == 9


def test_a_reset_makes_every_domain_the_first(tmp_path: Path) -> None:
    rows = tuple(row for row in SMALL.rows if row.label == "TENT")
    runs = {}
    for name, reset in (("both", True), ("never", False)):
        run_grid(small(rows=rows, reset=reset), ".", tmp_path / name, say=quiet)
        (folder,) = (tmp_path / name / "cells").iterdir()
        runs[name] = read_samples(folder / "samples").score
    half = len(runs["both"]) // 2
    assert np.array_equal(runs["both"][:half], runs["never"][:half])
    assert not np.array_equal(runs["both"][half:], runs["never"][half:])


def test_a_folder_is_added_to_by_the_same_protocol_and_refused_to_others(tmp_path: Path) -> None:
    out = tmp_path / "run"
    run_grid(small(rows=SMALL.rows[1:]), ".", out, say=quiet)
    run_grid(small(rows=SMALL.rows[:1], seeds=(1,)), ".", out, say=quiet)
    about = json.loads((out / "run.json").read_text())
    assert [row["label"] for row in about["rows"]] == ["Source", "TENT"]
    assert about["seeds"] == [0, 1]
    assert len(about["cells"]) == 2
    other = Row("TENT", "Tent", {"optimizer": adam(0.5)})
    run_grid(small(rows=(other,)), ".", out, say=quiet)
    again = json.loads((out / "run.json").read_text())
    assert len(again["cells"]) == 2  # the new TENT in place of the old
    assert again["cells"] != about["cells"]
    with pytest.raises(ValueError, match="limit 30, this one has 31"):
        run_grid(small(limit=31), ".", out, say=quiet)


def test_progress_ends_at_its_total(tmp_path: Path) -> None:
    said: list[str] = []
    run_grid(small(), ".", tmp_path / "run", say=said.append)
    assert said[-1].startswith("12/12 batches")
    assert "0:00 left  finished tent" in said[-1]


def test_a_stream_that_does_not_wait_is_answered_by_the_source_model_meanwhile(tmp_path: Path) -> None:
    tent = SMALL.rows[1:]
    results = {}
    for name, speed in (("waits", None), ("fast", 1.0)):
        (cell,) = cells(small(rows=tent, speed=speed), ".")
        run_cell(cell, tmp_path / name, tmp_path / "cache")
        lines = (tmp_path / name / "batches.jsonl").read_text().splitlines()
        results[name] = [json.loads(line)["updated"] for line in lines]
    assert results["waits"] == [True] * 6
    assert results["fast"] == [True, False, False, True, False, False]  # a forward and a backward take three
    (source,) = cells(small(rows=SMALL.rows[:1]), ".")
    run_cell(source, tmp_path / "source", tmp_path / "cache")
    fast, plain = (read_samples(tmp_path / name / "samples") for name in ("fast", "source"))
    missed = np.isin(fast.batch, [1, 2, 4, 5])
    assert np.array_equal(fast.predicted[missed], plain.predicted[missed])


def test_a_wandering_stream_keeps_to_the_accuracy_that_was_asked_for() -> None:
    one = small(order="wandering", target=0.5, pace=10, columns=(replace(SMALL.columns[0], open_set=None),))
    column = replace(one.columns[0], batch_size=20)
    stream = make_stream(one, column, 0, ".", 50)
    assert len(stream) == 5
    assert {plan.domain for plan in stream.plans} <= {"fog > contrast", "contrast > fog"}
    known = sets.difficulty("digits", "digits-cnn", ".").known
    assert {"clean", "fog-5", "contrast-5", "contrast-3+fog-2"} <= known.keys()
    assert known["clean"] > 0.9
    opened = make_stream(one, SMALL.columns[0], 0, ".", 50)
    assert all(0 < int((batch.y < 0).sum()) < len(batch) for batch in opened)
    with pytest.raises(ValueError, match="needs a target and a pace"):
        small(order="wandering")


def test_cells_of_before_keep_their_names() -> None:
    config = cells(small(), ".")[0].config
    assert not {"target", "pace", "speed", "reset", "returns"} & config.keys()
    assert cells(small(speed=1.0), ".")[0].config["speed"] == 1.0


def test_what_another_process_has_yet_to_begin_stays_in_the_plan(tmp_path: Path) -> None:
    one, other = small(rows=SMALL.rows[:1]), small(rows=SMALL.rows[1:])
    grid = Grid(tmp_path / "run")
    grid.write(one, cells(one, "."), [])
    grid.write(other, cells(other, "."), [])
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert set(about["cells"]) == {cell.name for cell in (*cells(one, "."), *cells(other, "."))}
