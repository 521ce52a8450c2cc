"""Ray: a cluster of two nodes gives the results of local processes, and survives killed workers and nodes."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from toy_family import Toy, events

from slow_ray import ports, wait_longer
from testtime.experiments import Processes, Ray, Request, read_run, run_experiment

ray = pytest.importorskip("ray", reason="Ray comes with testtime[ray]")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

ASKED = Request("toy", precision="float32", settings={"sleep": 0.5})


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    wait_longer()
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **ports()}
    )
    made.add_node(num_cpus=1, **ports())
    yield made
    made.shutdown()


def test_two_nodes_give_the_results_of_local_processes_and_a_killed_worker_is_replaced(
    cluster: Any, tmp_path: Path
) -> None:
    with Ray(cluster.address) as backend:
        assert backend.slots == 2
        there = run_experiment(Toy(killed=-1.0), ASKED, tmp_path / "a/run", backend=backend)
    assert (there.exit_code, len(there.done)) == (0, 12)
    run_experiment(Toy(), ASKED, tmp_path / "b/run", backend=Processes(2))
    ours, theirs = (read_run(tmp_path / name / "run").results for name in "ab")
    assert len(theirs) == 10
    assert {a: theirs[a]["result"] for a in theirs} == {a: ours[a]["result"] for a in theirs}
    assert all(r["result"]["threads"] == 1 for r in ours.values() if "threads" in r["result"])
    (table,) = Toy(killed=-1.0).tables(read_run(tmp_path / "a/run"))
    assert table.values["killed", "value"] == {0: -0.5, 1: 19.5}
    found = events(tmp_path / "a/store")
    assert sorted(event["name"] for event in found if "took_over" in event) == ["killed 0", "killed 1"]
    assert sum(event["event"] == "finished" for event in found) == 12


def test_a_failed_unit_and_an_unknown_function_are_reported(cluster: Any, tmp_path: Path) -> None:
    with Ray(cluster.address) as backend:
        summary = run_experiment(
            Toy(bad=None), ASKED, tmp_path / "run", backend=backend, say=lambda line: None
        )
    assert summary.failed == {f"bad {seed}": "ArithmeticError: it diverges" for seed in (0, 1)}
    assert len(summary.done) == 10


def test_the_units_of_a_node_that_goes_are_done_by_another(cluster: Any, tmp_path: Path) -> None:
    node = cluster.add_node(num_cpus=1, **ports())
    lines: list[str] = []

    def leave() -> None:
        while sum(event["event"] == "started" for event in events(tmp_path / "store")) < 3:
            time.sleep(0.05)
        cluster.remove_node(node, allow_graceful=False)

    thread = threading.Thread(target=leave)
    with Ray(cluster.address) as backend:
        assert backend.slots == 3
        thread.start()
        summary = run_experiment(
            Toy(), replace(ASKED, seeds=(0, 1, 2)), tmp_path / "run", None, backend, (), lines.append
        )
    thread.join()
    assert (summary.exit_code, len(summary.done), lines) == (0, 15, [])
    finished = Counter(
        event["address"] for event in events(tmp_path / "store") if event["event"] == "finished"
    )
    assert (len(finished), set(finished.values())) == (15, {1})
