"""The family "production": its streams, a unit that goes on where it stopped, and its tables."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from testtime.experiments import Request, Workspace, find_experiment, read_run, run_experiment
from testtime.experiments.production import following, world
from testtime.experiments.production.following import TRACE, Trace, follow, read_trace
from testtime.experiments.registry import guard_code
from testtime.methods import Tent
from testtime.models import load_model
from testtime.serve import Session
from testtime.wrap import Guarded

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
PLACES = {"data": "."}
P: dict[str, Any] = {
    **{"closed": "digits", "open_set": "photographs", "model": "digits-cnn", "side": 32, "seed": 0},
    **{"length": 96, "batch_size": 8, "steps": 2, "device": "cpu", "precision": "float32"},
    **{"facts": {"weights": "w"}, "method": "Tent", "guard": "", "stream": "continual"},
}


def workspace(folder: Path, **changes: Any) -> Workspace:
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "cache").mkdir(exist_ok=True)
    return Workspace({**P, **changes}, PLACES, {}, folder, folder.parent / "cache", lambda share: None)


@pytest.mark.parametrize("name", [name for name in world.STREAMS if name != "mini-ccc"])
def test_streams_hold_what_they_say(name: str, tmp_path: Path) -> None:
    stream = world.make_stream({**P, "stream": name, "length": 192}, PLACES, tmp_path)
    labels = [batch.y.numpy() for batch in stream]
    sizes = sorted({len(y) for y in labels})
    unknown = np.mean(np.concatenate(labels) < 0)
    assert unknown == pytest.approx({"open set": 0.5, "noise": 0.5}.get(name, 0), abs=0.01)
    assert sizes == ([1, 2, 4] if name == "small batches" else [8])
    if name in ("continual", "repeated", "mixed"):
        assert len({d.name for d in stream.domains}) == 15
        assert len({b.visit for b in stream}) == {"continual": 15, "repeated": 30, "mixed": 1}[name]
    else:
        assert stream[0].domain == stream[len(stream) - 1].domain == "clean"
    if name == "class-sorted":
        visits = [np.concatenate([b.y for b in stream if b.visit == v]) for v in range(6)]
        assert max(np.count_nonzero(np.diff(y)) for y in visits) <= 9
    if name == "stuck":
        assert [len(set(b.ids.tolist())) for b in stream] == [8] * len(
            stream
        )  # the first standstill is later


@pytest.mark.slow
def test_poisoned_batches_have_malicious_images_of_high_entropy(tmp_path: Path) -> None:
    p = {**P, "stream": "poisoned", "length": 120, "batch_size": 20, "steps": 10}
    stream = world.make_stream(p, PLACES, tmp_path)
    x = torch.cat([batch.x[batch.y < 0] for batch in stream])
    logits = world.differentiable(Tent(load_model("digits-cnn")))
    benign = stream[0].x[stream[0].y >= 0]
    z = logits(torch.cat([benign, x])).detach()
    entropy = -(z.softmax(1) * z.log_softmax(1)).sum(1)
    assert len(x) == len(stream)
    assert entropy[len(benign) :].mean() > 3 * entropy[: len(benign)].mean()
    again = world.make_stream(p, PLACES, tmp_path)
    assert torch.equal(again[1].x, stream[1].x)


def test_the_attack_meets_the_adapter_as_it_is_and_leaves_it_unchanged(tmp_path: Path) -> None:
    stream = world.make_stream({**P, "stream": "flip", "batch_size": 40, "length": 240}, PLACES, tmp_path)
    adapter = Tent(load_model("digits-cnn"))
    before = {name: value.clone() for name, value in adapter.state_dict().items()}
    batch = next(world.attacked(adapter, stream.since(0), "flip", 10))
    benign = batch.y >= 0
    assert torch.equal(batch.x[benign], stream[0].x[benign])
    assert not torch.equal(batch.x[~benign], stream[0].x[~benign])
    assert all(torch.equal(value, before[name]) for name, value in adapter.state_dict().items())
    wrong = [int((adapter.predict(b.x).logits.argmax(1) != b.y)[b.y >= 0].sum()) for b in (stream[0], batch)]
    assert wrong[1] >= wrong[0]


def test_a_unit_goes_on_where_it_was_interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = follow(workspace(tmp_path / "whole"))
    work = workspace(tmp_path / "broken")
    monkeypatch.setattr(following, "CHECKPOINT", -1.0)
    take, seen = following._take, []

    def fails(trace: Trace, *rest: Any) -> None:
        seen.append(trace.done)
        if seen == list(range(7)):
            raise KeyboardInterrupt
        take(trace, *rest)

    monkeypatch.setattr(following, "_take", fails)
    with pytest.raises(KeyboardInterrupt):
        follow(work)
    found = follow(work)
    assert seen == [*range(7), *range(6, 15)]
    assert {k: v for k, v in found.items() if k != "tenths"} == {
        k: v for k, v in expected.items() if k != "tenths"
    }
    one, other = (read_trace(tmp_path / name / TRACE) for name in ("whole", "broken"))
    assert np.array_equal(one.answers, other.answers)
    assert sorted(path.name for path in work.folder.iterdir()) == [TRACE]


def test_a_damaged_checkpoint_starts_the_unit_again(tmp_path: Path) -> None:
    work = workspace(tmp_path / "unit", length=48)
    (work.folder / following.STATE).write_bytes(b"no tensors")
    assert follow(work)["batches"] == 15


def made(answers: list[int], serving: list[int], events: dict[str, list[int]]) -> Trace:
    trace = Trace.empty([2] * (len(answers) // 2))
    trace.answers[:] = answers
    trace.serving[:] = serving
    trace.events, trace.done = events, len(trace.ms)
    return trace


def test_reaction_is_counted_from_the_damage_of_the_unguarded_run() -> None:
    source = made([1] * 12, [0] * 6, {})
    unguarded = made([1] * 4 + [0] * 8, [0] * 6, {})
    guarded = made([1] * 12, [0, 0, 0, 0, 2, 2], {"restore": [1], "fallback": [4], "skip": [3]})
    found = following._reaction(guarded, unguarded, source, 2)
    assert found == {"onset": 2, "delay": 2, "false_resets": 1}
    silent = made([1] * 12, [0] * 6, {})
    assert following._reaction(silent, unguarded, source, 2) == {"onset": 2, "delay": 4, "false_resets": 0}
    unharmed = following._reaction(guarded, source, source, 2)
    assert unharmed == {"onset": None, "delay": None, "false_resets": 1}


def test_the_adapter_is_asked_whom_it_serves_and_what_happened() -> None:
    adapter = Tent(load_model("digits-cnn"))
    adapter.serving, adapter.events = "source", (SimpleNamespace(kind="fallback"),)  # as a guard has them
    trace = Trace.empty([4, 4])
    following._take(trace, adapter, torch.rand(4, 3, 32, 32), np.array([0, 1, -1, 2]), 2)
    assert trace.serving.tolist() == [2, 0]
    assert trace.events == {"fallback": [0]}
    assert trace.answers[2] == -1
    assert trace.done == 1
    assert trace.memory[0] > 10


def test_the_code_of_a_guard_covers_its_modules() -> None:
    modules = {
        f"testtime.wrap.{name}" for name in ("checks", "competence", "evidence", "guard_options", "wrapper")
    }
    assert modules | {"Guarded", "testtime.metrics.competence"} <= guard_code(Guarded).keys()


def test_tables_show_each_method_with_and_without_the_guard(tmp_path: Path) -> None:
    experiment = find_experiment("failure-zoo")
    settings = {"streams": ["continual", "noise"], "batch_size": 16, "guard": "testtime.wrap:Episodic"}
    request = Request("failure-zoo", seeds=(0,), rows=("TENT",), limit=240, settings=settings)
    summary = run_experiment(experiment, request, tmp_path / "run")
    assert summary.exit_code == 0
    run = read_run(tmp_path / "run")
    everything, promise, means = experiment.tables(run)
    assert [row.label for row in means.rows] == ["Source", "BN", "TENT", "TENT guarded"]
    results = {(r.row, r.column): r.result for r in run.records()}
    tent = results["TENT", "noise"]
    assert tent["window"] == 38
    assert promise.value("TENT", promise.column("noise")) == tent["less"]["Source"]["worst"]
    lowest = min(results["TENT", name]["less"]["Source"]["worst"] for name in ("continual", "noise"))
    assert everything.value("TENT", everything.columns[0]) == lowest
    kept = [results["TENT", name]["less"]["Source"]["worst"] >= -1 for name in ("continual", "noise")]
    assert everything.value("TENT", everything.columns[1]) == 100 * np.mean(kept)
    assert results["TENT guarded", "noise"]["less"].keys() == {"Source", "BN", "unguarded"}


def test_poisoning_shows_what_benign_samples_lose(tmp_path: Path) -> None:
    experiment = find_experiment("poisoning")
    settings = {"streams": ["none", "flip"], "batch_size": 40, "steps": 3, "guard": ""}
    request = Request("poisoning", seeds=(0,), rows=("TENT",), limit=240, settings=settings)
    run_experiment(experiment, request, tmp_path / "run")
    run = read_run(tmp_path / "run")
    (table,) = experiment.tables(run)
    results = {(r.row, r.column): r.result["accuracy"] for r in run.records()}
    lost = table.value("BN", table.column("loss by flip"))
    assert lost == results["BN", "none"] - results["BN", "flip"] > 0
    assert table.value("Source", table.column("loss by flip")) == 0


@pytest.mark.slow
def test_soak_compares_the_last_tenth_with_the_first(tmp_path: Path) -> None:
    experiment = find_experiment("soak")
    run_experiment(
        experiment,
        Request("soak", seeds=(0,), rows=("TENT",), limit=640, settings={"batch_size": 16, "guard": ""}),
        tmp_path / "run",
    )
    run = read_run(tmp_path / "run")
    soak, parts = experiment.tables(run)
    tenths = {r.row: r.result["tenths"] for r in run.records()}["TENT"]
    assert soak.value("TENT", soak.column("p99 of time")) == tenths["p99_ms"][-1] / tenths["p99_ms"][0]
    assert parts.value("TENT", parts.column("tenth 4")) == tenths["accuracy"][3]
    assert abs(soak.value("TENT", soak.column("memory"))) < 100


def test_other_data_needs_its_model(tmp_path: Path) -> None:
    request = Request("failure-zoo", seeds=(0,), settings={"closed": "nothing"})
    with pytest.raises(ValueError, match="data set"):
        find_experiment("failure-zoo").plan(request)


def test_a_poisoned_stream_changes_no_answer_of_another_stream_of_the_session(tmp_path: Path) -> None:
    stream = world.make_stream({**P, "stream": "flip", "batch_size": 40, "length": 240}, PLACES, tmp_path)
    benign = [stream[t].x[stream[t].y >= 0] for t in range(3)]
    attack = world.attacked(Tent(load_model("digits-cnn")), stream.since(0), "flip", 3)

    def answers(name: str, poison: bool) -> list[torch.Tensor]:
        found = []
        with Session(Tent(load_model("digits-cnn")), tmp_path / name) as session:
            for x in benign:
                if poison:
                    session.submit(next(attack).x, "malicious")
                found.append(session.submit(x, "ours").logits)
        return found

    alone, beside = answers("alone", False), answers("beside", True)
    assert all(map(torch.equal, alone, beside))
