"""Bad requests are refused with a problem that says what to do: no error of the server, no change of any state."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
from bad_requests import BAD
from server_world import Caller, images, outputs, serving

from testtime.serve.server import Limits


def state(call: Caller) -> tuple[object, ...]:
    """All that a request may change."""
    session = call.session
    return (
        tuple((name, session.status(name), len(session.history(name))) for name in session.streams()),
        session.configuration,
        call.service.configuration,
    )


def refuse(call: Caller, name: str, times: int) -> None:
    method, path, settings, status = BAD[name]
    for _ in range(times):
        response = call(method, path, **settings)
        assert response.status_code == status, f"{name}: {response.status_code} {response.text[:500]}"
        assert response.headers["content-type"] == "application/problem+json"
    problem = response.json()
    assert problem["status"] == status
    assert len(problem["detail"]) > 8
    assert len(problem["advice"]) > 4
    assert problem["request"] == response.headers["x-request-id"]


def resident() -> int:
    """Resident memory of this process in KiB, without that of files, which a busy machine takes away and gives back."""
    _, pages, shared, *_ = Path("/proc/self/statm").read_text().split()
    return (int(pages) - int(shared)) * os.sysconf("SC_PAGE_SIZE") // 1024


def test_there_are_many_kinds() -> None:
    assert len(BAD) >= 60


def test_bad_requests_change_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        call.infer(images(0))
        before = state(call)
        for name in BAD:
            refuse(call, name, 10)
        assert state(call) == before
        with serving(tmp_path / "other") as other:
            other.infer(images(0))
            want = outputs(other.infer(images(1)))
        assert outputs(call.infer(images(1))) == want
        counted = call.get("/metrics").text
        assert 'testtime_requests_refused_total{reason="bad-shape"} 40.0' in counted
        assert "testtime_configuration_changes_total" in counted


def held() -> tuple[int, int]:
    """Number of objects of this process, and its resident memory in KiB without what the allocator keeps for later."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library than that of GNU
        ctypes.CDLL(None).malloc_trim(0)
    return len(gc.get_objects()), resident()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_thousand_of_each_leave_state_and_memory_as_they_were(tmp_path: Path) -> None:
    """After a tenth of the requests, memory grows by less than 5 MiB, and objects by less than a thousand."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("resident memory is read from /proc")
    rounds = int(os.environ.get("TESTTIME_BAD_REQUESTS", "1000")) // 10
    with serving(tmp_path, limits=Limits(rate=None, wait=120.0)) as call:  # a busy machine
        call.infer(images(0))
        before = state(call)
        for done in range(rounds):
            if done == rounds // 10:
                warm = held()
            if done % max(1, rounds // 10) == 0:
                print(f"{10 * done * len(BAD)} requests: {held()[1]} KiB", flush=True)
            for name in BAD:
                refuse(call, name, 10)
        objects, memory = (after - early for after, early in zip(held(), warm, strict=True))
        many = 10 * rounds * len(BAD)
        print(
            f"{many} bad requests of {len(BAD)} kinds; after a tenth of them memory grew by {memory} KiB, and {objects} objects"
        )
        assert state(call) == before
        assert objects < 1000
        assert memory < 5 * 1024
