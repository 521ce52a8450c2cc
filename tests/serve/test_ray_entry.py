"""HTTP through Ray Serve on a local cluster: the routes of the server, answered by replicas."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from small_session import images, tent

from slow_ray import wait_longer

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
import httpx

from testtime.serve import Client, SessionOptions
from testtime.serve.client import InvalidRequestError
from testtime.serve.entry import EntryOptions, http_application
from testtime.serve.replica import ReplicaOptions

ray = pytest.importorskip("ray", reason="Ray Serve comes with testtime[ray]")
serve = pytest.importorskip("ray.serve", reason="Ray Serve comes with testtime[ray]")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore"), pytest.mark.timeout(1200)]


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    paths = os.pathsep.join(dict.fromkeys(str(Path(path).absolute()) for path in sys.path))
    wait_longer()
    ray.init(
        num_cpus=3,
        include_dashboard=False,
        log_to_driver=False,
        logging_level="ERROR",
        runtime_env={"env_vars": {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}},
    )
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    entry = EntryOptions("small", classes=3, side=6, method="tent")
    options = ReplicaOptions(SessionOptions(snapshot_every=2))
    serve.run(http_application(tent, tmp_path, entry, replicas=2, streams=8, options=options))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()
    ray.shutdown()


def test_http_reaches_the_stream_that_a_request_names(address: str, tmp_path: Path) -> None:
    with Client(address, model="small", timeout=120.0) as client:
        assert client.ready()
        alone = {name: tent() for name in "ab"}
        for i in range(3):
            for base, name in ((0, "a"), (10, "b")):
                found = client.infer(images(base + i), name)
                want = alone[name](images(base + i)).logits.detach().numpy()
                assert np.array_equal(found.logits.numpy(), want)
                assert found.offset == 4 * i
        with pytest.raises(InvalidRequestError, match="keep no deadline"):
            client.infer(images(0), "a", deadline=1.0)
        with pytest.raises(InvalidRequestError, match="bad|shape"):
            client.infer(images(0)[:, :1], "a")
    body = {
        "inputs": [
            {"name": "input", "shape": [4, 3, 6, 6], "datatype": "FP32", "data": images(3).flatten().tolist()}
        ]
    }
    named = httpx.post(f"{address}/v2/models/small/infer", json=body, headers={"X-Stream": "a"}, timeout=120)
    assert named.json()["parameters"]["offset"] == 12
    assert httpx.post(f"{address}/streams/a/rollback", json={"to": None}, timeout=120).status_code == 404
    assert len(list((tmp_path / "replicas").iterdir())) == 2
