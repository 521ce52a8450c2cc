"""Arguments of a method against their annotations: what cannot be meant is refused before anything is built."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from testtime.errors import did_you_mean

__all__ = ["Natural", "Positive", "check_arguments"]

Natural = Annotated[int, 0]  # a whole number that is at least 0
Positive = Annotated[int, 1]  # a whole number that is at least 1


def check_arguments(method: str, init: Callable[..., Any], given: Mapping[str, Any]) -> None:
    """Refuse values that an annotation excludes: other words than a ``Literal``, NaN, counts that are too low, no numbers.

    Fields of a dataclass, such as the options of a method or an optimizer, are checked as arguments are. Arguments of other
    annotations are not, nor are those of a function whose annotations cannot be resolved.

    Args:
        method: name of the method, for messages.
        init: ``__init__`` of its class.
        given: arguments by name.

    Raises:
        TypeError: a value is not of the annotated kind.
        ValueError: a word is not one of those of a ``Literal``; a number is NaN or too low.

    >>> def init(self, score: Literal["energy", "entropy"] = "energy", capacity: Positive = 64): ...
    >>> check_arguments("STAMP", init, {"score": "entropy", "capacity": 1})
    >>> check_arguments("STAMP", init, {"score": "enrtopy"})
    Traceback (most recent call last):
    ...
    ValueError: STAMP: score is one of 'energy', 'entropy', got 'enrtopy' (did you mean 'entropy'?)
    """
    _check(f"{method}: ", init, given)


def _check(where: str, annotated: Any, given: Mapping[str, Any]) -> None:
    try:
        hints = get_type_hints(annotated, include_extras=True)
    except (NameError, AttributeError, TypeError):  # names for type checkers alone
        hints = {}
    for name, value in given.items():
        hint = hints.get(name, Any)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if value is None and NoneType in kinds:
            continue
        kinds = tuple(kind for kind in kinds if kind is not NoneType)
        if is_dataclass(value) and not isinstance(value, type):
            _check(f"{where}{name}.", type(value), {f.name: getattr(value, f.name) for f in fields(value)})
        elif wanted := [kind for kind in kinds if isinstance(kind, type) and is_dataclass(kind)]:
            raise TypeError(f"{where}{name} is an instance of {wanted[0].__name__}, got {value!r}")
        elif kinds and all(get_origin(kind) is Literal for kind in kinds):
            _check_word(where + name, value, [word for kind in kinds for word in get_args(kind)])
        elif kinds == (bool,):
            if isinstance(value, str) or value not in (False, True):
                raise TypeError(f"{where}{name} is True or False, got {value!r}")
        elif all(map(_is_numeric, kinds)):
            _check_numbers(where + name, value, kinds)


def _is_numeric(kind: Any) -> bool:
    if get_origin(kind) is tuple:
        return Ellipsis not in get_args(kind) and all(map(_is_numeric, get_args(kind)))
    return kind in (int, float) or (get_origin(kind) is Annotated and get_args(kind)[0] is int)


def _check_word(what: str, value: Any, words: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in words:
        near = did_you_mean(value, words) if isinstance(value, str) else ""
        raise ValueError(f"{what} is one of {', '.join(map(repr, words))}, got {value!r}{near}")


def _check_numbers(what: str, value: Any, kinds: tuple[Any, ...]) -> None:
    """Refuse what is neither one number nor as many as a tuple of the annotation has."""
    scalars = tuple(kind for kind in kinds if get_origin(kind) is not tuple)
    forms = [get_args(kind) for kind in kinds if get_origin(kind) is tuple]
    if forms and (not scalars or isinstance(value, tuple | list)):
        form = next((f for f in forms if isinstance(value, tuple | list) and len(f) == len(value)), None)
        if form is None:
            raise TypeError(
                f"{what} is a tuple of {' or '.join(str(len(f)) for f in forms)} numbers, got {value!r}"
            )
        for kind, part in zip(form, value, strict=True):
            _check_number(what, part, (kind,))
    else:
        _check_number(what, value, scalars)


def _check_number(what: str, value: Any, kinds: tuple[Any, ...]) -> None:
    whole = float not in kinds
    try:
        number = None if isinstance(value, bool | str) else value.__index__() if whole else float(value)
    except (AttributeError, TypeError, ValueError, RuntimeError):
        number = None
    if number is None:
        raise TypeError(f"{what} is a {'whole ' if whole else ''}number, got {value!r}")
    if math.isnan(number):
        raise ValueError(f"{what} is a number, got {value!r}")
    lowest = max((get_args(kind)[1] for kind in kinds if get_origin(kind) is Annotated), default=-math.inf)
    if whole and number < lowest:
        raise ValueError(f"{what} is at least {lowest}, got {value!r}")
