"""Checks of the fields of settings: an error names the field, what was expected, and what was given."""

from __future__ import annotations

import math
from collections.abc import Mapping

from testtime.errors import in_short

__all__ = ["need_kinds", "need_number", "need_whole", "refused_field"]


def need_whole(owner: object, **least: int) -> None:
    """Check that fields are whole numbers.

    Args:
        owner: settings whose fields they are.
        least: smallest value of each field, by its name.

    Raises:
        ValueError: one is no whole number, or a smaller one.
    """
    for name, low in least.items():
        value = getattr(owner, name)
        if type(value) is not int or value < low:
            raise refused_field(owner, name, f"a whole number of at least {low}")


def need_number(owner: object, *names: str, below: float = math.inf) -> None:
    """Check that fields are finite numbers of at least 0.

    Args:
        owner: settings whose fields they are.
        names: names of the fields.
        below: number above every value.

    Raises:
        ValueError: one is no number, or out of range.
    """
    for name in names:
        value = getattr(owner, name)
        if type(value) not in (int, float) or not 0 <= value < below:
            within = (
                "a finite number of at least 0" if below == math.inf else f"a number from 0 to below {below}"
            )
            raise refused_field(owner, name, within)


def need_kinds(owner: object, kinds: Mapping[str, type | tuple[type, ...]]) -> None:
    """Check the types of fields.

    Args:
        owner: settings whose fields they are.
        kinds: type of each field, or types, by its name.

    Raises:
        ValueError: one is of another type.
    """
    for name, kind in kinds.items():
        if not isinstance(getattr(owner, name), kind):
            several = kind if isinstance(kind, tuple) else (kind,)
            expected = " or ".join("None" if one is type(None) else one.__name__ for one in several)
            raise refused_field(owner, name, expected)


def refused_field(owner: object, name: str, expected: str) -> ValueError:
    """Return the error of a field.

    Args:
        owner: settings whose field it is.
        name: name of the field.
        expected: description of the values that are allowed.
    """
    given = in_short(getattr(owner, name))
    return ValueError(f"{type(owner).__name__}: expected {name} as {expected}, got {given}")
