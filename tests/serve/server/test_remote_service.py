"""The entry of a deployment without Ray: routes, the stream that a replica is asked for, and the errors of replicas."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
from server_world import INFER, LOCAL, TENT, USE, binary, images, outputs, png, request, served

from testtime.errors import DataError
from testtime.serve.entry import EntryOptions, RemoteService, refusal_of
from testtime.serve.leases import StreamBusy
from testtime.serve.ray import fields_of
from testtime.serve.replica import Replica
from testtime.serve.server import Tokens
from testtime.serve.server.app import assembled
from testtime.serve.server.protocol import ROUTER
from testtime.serve.server.streams import IMAGES

ENTRY = EntryOptions("small", classes=3, side=6, method="tent")


class Handle:
    """A handle of Ray Serve whose replica is in this process."""

    def __init__(self, replica: Replica) -> None:
        self.replica, self.stream, self.error = replica, "", None

    def options(self, multiplexed_model_id: str) -> Handle:
        self.stream = multiplexed_model_id
        return self

    async def remote(self, x: np.ndarray, learn: bool) -> dict[str, Any]:
        import torch

        if self.error is not None:
            raise self.error
        return fields_of(self.replica.submit(torch.from_numpy(x), self.stream, learn=learn))


class World:
    def __init__(self, folder: Path, entry: EntryOptions) -> None:
        self.replica = Replica(served().build(TENT), folder)
        self.handle = Handle(self.replica)
        self.app = assembled(RemoteService(self.handle, entry.server()), (ROUTER, IMAGES))
        self.runner = asyncio.Runner()
        self.http = httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url=LOCAL)

    def __call__(self, method: str, path: str, **settings: Any) -> httpx.Response:
        return self.runner.run(self.http.request(method, path, **settings))


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path, ENTRY)
    yield made
    made.runner.run(made.http.aclose())
    made.runner.close()
    made.replica.close()


def test_the_protocol_and_images_of_streams(world: World) -> None:
    assert world("GET", "/v2/health/ready").json() == {"ready": True}
    about = world("GET", "/v2/models/small").json()
    assert (about["inputs"][0]["shape"], about["parameters"]["method"]) == ([-1, 3, 6, 6], "tent")
    first = world("POST", INFER, json=request(images(0), stream="a"))
    assert outputs(first)["logits"] == served().build(TENT)(images(0)).logits.flatten().tolist()
    assert first.json()["parameters"]["learned"] is True
    body, headers = binary(images(1))
    second = world("POST", INFER, content=body, headers={**headers, "X-Stream": "b"})
    assert (second.status_code, world.handle.stream) == (200, "b")
    third = world(
        "POST", "/streams/a/images?learn=false", content=png(), headers={"Content-Type": "image/png"}
    )
    assert (third.json()["offset"], third.json()["skipped"]) == (4, "asked")
    assert world.replica.streams() == ("a", "b")


def test_what_is_refused(world: World) -> None:
    assert world("POST", INFER, json=request(images(0), deadline=1.0)).json()["code"] == "no-deadline"
    assert world("POST", INFER, json=request(images(0), stream="../x")).json()["code"] == "bad-stream"
    assert world("POST", INFER, json=request(images(0)[:, :1])).json()["code"] == "bad-shape"
    assert world("POST", "/streams/a/rollback", json={"to": None}).status_code == 404
    assert world("PUT", "/configuration", json={"method": "eta"}).status_code == 404
    world.handle.error = StreamBusy("its owner is alive")
    busy = world("POST", INFER, json=request(images(0)))
    assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
    world.handle.error = RuntimeError("the actor died")
    lost = world("POST", INFER, json=request(images(0))).json()
    assert (lost["status"], lost["code"]) == (503, "replica")
    assert "offset" in lost["advice"]


def test_tokens(tmp_path: Path) -> None:
    world = World(tmp_path, EntryOptions("small", 3, 6, tokens=Tokens(USE)))
    assert world("GET", "/v2").status_code == 401
    assert world("GET", "/v2", headers={"Authorization": f"Bearer {USE}"}).status_code == 200
    world.replica.close()
    with pytest.raises(ValueError, match="as the name of the model"):
        EntryOptions("a b", 3, 6).server()


def test_the_cause_of_an_error_of_ray_counts() -> None:
    class TaskError(Exception):
        cause = DataError("the file is damaged")

    found = refusal_of(TaskError("a long traceback"))
    assert (found.status, found.detail) == (409, "the file is damaged")
    assert [refusal_of(e).status for e in (TypeError("x"), OSError("full"), ValueError("y"))] == [
        400,
        507,
        400,
    ]
