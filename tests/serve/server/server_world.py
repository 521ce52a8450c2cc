"""A server of a small network, and calls of it without a connection."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from fastapi import FastAPI
from torch import Tensor, nn

from testtime.serve import Client, Session
from testtime.serve.server import (
    Configuration,
    Limits,
    ServedModel,
    ServerOptions,
    Tokens,
    create_app,
    listening,
    open_session,
    run,
)
from testtime.serve.server.opening import Kept

LOCAL = "http://127.0.0.1"
USE, MANAGE = "client-token-0123456789", "manager-token-0123456789"
TOKENS = Tokens(USE, MANAGE)
INFER = "/v2/models/small/infer"
TENT = Configuration("tent", {"optimizer": {"function": "adam", "with": {"lr": 0.01}}}, guarded=False)


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3)
        )
    return net.eval()


def served() -> ServedModel:
    return ServedModel(network(), "small", 3, 6)


def images(seed: int, n: int = 4) -> Tensor:
    return torch.rand(n, 3, 6, 6, generator=torch.Generator().manual_seed(seed))


def tensor(x: Tensor, **changes: Any) -> dict[str, Any]:
    """The input of a request."""
    return {
        "name": "input",
        "shape": list(x.shape),
        "datatype": "FP32",
        "data": x.flatten().tolist(),
        **changes,
    }


def request(x: Tensor, **parameters: Any) -> dict[str, Any]:
    return {"parameters": parameters, "inputs": [tensor(x)]}


def binary(x: Tensor, **changes: Any) -> tuple[bytes, dict[str, str]]:
    """Body and header of a request whose data are bytes."""
    raw = x.numpy().tobytes()
    described = tensor(x, parameters={"binary_data_size": len(raw)}, **changes)
    del described["data"]
    header = json.dumps({"inputs": [described], "parameters": {"binary_data_output": True}}).encode()
    return header + raw, {
        "Inference-Header-Content-Length": str(len(header)),
        "Content-Type": "application/octet-stream",
    }


def png(seed: int = 0, side: int = 6, kind: str = "PNG", mode: str = "RGB") -> bytes:
    from PIL import Image

    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(buffer, kind)
    return buffer.getvalue()


class Caller:
    """Calls of an application, one after the other or at once."""

    def __init__(self, app: FastAPI, session: Session, token: str | None) -> None:
        self.app, self.session, self.service = app, session, app.state.service
        self.runner = asyncio.Runner()
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        self.http = httpx.AsyncClient(transport=transport, base_url=LOCAL, headers=headers)

    def __call__(self, method: str, path: str, **settings: Any) -> httpx.Response:
        return self.runner.run(self.http.request(method, path, **settings))

    def get(self, path: str, **settings: Any) -> httpx.Response:
        return self("GET", path, **settings)

    def post(self, path: str, **settings: Any) -> httpx.Response:
        return self("POST", path, **settings)

    def infer(self, x: Tensor, **parameters: Any) -> httpx.Response:
        return self.post(INFER, json=request(x, **parameters))

    def gather(self, *calls: Any) -> list[httpx.Response]:
        async def all_of_them() -> list[httpx.Response]:
            return list(await asyncio.gather(*(self.http.request(*call[:2], **call[2]) for call in calls)))

        return self.runner.run(all_of_them())


@contextmanager
def serving(
    folder: Path,
    *,
    tokens: Tokens = Tokens(),  # noqa: B008 - a frozen value
    token: str | None = None,
    limits: Limits = Limits(),  # noqa: B008
    configuration: Configuration = TENT,
    **options: Any,
) -> Iterator[Caller]:
    model, routers = options.pop("model", None) or served(), options.pop("routers", ())
    session, used = open_session(model, configuration, folder)
    kept = Kept(folder, configuration)
    app = create_app(session, ServerOptions(model, used, tokens, limits, kept=kept, **options), routers)
    caller = Caller(app, session, token)
    try:
        yield caller
    finally:
        caller.runner.run(caller.http.aclose())
        caller.runner.run(caller.service.close())
        caller.runner.close()


def on_loopback(
    folder: Path,
    talk: Callable[[Client, int], None],
    number: int = signal.SIGTERM,
    limits: Limits = Limits(),  # noqa: B008
) -> int:
    """Serve in this thread while another one talks to the server and then sends a signal; the exit code."""
    model = served()
    session, used = open_session(model, TENT, folder)
    found = listening("127.0.0.1", 0)
    port = found.getsockname()[1]
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with Client(f"http://127.0.0.1:{port}", model="small", retries=0) as client:
                talk(client, port)
        except BaseException as error:  # noqa: BLE001 - raised again in the test's thread
            failed.append(error)
        finally:
            os.kill(os.getpid(), number)

    thread = threading.Thread(target=work)
    before = [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)]
    thread.start()
    code = run(create_app(session, ServerOptions(model, used, limits=limits)), found)
    thread.join()
    assert [signal.getsignal(one) for one in (signal.SIGTERM, signal.SIGINT)] == before
    if failed:
        raise failed[0]
    return code


def outputs(response: httpx.Response) -> dict[str, Any]:
    """The outputs of an inference by name."""
    assert response.status_code == 200, response.text
    return {one["name"]: one["data"] for one in response.json()["outputs"]}
