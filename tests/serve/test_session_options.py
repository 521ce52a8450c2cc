"""Settings of a session that make no sense are refused by the name of the field, before anything is written."""

from __future__ import annotations

from dataclasses import fields
from math import inf, nan
from typing import Any

import pytest

from testtime.serve import GateOptions, Retention, SessionOptions

LEAST = {
    "snapshot_every": 0,
    "history": 1,
    "streams": 1,
    "resident": 1,
    "backlog": 0,
    "audit_rotate": 1,
    "audit_keep": 0,
}
KINDS = {
    "asynchronous": ("bool", 1),
    "retention": ("Retention", 8),
    "gate": ("GateOptions", None),
    "mirror": ("str or None", 3),
    "model": ("str or None", b"net"),
    "clock": ("a function", 0.0),
    "now": ("a function", None),
}


@pytest.mark.parametrize("value", [2.5, nan, inf, "x", True, None])
@pytest.mark.parametrize("name", LEAST)
def test_numbers_are_whole(name: str, value: Any) -> None:
    expected = f"^SessionOptions: expected {name} as a whole number of at least {LEAST[name]}, got {value!r}$"
    with pytest.raises(ValueError, match=expected):
        SessionOptions(**{name: value})


@pytest.mark.parametrize("name", LEAST)
def test_numbers_have_a_least_value(name: str) -> None:
    low = LEAST[name]
    assert getattr(SessionOptions(**{name: low}), name) == low  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"expected {name} as .* of at least {low}, got {low - 1}$"):
        SessionOptions(**{name: low - 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [nan, inf, -1, "x", True, None])
def test_the_time_of_idle_streams_is_finite(value: Any) -> None:
    assert (SessionOptions(idle=0).idle, SessionOptions(idle=2.5).idle) == (0, 2.5)
    with pytest.raises(ValueError, match=f"expected idle as a finite number of at least 0, got {value!r}$"):
        SessionOptions(idle=value)


@pytest.mark.parametrize("name", KINDS)
def test_other_settings_have_their_type(name: str) -> None:
    kind, value = KINDS[name]
    with pytest.raises(ValueError, match=f"^SessionOptions: expected {name} as {kind}, got {value!r}$"):
        SessionOptions(**{name: value})  # type: ignore[arg-type]


def test_every_setting_is_checked() -> None:
    assert {one.name for one in fields(SessionOptions)} == {*LEAST, *KINDS, "idle"}
    assert SessionOptions(retention=Retention(last=1), gate=GateOptions(most=1)).retention.last == 1


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("last", 0, "a whole number of at least 1, got 0"),
        ("last", 1.5, r"a whole number of at least 1, got 1\.5"),
        ("healthy", -1, "a whole number of at least 0, got -1"),
        ("healthy", nan, "a whole number of at least 0, got nan"),
        ("powers", 1, "bool, got 1"),
    ],
)
def test_what_is_kept_is_checked(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ValueError, match=f"^Retention: expected {name} as {expected}$"):
        Retention(**{name: value})
