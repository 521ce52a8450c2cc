"""Ray Serve on a local cluster of two nodes: streams stick to replicas, move between them, and survive a killed one."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_session import images, tent

from slow_ray import ports, wait_longer
from testtime.serve import SessionOptions
from testtime.serve.ray import application
from testtime.serve.replica import ReplicaOptions

ray = pytest.importorskip("ray", reason="Ray Serve comes with testtime[ray]")
serve = pytest.importorskip("ray.serve", reason="Ray Serve comes with testtime[ray]")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(600)]

WAIT = 120.0  # seconds


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    from ray.cluster_utils import Cluster

    wait_longer()
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, **ports()}
    )
    made.add_node(num_cpus=1, **ports())
    paths = dict.fromkeys(str(Path(path).absolute()) for path in sys.path)
    ray.init(
        made.address,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}},
    )
    serve.start(proxy_location="Disabled")
    yield made
    serve.shutdown()
    ray.shutdown()
    made.shutdown()


@pytest.fixture
def served(cluster: Any, tmp_path: Path) -> Iterator[Callable[..., Any]]:
    def run(every: int, streams: int) -> Callable[[int, str], dict[str, Any]]:
        options = ReplicaOptions(SessionOptions(snapshot_every=every), silence=20.0, patience=60.0)
        built = application(tent, tmp_path, replicas=2, streams=streams, options=options)
        handle = serve.run(built, route_prefix=None)

        def ask(seed: int, stream: str) -> dict[str, Any]:
            response = handle.options(multiplexed_model_id=stream).remote(images(seed).numpy())
            found: dict[str, Any] = response.result(timeout_s=WAIT)
            return found

        return ask

    yield run
    serve.delete("default")


def alone(seeds: list[int]) -> np.ndarray:
    adapter = tent()
    return [adapter(images(seed)).logits.detach().numpy() for seed in seeds][-1]


def test_streams_stick_to_replicas_and_are_what_they_are_alone(served: Any) -> None:
    ask = served(every=2, streams=8)
    names = {"a": 100, "b": 200, "c": 300}
    replicas: dict[str, list[str]] = {name: [] for name in names}
    for i in range(5):
        for name, base in names.items():
            found = ask(base + i, name)
            assert np.array_equal(found["logits"], alone([base + k for k in range(i + 1)]))
            assert (found["offset"], found["refused"]) == (4 * i, (None,) * 4)
            replicas[name].append(found["replica"])
        time.sleep(0.5)  # Ray tells its routers every 0.1 s which replica has which stream
    assert all(len(set(where[1:])) == 1 for where in replicas.values()), replicas


def test_more_streams_than_places_move_and_stay_what_they_are(served: Any) -> None:
    ask = served(every=0, streams=1)
    epochs = {}
    for i in range(3):
        for name in "pqr":
            found = ask(10 * ord(name) + i, name)
            assert np.array_equal(found["logits"], alone([10 * ord(name) + k for k in range(i + 1)]))
            epochs[name] = found["epoch"]
    assert sum(epochs.values()) > len(epochs)  # three streams have two places


def test_a_killed_replica_loses_no_acknowledged_snapshot(served: Any, tmp_path: Path) -> None:
    ask = served(every=2, streams=8)
    learned: list[int] = []
    for seed in (40, 50):
        for i in range(5):
            found = ask(seed + i, "cam")
            learned = [*learned, seed + i]
        assert found["acknowledged"] == found["offset"] + 4 - 4 * (len(learned) % 2)
        learned = learned[: found["acknowledged"] // 4]
        process = int((tmp_path / "replicas" / found["replica"] / "lock").read_text())
        os.kill(process, signal.SIGKILL)
        after = _until_answered(ask, seed + 9)
        learned.append(seed + 9)
        assert after["replica"] != found["replica"]
        assert after["offset"] == found["acknowledged"]
        assert after["epoch"] > found["epoch"]
        assert np.array_equal(after["logits"], alone(learned))


def _until_answered(ask: Callable[[int, str], dict[str, Any]], seed: int) -> dict[str, Any]:
    end = time.monotonic() + WAIT
    while True:
        try:
            return ask(seed, "cam")
        except Exception:  # whatever Ray says of a dead replica
            if time.monotonic() > end:
                raise
            time.sleep(1)


def test_a_bad_request_is_refused_with_its_reason(served: Any) -> None:
    served(every=2, streams=8)
    handle = serve.get_app_handle("default")
    with pytest.raises(ValueError, match="names no stream"):
        handle.remote(images(0).numpy()).result(timeout_s=WAIT)
    with pytest.raises(ValueError, match="name of a stream"):
        handle.options(multiplexed_model_id="../x").remote(images(0).numpy()).result(timeout_s=WAIT)
    with pytest.raises(ValueError, match="PNG or JPEG"):
        handle.options(multiplexed_model_id="x").remote(b"no image").result(timeout_s=WAIT)
