"""The configuration changes while requests are served; one that is not valid changes nothing."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
from server_world import INFER, TENT, images, network, outputs, request, served, serving

from testtime.serve.server import Configuration, Limits, ServedModel, open_session

CHANGES = [
    {"method": "bn-adapt", "guarded": False},
    {"method": "tent", "options": {"optimizer": {"function": "sgd", "with": {"lr": 0.01}}}, "guarded": False},
    {"method": "source", "guarded": False},
    {"method": "eta", "options": {"margin": 0.5}, "guarded": False},
]


def test_the_next_request_meets_the_new_configuration(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        call.infer(images(0))
        assert call.get("/configuration").json() == {
            "method": "tent",
            "options": {"optimizer": {"function": "adam", "with": {"lr": 0.01}}},
            "guarded": False,
            "changes": 0,
        }
        changed = call("PUT", "/configuration", json={"method": "source", "guarded": False})
        assert changed.json() == {"method": "source", "options": {}, "guarded": False, "changes": 1}
        with torch.no_grad():
            want = network()(images(1))
        assert outputs(call.infer(images(1)))["logits"] == want.flatten().tolist()
        assert call.get("/v2/models/small").json()["parameters"]["method"] == "source"


def test_a_configuration_that_is_not_valid_keeps_the_old_one(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        call.infer(images(0))
        before = call.session.configuration, call.get("/streams/default").json()["state"]
        refused = call("PUT", "/configuration", json={"method": "tnt", "guarded": False})
        assert refused.status_code == 422
        assert "did you mean 'tent'?" in refused.json()["detail"]
        needs = call("PUT", "/configuration", json={"method": "cafa", "guarded": False})
        assert needs.status_code == 422
        assert "--source FOLDER" in needs.json()["detail"]
        assert (call.session.configuration, call.get("/streams/default").json()["state"]) == before
        text = call.get("/metrics").text
        assert 'testtime_configuration_changes_total{result="refused"} 2.0' in text


def test_methods_learn_from_the_source_images(tmp_path: Path) -> None:
    model = ServedModel(network(), "small", 3, 6, source=(images(50, 32), images(51, 32)))
    with serving(tmp_path, model=model) as call:
        changed = call("PUT", "/configuration", json={"method": "cafa", "guarded": False})
        assert changed.status_code == 200, changed.text
        assert call.infer(images(0)).status_code == 200


def test_a_built_adapter_has_taken_no_step() -> None:
    adapter = served().build(TENT)
    assert int(adapter.clock) == 0
    fresh = served().build(TENT)
    assert torch.equal(adapter(images(0)).logits, fresh(images(0)).logits)


def load(folder: Path, changes: int) -> tuple[list[int], list[int], float]:
    """Change the configuration while four clients send requests, which may wait for a busy machine; the statuses of both."""
    with serving(folder, limits=Limits(rate=None, wait=120.0)) as call:
        done = False

        async def client(stream: str) -> list[int]:
            found = []
            while not done:
                response = await call.http.post(INFER, json=request(images(len(found)), stream=stream))
                assert response.status_code == 200, response.text
                found.append(response.status_code)
            return found

        async def calls() -> tuple[list[int], list[int], float]:
            nonlocal done
            clients = [asyncio.ensure_future(client(f"s{i}")) for i in range(4)]
            changed, began = [], time.monotonic()
            for i in range(changes):
                body = CHANGES[i % len(CHANGES)] if i % 5 else {"method": "tnt", "guarded": False}
                changed.append((await call.http.put("/configuration", json=body)).status_code)
            done = True
            statuses = [status for found in await asyncio.gather(*clients) for status in found]
            return statuses, changed, time.monotonic() - began

        return call.runner.run(calls())


def test_changes_under_load_fail_no_request(tmp_path: Path) -> None:
    statuses, changed, _ = load(tmp_path, 20)
    assert set(statuses) == {200}
    assert len(statuses) > 4
    assert changed == [200 if i % 5 else 422 for i in range(20)]


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_changes_under_load_fail_no_request(tmp_path: Path) -> None:
    statuses, changed, seconds = load(tmp_path, 1000)
    print(
        f"{len(changed)} changes in {seconds:.0f} s, of them {changed.count(422)} refused; {len(statuses)} requests"
    )
    assert set(statuses) == {200}
    assert (changed.count(200), changed.count(422)) == (800, 200)


def test_a_restart_continues_with_the_changed_configuration(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        call.infer(images(0))
        call("PUT", "/configuration", json=CHANGES[0])
        state = call.infer(images(1)).json()["parameters"]["state"]
    with serving(tmp_path) as call:
        assert call.get("/configuration").json()["method"] == "bn-adapt"
        assert call.get("/streams/default").json()["state"] == state
    with serving(tmp_path, configuration=Configuration("source", guarded=False)) as call:
        assert call.get("/configuration").json()["method"] == "source"
        assert call.get("/streams/default").json()["offset"] == 8


def test_a_restart_after_a_kill_between_the_two_files(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        kept = call.service.options.kept
        following = Configuration("bn-adapt", guarded=False)
        kept.write(call.session.configuration, TENT, following)
    session, used = open_session(served(), TENT, tmp_path)
    assert used == TENT
    with session:
        kept.write(session.configuration, TENT, following)
        session.configure(served().build(following))
    session, used = open_session(served(), TENT, tmp_path)
    session.close()
    assert used == following


def test_a_damaged_file_of_the_configuration(tmp_path: Path) -> None:
    with serving(tmp_path):
        pass
    path = tmp_path / "configuration.json"
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ValueError, match=r"configuration.json is damaged .*; delete it"):
        open_session(served(), TENT, tmp_path)
    path.unlink()
    open_session(served(), TENT, tmp_path)[0].close()


def test_guards_report_what_they_do(tmp_path: Path) -> None:
    model = ServedModel(network(), "small", 3, 6, source=(images(50, 64),))
    guarded = Configuration("tent", {"optimizer": {"function": "adam", "with": {"lr": 0.01}}})
    with serving(tmp_path, model=model, configuration=guarded) as call:
        for i in range(3):
            facts = call.infer(images(i, 16)).json()["parameters"]
            assert facts["serving"] in ("adapter", "bn", "source")
        one = call.post(INFER, json=request(images(7, 1).expand(16, -1, -1, -1) + 0.01 * images(8, 16)))
        assert one.status_code == 200
        estimates = call.get("/streams/default").json()["diagnostics"]
        assert {"estimated_accuracy", "update_norm", "statistics_drift"} <= estimates.keys()
        text = call.get("/metrics").text
        assert 'testtime_estimate{name="estimated_accuracy",stream="default"}' in text
        assert 'testtime_answers_total{adapted="true",serving=' in text
        events = [event for record in call.session.history() for event in record["events"]]
        counted = sum(
            float(line.rsplit(" ", 1)[1])
            for line in text.splitlines()
            if line.startswith("testtime_guard_events_total{")
        )
        assert counted == len(events)
    with serving(tmp_path, model=model, configuration=guarded) as call:
        assert call.get("/configuration").json()["guarded"] is True
        assert call.get("/streams/default").json()["offset"] == 64
