"""Methods as rows: an adapter from a name and arguments in values of JSON."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from testtime.adapter import Adapter
from testtime.build import find_method, nested_arguments
from testtime.plugins import resolve
from testtime.wrap import ResetEvery

__all__ = ["argument", "build_method"]

CALL = re.compile(r"([\w.]+:\w+)(?:\((.*)\))?")


def argument(value: Any) -> Any:
    """Return the value of an argument: what "package.module:name" names, or the result of calling it; others as they are.

    >>> argument(0.5), argument(["ema"]), argument("builtins:dict()"), argument("testtime.parts:sgd(0.05)").lr
    (0.5, ('ema',), {}, 0.05)
    """
    match = CALL.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return tuple(value) if isinstance(value, list) else value
    found = resolve(match[1])
    return found if match[2] is None else found(*json.loads(f"[{match[2]}]"))


def build_method(row: Mapping[str, Any], model: nn.Module, classes: int, seed: int) -> Adapter:
    """Build the adapter of a row on a model.

    Args:
        row: facts of the row: ``method`` (for :func:`testtime.build.find_method`), its ``arguments`` and
            ``reset_every`` if the adapter is reset after so many steps.
        model: source model.
        classes: number of classes, for methods that take it.
        seed: random seed, for methods that take it.
    """
    cls = find_method(row["method"])
    takes = inspect.signature(cls.__init__).parameters
    given = {name: value for name, value in (("classes", classes), ("seed", seed)) if name in takes}
    arguments = {name: argument(value) for name, value in row.get("arguments", {}).items()}
    adapter = cls(model, **{**given, **nested_arguments(cls, arguments)})
    return ResetEvery(adapter, row["reset_every"]) if row.get("reset_every") else adapter
