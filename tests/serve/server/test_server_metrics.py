"""Metrics count what happened, with a bounded number of series; logs are JSON without secrets."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

pytest.importorskip("prometheus_client", reason="pip install -e '.[serve]'")
from prometheus_client.parser import text_string_to_metric_families
from server_world import INFER, TOKENS, USE, Caller, images, serving

from testtime.serve.server import JsonFormatter
from testtime.serve.server.metrics import Metrics


def series(call: Caller) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    text = call.get("/metrics").text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.name.endswith("_created")
    }


def test_what_happened_is_counted(tmp_path: Path) -> None:
    x = images(2)
    x[0, 0, 0, 0] = 1000.0
    with serving(tmp_path) as call:
        call.infer(images(0), stream="a")
        call.infer(images(1), stream="a", learn=False)
        call.infer(x, stream="a")
        call.infer(images(3), stream="b")
        call.post(INFER, content=b"{")
        call.post("/streams/a/snapshots")
        found = series(call)

    def value(name: str, **labels: str) -> float:
        return found[f"testtime_{name}", tuple(sorted(labels.items()))]

    infer = "/v2/models/{name}/infer"
    assert value("requests_total", route=infer, method="POST", status="200") == 4
    assert value("requests_total", route=infer, method="POST", status="400") == 1
    assert value("request_seconds_count", route=infer) == 5
    assert value("requests_refused_total", reason="bad-json") == 1
    assert value("samples_total", stream="a", outcome="adapted") == 4 + 3
    assert value("samples_total", stream="a", outcome="answered") == 4
    assert value("samples_total", stream="a", outcome="refused") == 1
    assert value("samples_total", stream="b", outcome="adapted") == 4
    assert value("samples_refused_total", reason="out of range") == 1
    assert value("adaptation_shed_total", stream="a", reason="asked") == 1
    assert value("answers_total", stream="a", serving="adapter", adapted="true") == 2
    assert value("queue_seconds_count") == 4
    assert value("streams") == 2
    assert value("stream_actions_total", action="snapshot") == 1
    assert found["process_resident_memory_bytes", ()] > 0


def test_series_are_bounded(tmp_path: Path) -> None:
    with serving(tmp_path, labelled_streams=3) as call:
        for i in range(8):
            call.infer(images(i), stream=f"s{i}")
        for i in range(20):
            call.get(f"/nothing/{i}")
        found = series(call)
    streams = {dict(labels).get("stream") for _, labels in found} - {None}
    assert streams == {"s0", "s1", "s2", "other"}
    assert found["testtime_samples_total", (("outcome", "adapted"), ("stream", "other"))] == 20
    routes = {dict(labels)["route"] for _, labels in found if "route" in dict(labels)}
    assert routes == {"/v2/models/{name}/infer", "(none)"}


def test_events_and_estimates_of_guards() -> None:
    metrics = Metrics(2)
    record = {"offset": 0, "events": [{"kind": "skip", "reason": "x", "step": 1}], "diagnostics": {}}
    later = {**record, "offset": 4, "events": [{"kind": "alarm"}, {"kind": "skip"}]}
    metrics.events("a", [record])
    metrics.events("a", [record, later])
    metrics.events("a", [record, later])
    text = metrics.text(1, 0, {"a": {"estimated_accuracy": 0.75, "drift": float("nan")}}).decode()
    assert 'testtime_guard_events_total{kind="skip",stream="a"} 2.0' in text
    assert 'testtime_guard_events_total{kind="alarm",stream="a"} 1.0' in text
    assert 'testtime_estimate{name="estimated_accuracy",stream="a"} 0.75' in text
    metrics.forget("a")
    assert "guard_events_total{" not in metrics.text(0, 0, {}).decode()


def test_a_failing_mirror_shows() -> None:
    metrics, mirror = Metrics(2), Mock(copied=3, error="")
    text = metrics.text(1, 0, {}, mirror=mirror).decode()
    assert "testtime_mirror_snapshots 3.0" in text
    assert "testtime_mirror_failing 0.0" in text
    mirror.error = "the store is away"
    assert "testtime_mirror_failing 1.0" in metrics.text(1, 0, {}, mirror=mirror).decode()


def test_a_request_looks_at_few_records(tmp_path: Path) -> None:
    """The cost of counting events does not grow with the history that is kept."""
    with serving(tmp_path) as call:
        real, seen = call.session.history, []

        def counted(*args: Any, **options: Any) -> Any:
            found = real(*args, **options)
            seen.append(len(found))
            return found

        call.session.history = counted
        for i in range(12):
            assert call.infer(images(i)).status_code == 200
        assert len(real()) == 12
        assert (len(seen), max(seen)) == (12, 4)


def test_the_registry_is_the_servers_own(tmp_path: Path) -> None:
    from prometheus_client import REGISTRY

    with serving(tmp_path / "a") as one, serving(tmp_path / "b") as other:
        one.infer(images(0))
        assert "testtime_samples_total{" not in other.get("/metrics").text
    assert not [name for name in REGISTRY._names_to_collectors if name.startswith("testtime")]


def test_logs_are_json_without_secrets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "testtime.serve")
    with serving(tmp_path, tokens=TOKENS, token=USE) as call:
        response = call.infer(images(0), stream="a")
        call.get("/v2/health/live")
        call.post("/streams/a/snapshots", headers={"Authorization": f"Bearer {TOKENS.manage}"})
    lines = [
        json.loads(JsonFormatter().format(record))
        for record in caplog.records
        if record.name == "testtime.serve"
    ]
    assert [line["event"] for line in lines] == ["request", "snapshot", "request", "closed"]
    first = lines[0]
    assert first["request"] == response.headers["x-request-id"]
    assert (first["method"], first["route"], first["status"]) == ("POST", "/v2/models/{name}/infer", 200)
    assert (first["level"], first["logger"]) == ("info", "testtime.serve")
    assert lines[1]["stream"] == "a"
    assert first["seconds"] > 0
    assert not any(secret in json.dumps(lines) for secret in (USE, str(TOKENS.manage)))


def test_an_error_of_the_server_is_logged_and_answered(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path) as call:

        def broken(*_: object, **__: object) -> None:
            raise AssertionError("broken on purpose")

        submit, call.session.submit = call.session.submit, broken  # type: ignore[method-assign]
        response = call.infer(images(0))
        assert (response.status_code, response.json()["code"]) == (500, "internal")
        assert "broken on purpose" not in response.text
        call.session.submit = submit  # type: ignore[method-assign]
        assert call.infer(images(0)).status_code == 200
    line = json.loads(JsonFormatter().format(next(r for r in caplog.records if r.levelname == "ERROR")))
    assert "broken on purpose" in line["exception"]
    assert line["request"] == response.json()["request"]


def test_metrics_do_not_wait_for_the_model(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        call.infer(torch.rand(64, 3, 6, 6))
        responses = call.gather(*[("GET", "/metrics", {})] * 5, *[("GET", "/streams", {})] * 5)
        assert {r.status_code for r in responses} == {200}
