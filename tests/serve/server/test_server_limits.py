"""Limits of size, rate, time and queue, each with its status and Retry-After."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
from server_world import INFER, TENT, Caller, images, png, request, served, serving

from testtime.serve import Session, SessionOptions
from testtime.serve.server import Limits, ServerOptions, create_app
from testtime.serve.server.rates import RateLimit


def test_a_body_beyond_the_limit_by_its_length_and_by_its_bytes(tmp_path: Path) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield b" " * 100

    with serving(tmp_path, limits=Limits(body=5000)) as call:
        for settings in ({"content": b" " * 5001}, {"content": pieces()}):
            response = call.post(INFER, headers={"Content-Type": "application/json"}, **settings)
            assert (response.status_code, response.json()["code"]) == (413, "body-too-large")
            assert response.headers["connection"] == "close"
        wrong = call.post(INFER, content=b"{}", headers={"Content-Length": "many"})
        assert wrong.status_code == 413
        assert call.infer(images(0, 1)).status_code == 200


def test_a_batch_beyond_the_limit(tmp_path: Path) -> None:
    import base64

    with serving(tmp_path, limits=Limits(batch=3)) as call:
        assert call.infer(images(0, 4)).json()["code"] == "batch-too-large"
        texts = [base64.b64encode(png()).decode()] * 4
        assert call.post("/streams/a/images", json={"images": texts}).status_code == 413
        assert call.infer(images(0, 3)).status_code == 200


def test_an_image_beyond_the_limit(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(pixels=100)) as call:
        headers = {"Content-Type": "image/png"}
        refused = call.post("/streams/a/images", content=png(0, 11), headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (413, "image-too-large")
        assert call.post("/streams/a/images", content=png(0, 10), headers=headers).status_code == 200


def test_a_client_beyond_its_rate(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(rate=0.5, burst=3)) as call:
        responses = [call.get("/v2") for _ in range(5)]
        assert [r.status_code for r in responses] == [200, 200, 200, 429, 429]
        assert responses[-1].headers["retry-after"] == "2"
        assert call.get("/v2/health/live").status_code == 200


def test_the_rate_is_that_of_each_client() -> None:
    now = [0.0]
    limit = RateLimit(10.0, 5, lambda: now[0])
    assert [limit.delay("a") for _ in range(6)] == [0, 0, 0, 0, 0, 0.1]
    assert limit.delay("b") == 0
    now[0] = 0.2
    assert [limit.delay("a") for _ in range(3)] == pytest.approx([0, 0, 0.1])
    for i in range(5000):
        limit.delay(str(i))
    assert len(limit._buckets) == 4096
    assert RateLimit(None, 1).delay("a") == 0


def test_a_full_queue_refuses_and_health_answers_meanwhile(tmp_path: Path) -> None:
    go = threading.Event()
    with serving(tmp_path, limits=Limits(queue=3)) as call:
        submit = call.session.submit

        def slow(*given: object, **named: object) -> object:
            assert go.wait(20)
            return submit(*given, **named)

        call.session.submit = slow  # type: ignore[method-assign]

        async def calls() -> tuple[list[int], int, str, int]:
            waiting = [
                asyncio.ensure_future(call.http.post(INFER, json=request(images(i)))) for i in range(5)
            ]
            model = call.service.model
            while (model.running, model.waiting) != (2, 3):
                await asyncio.sleep(0.01)
            refused = await call.http.post(INFER, json=request(images(9)))
            health = await call.http.get("/v2/health/ready")
            metrics = (await call.http.get("/metrics")).text
            assert "testtime_queue_length 3.0" in metrics
            go.set()
            done = [response.status_code for response in await asyncio.gather(*waiting)]
            return done, refused.status_code, refused.headers["retry-after"], health.status_code

        assert call.runner.run(calls()) == ([200] * 5, 503, "1", 200)
        assert call.session.status().offset == 20
        assert (call.service.model.waiting, call.service.model.running) == (0, 0)


def test_a_request_that_waits_too_long_is_refused_before_any_work(tmp_path: Path) -> None:
    go = threading.Event()
    with serving(tmp_path, limits=Limits(wait=0.05)) as call:
        submit = call.session.submit

        def slow(*given: object, **named: object) -> object:
            assert go.wait(20)
            return submit(*given, **named)

        call.session.submit = slow  # type: ignore[method-assign]

        async def calls() -> list[int]:
            running = [
                asyncio.ensure_future(call.http.post(INFER, json=request(images(i)))) for i in range(4)
            ]
            await asyncio.sleep(0.3)
            go.set()
            return sorted(response.status_code for response in await asyncio.gather(*running))

        assert call.runner.run(calls()) == [200, 200, 503, 503]
        assert call.session.status().offset == 8


def test_a_body_that_does_not_arrive(tmp_path: Path) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(30)

    with serving(tmp_path, limits=Limits(receive=0.1)) as call:
        response = call.post(INFER, content=endless(), headers={"Content-Type": "application/json"})
        assert (response.status_code, response.json()["code"]) == (408, "slow")
        assert response.headers["connection"] == "close"


def test_streams_beyond_the_limit(tmp_path: Path) -> None:
    with serving(tmp_path, limits=Limits(streams=2)) as call:
        assert [call.infer(images(0), stream=name).status_code for name in "abc"] == [200, 200, 429]
        assert call.infer(images(1), stream="a").status_code == 200
        assert call("DELETE", "/streams/a").status_code == 204
        assert call.infer(images(1), stream="c").status_code == 200


def test_streams_beyond_the_limit_of_the_session(tmp_path: Path) -> None:
    session = Session(served().build(TENT), tmp_path, options=SessionOptions(streams=1))
    call = Caller(create_app(session, ServerOptions(served(), TENT)), session, None)
    assert call.infer(images(0), stream="a").status_code == 200
    refused = [call.infer(images(0), stream="b"), call.post("/streams/b/pause")]
    refused.append(call.post("/streams/b/images", content=png(), headers={"Content-Type": "image/png"}))
    for response in (refused[0], refused[2]):
        assert (response.status_code, response.json()["code"]) == (429, "streams")
        assert "this session has 1 streams" in response.json()["detail"]
        assert response.headers["retry-after"] == "60"
    assert refused[1].status_code == 404
    assert call.infer(images(1), stream="a").status_code == 200
    session.close()
    for response in (call.infer(images(2), stream="a"), call.post("/streams/a/snapshots")):
        assert (response.status_code, response.json()["code"]) == (503, "closed")
        assert response.headers["retry-after"] == "5"
    call.runner.run(call.service.close())
    call.runner.close()


def test_after_the_end_requests_are_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        call.infer(images(0))
        call.runner.run(call.service.close())
        for response in (call.infer(images(1)), call.get("/streams")):
            assert (response.status_code, response.json()["code"]) == (503, "shutting-down")
            assert response.headers["retry-after"] == "5"
    with serving(tmp_path) as call:
        assert call.get("/streams/default").json()["offset"] == 4


@pytest.mark.parametrize(
    "settings",
    [{"body": 0}, {"batch": 2.5}, {"rate": 0.0}, {"wait": float("nan")}, {"queue": True}, {"receive": "1"}],
)
def test_bad_limits(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=f"expected {next(iter(settings))} as a"):
        Limits(**settings)  # type: ignore[arg-type]
