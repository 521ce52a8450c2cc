"""The alarm on shadow traffic of a server: status, metrics, audit log, and what clears it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
from server_world import images, served, serving

from testtime.serve.alarms import StreamAlarms
from testtime.serve.audit import records
from testtime.serve.guards import AlarmOptions
from testtime.serve.server import Configuration

WILD = Configuration("tent", {"optimizer": {"function": "sgd", "with": {"lr": 1e4}}}, guarded=False)


def test_an_adapter_that_breaks_raises_the_alarm_until_it_is_rolled_back(tmp_path: Path) -> None:
    model = served()
    reference = StreamAlarms.reference_of(model.network, model.build(WILD), [images(50, 64)])
    with (
        StreamAlarms(reference, AlarmOptions(share=1.0), waiting=100, now=lambda: 7.0) as alarms,
        serving(tmp_path, model=model, configuration=WILD, alarms=alarms) as call,
    ):
        for i in range(40):
            assert call.infer(images(i, 16)).status_code == 200
        alarms.settle()
        found = call.get("/streams/default").json()["alarm"]
        assert found.pop("evidence") >= 20
        assert found == {
            "raised": True,
            "samples": 640,
            "time": 7.0,
            "probability": 0.05,
            "tolerance": 0.01,
            "share": 1.0,
        }
        text = call.get("/metrics").text
        assert 'testtime_alarm{stream="default"} 1.0' in text
        assert 'testtime_guard_events_total{kind="shadow alarm",stream="default"} 1.0' in text
        (alarm,) = (one for one in records(tmp_path / "audit") if one["event"] == "alarm")
        assert (alarm["stream"], alarm["probability"], alarm["evidence"] >= 20) == ("default", 0.05, True)
        assert call.post("/streams/default/rollback", json={"to": None}).status_code == 200
        assert call.get("/streams/default").json()["alarm"]["samples"] == 0
        assert 'testtime_alarm{stream="default"} 0.0' in call.get("/metrics").text
        call.infer(images(60))
        alarms.settle()
        assert alarms.state("default").samples == 4
        assert call("PUT", "/configuration", json={"method": "source", "guarded": False}).status_code == 200
        assert alarms.state("default").samples == 0


def test_a_server_without_alarms_says_so(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        call.infer(torch.cat([images(0), images(1)]))
        assert call.get("/streams/default").json()["alarm"] is None
        assert "testtime_alarm{" not in call.get("/metrics").text
