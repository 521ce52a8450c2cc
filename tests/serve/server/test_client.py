"""The clients answer as the session does; errors are typed; a request that may have been learned from is sent once."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

pytest.importorskip("httpx", reason="pip install -e '.[serve]'")
import httpx
from server_world import LOCAL, MANAGE, TENT, TOKENS, USE, Caller, images, png, served, serving

from testtime.serve import AsyncClient, Client
from testtime.serve.client import (
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    ServerBusyError,
    ServerFaultError,
    ServerUnreachableError,
    TooLargeError,
    UnauthorisedError,
)
from testtime.serve.server import Limits


class Bridge(httpx.BaseTransport):
    """Hands the requests of a client to an application in the same thread."""

    def __init__(self, call: Caller) -> None:
        self.call = call

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        made = self.call.http.build_request(
            request.method, str(request.url), headers=request.headers, content=request.read()
        )
        response = self.call.runner.run(self.call.http.send(made))
        return httpx.Response(response.status_code, headers=response.headers, content=response.content)


@pytest.fixture
def call(tmp_path: Path) -> Iterator[Caller]:
    with serving(tmp_path, tokens=TOKENS, limits=Limits(body=200_000)) as found:
        yield found


@pytest.fixture
def client(call: Caller) -> Client:
    return Client(LOCAL, token=MANAGE, model="small", transport=Bridge(call))


def test_inference_is_that_of_the_adapter(client: Client) -> None:
    alone = served().build(TENT)
    x = images(1)
    x[2, 0, 0, 0] = torch.inf
    for i, batch in enumerate((images(0), x)):
        want, got = alone(batch), client.infer(batch, "door")
        assert torch.equal(got.logits.nan_to_num(7.0), want.logits.nan_to_num(7.0))
        assert torch.equal(got.score.nan_to_num(7.0), want.score.nan_to_num(7.0))
        assert (got.offset, got.learned, got.adapted, got.serving) == (4 * i, True, True, "adapter")
    assert got.refused == (None, None, "not finite", None)
    assert got.predicted.tolist()[2] == -1
    assert got.predicted.dtype == torch.int64


def test_images_in_every_form(client: Client, tmp_path: Path) -> None:
    import io

    from PIL import Image

    file = png(5)
    (tmp_path / "a.png").write_bytes(file)
    image = Image.open(io.BytesIO(file))
    answers = [
        client.send_image(one, f"s{i}")
        for i, one in enumerate((file, tmp_path / "a.png", str(tmp_path / "a.png"), image))
    ]
    for answer in answers:
        assert torch.equal(answer.logits, answers[0].logits)
    several = client.send_image([png(1), file], "t", learn=False)
    assert several.logits.shape == (2, 3)
    assert several.skipped == "asked"
    with pytest.raises(ValueError, match="PNG or JPEG"):
        client.send_image(b"text")
    with pytest.raises(TypeError, match="a path, the content"):
        client.send_image(7)


def test_streams_snapshots_and_configuration(client: Client, call: Caller) -> None:
    state = client.infer(images(0)).state
    made = client.snapshot()
    assert asdict(made) == asdict(call.session.snapshots()[0])
    client.infer(images(1))
    assert client.rollback(to=made.number) == made
    assert client.status() == call.session.status()
    assert client.status().state == state
    assert client.rollback() is None
    assert len(client.snapshots()) == 3
    assert client.pause().paused
    assert not client.unpause().paused
    assert client.streams() == ("default",)
    assert client.configuration().method == "tent"
    changed = client.configure("bn-adapt", guarded=False)
    assert (changed.method, changed.changes) == ("bn-adapt", 1)
    assert client.metadata()["name"] == "small"
    assert "testtime_requests_total" in client.metrics()
    assert client.ready()
    client.forget("default")
    assert client.streams() == ()


def test_errors_are_typed(client: Client, call: Caller) -> None:
    with pytest.raises(InvalidRequestError, match="expected \\[-1, 3, 6, 6\\]") as error:
        client.infer(torch.rand(2, 3, 5, 5))
    assert (error.value.status, error.value.code) == (400, "bad-shape")
    assert error.value.request
    assert isinstance(error.value, ValueError)
    with pytest.raises(InvalidRequestError, match="did you mean 'tent'"):
        client.configure("tnt")
    with pytest.raises(NotFoundError, match="no stream 'nobody'"):
        client.status("nobody")
    with pytest.raises(TooLargeError, match="expected at most 200000"):
        client.infer(torch.rand(500, 3, 6, 6))
    with pytest.raises(NotFoundError, match="no model 'other'"):
        client.infer(images(0), model="other")
    with pytest.raises(TypeError, match="x / 255"):
        client.infer(torch.zeros(1, 3, 6, 6, dtype=torch.uint8))
    stranger = Client(LOCAL, transport=Bridge(call), model="small")
    with pytest.raises(UnauthorisedError, match="Bearer TOKEN"):
        stranger.infer(images(0))
    user = Client(LOCAL, token=USE, transport=Bridge(call), model="small")
    user.infer(images(0))
    with pytest.raises(ForbiddenError, match="manager's token"):
        user.snapshot()
    with pytest.raises(ValueError, match="expected the name of the model"):
        Client(transport=Bridge(call)).infer(images(0))
    with pytest.raises(ValueError, match="the address of a server"):
        Client("localhost:8000")


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        *(
            ({"url": url}, "^expected the address of a server, such as http://127.0.0.1:8000, got ")
            for url in (
                "http://[::1",
                "http://",
                "https:///x",
                "http://a:x",
                "http://a:99999",
                "a:8000",
                "",
                7,
            )
        ),
        *(
            ({"timeout": wrong}, "^expected timeout as .* above 0, got")
            for wrong in (-1, 0, torch.nan, "1", None)
        ),
        *(({"retries": wrong}, "^expected retries as .* at least 0, got") for wrong in (-1, 0.5, True)),
        *(
            ({"token": wrong}, "^expected token as a text")
            for wrong in ("geheim-ü", "ge\nheim", "ge heim", " ", "", b"x")
        ),
    ],
)
def test_arguments_of_a_client_are_checked(kind: type, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        kind(**settings)
    assert "heim" not in str(error.value)


@pytest.mark.parametrize("kind", [Client, AsyncClient])
def test_space_around_a_token_is_cut(kind: type) -> None:
    async def calls(client: AsyncClient) -> tuple[str, ...]:
        async with client:
            return await client.streams()

    seen, transport = answering(httpx.Response(200, json={"streams": ["a"]}))
    client = kind("http://[::1]:8000", token=f"{USE}\n", transport=transport)
    assert (asyncio.run(calls(client)) if kind is AsyncClient else client.streams()) == ("a",)
    assert seen[0].headers["authorization"] == f"Bearer {USE}"
    assert str(seen[0].url) == "http://[::1]:8000/streams"


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.tensor(1.0), ValueError, r"expected a batch \(N, \.\.\.\), got shape \(\)"),
        (images(0).to_sparse(), TypeError, "expected a dense tensor"),
        (images(0).to("meta"), ValueError, "expected a batch with data, got a meta tensor"),
        ([1.0], TypeError, "expected a floating-point tensor .* got list"),
    ],
)
def test_what_is_no_batch_is_not_sent(x: object, error: type[Exception], message: str) -> None:
    seen, transport = answering(httpx.Response(200, json={}))
    with pytest.raises(error, match=message):
        Client(LOCAL, model="small", transport=transport).infer(x)  # type: ignore[arg-type]
    other = AsyncClient(LOCAL, model="small", transport=transport)
    with pytest.raises(error, match=message):
        asyncio.run(other.infer(x))  # type: ignore[arg-type]
    assert seen == []


@pytest.mark.parametrize("name", [".", "..", "", "a/b", "a b"])
def test_names_that_lead_to_another_route_are_refused(name: str) -> None:
    seen, transport = answering(httpx.Response(200, json={}))
    client, other = Client(LOCAL, transport=transport), AsyncClient(LOCAL, transport=transport)
    for call in (client.status, client.snapshots, client.rollback, client.pause, client.forget):
        with pytest.raises(ValueError, match="expected the name of a stream"):
            call(name)
    with pytest.raises(ValueError, match="expected the name of a stream"):
        asyncio.run(other.status(name))
    if name in (".", ".."):
        with pytest.raises(ValueError, match=r"expected the name of a model, got '\.+'"):
            client.metadata(name)
    assert seen == []


def answering(*answers: httpx.Response | Exception) -> tuple[list[httpx.Request], httpx.MockTransport]:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        answer = answers[min(len(seen), len(answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return answer

    return seen, httpx.MockTransport(handle)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


def test_a_busy_server_is_asked_again_when_it_says(slept: list[float]) -> None:
    busy = httpx.Response(503, headers={"Retry-After": "7"}, json={"error": "busy"})
    limited = httpx.Response(429, json={"error": "rate"})
    seen, transport = answering(busy, limited, httpx.Response(200, json={"streams": ["a"]}))
    assert Client(LOCAL, transport=transport).streams() == ("a",)
    assert slept == [7.0, 2.0]
    seen, transport = answering(busy)
    with pytest.raises(ServerBusyError, match="busy") as error:
        Client(LOCAL, transport=transport, model="m", retries=2).infer(images(0))
    assert error.value.retry_after == 7.0
    assert len(seen) == 3


@pytest.mark.parametrize(
    ("error", "inferences", "listings"),
    [
        (httpx.ConnectError("refused"), 3, 3),
        (httpx.ReadTimeout("late"), 1, 3),
        (httpx.RemoteProtocolError("cut"), 1, 3),
    ],
)
def test_what_may_have_been_learned_from_is_sent_once(
    error: Exception, inferences: int, listings: int, slept: list[float]
) -> None:
    seen, transport = answering(error)
    client = Client(LOCAL, transport=transport, model="m", retries=2)
    with pytest.raises(ServerUnreachableError, match="is the server running there"):
        client.infer(images(0))
    assert len(seen) == inferences
    with pytest.raises(ServerUnreachableError):
        client.streams()
    assert len(seen) == inferences + listings
    assert client.ready() is False


def test_faults_of_the_server_are_not_repeated(slept: list[float]) -> None:
    seen, transport = answering(httpx.Response(500, text="<html>"))
    with pytest.raises(ServerFaultError, match="status 500"):
        Client(LOCAL, transport=transport).streams()
    assert (len(seen), slept) == (1, [])
    _, transport = answering(httpx.Response(200, json={"other": 1}))
    with pytest.raises(ServerFaultError, match="none of this version's server"):
        Client(LOCAL, transport=transport).streams()


def test_the_client_of_asyncio(call: Caller) -> None:
    async def calls() -> None:
        transport = httpx.ASGITransport(call.app)
        async with AsyncClient(LOCAL, token=MANAGE, model="small", transport=transport) as client:
            alone = served().build(TENT)
            got = await client.infer(images(0))
            assert torch.equal(got.logits, alone(images(0)).logits)
            assert (await client.send_image(png(), learn=False)).offset == 4
            assert (await client.snapshot()).number == 1
            assert len(await client.snapshots()) == 1
            assert (await client.rollback(to=1)) is not None
            assert (await client.pause()).paused
            assert not (await client.unpause()).paused
            assert (await client.status()).offset == 5
            assert (await client.configure("source", guarded=False)).method == "source"
            assert (await client.configuration()).changes == 1
            assert (await client.metadata())["name"] == "small"
            assert "testtime_" in await client.metrics()
            assert await client.streams() == ("default",)
            with pytest.raises(NotFoundError):
                await client.forget("nobody")
            await client.forget("default")
            assert await client.ready()

    call.runner.run(calls())


def test_asyncio_asks_again_too() -> None:
    seen, transport = answering(httpx.ConnectError("refused"), httpx.Response(200, json={"streams": []}))

    async def calls() -> tuple[str, ...]:
        async with AsyncClient(LOCAL, transport=transport) as client:
            return await client.streams()

    assert asyncio.run(calls()) == ()
    assert len(seen) == 2


def test_a_connection_that_is_cut_in_the_middle_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=lambda: server.accept()[0].close(), daemon=True).start()
        client = Client(f"http://127.0.0.1:{server.getsockname()[1]}", model="m", retries=3)
        with pytest.raises(ServerUnreachableError):
            client.infer(images(0))
