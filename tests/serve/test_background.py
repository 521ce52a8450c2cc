"""The thread beside the requests: it outlives what it fails to process."""

from __future__ import annotations

import pytest

from testtime.serve.background import Background


def test_an_item_that_fails_is_left_out_and_the_thread_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    found: list[float] = []
    with Background[int]("inverse", lambda n: found.append(1 / n), 8) as thread:
        assert thread.error == ""
        assert [thread.offer(n) for n in (0, 2, 4)] == [True, True, True]
        thread.settle()
        assert thread.error == "ZeroDivisionError: division by zero"
        thread.offer(1)
        thread.settle()
    assert found == [0.5, 0.25, 1.0]
    assert caplog.messages == ["inverse left out what failed"]
