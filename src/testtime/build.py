"""Build an adapter by the name of its method."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

import testtime.methods
from testtime.adapter import Adapter
from testtime.errors import did_you_mean
from testtime.methods import METHODS
from testtime.moved import current_arguments
from testtime.plugins import load_plugin, plugins, resolve
from testtime.wrap import Guarded, ResetEvery

__all__ = ["adapt", "argument", "build_method", "find_method", "list_methods", "nested_arguments"]

CALL = re.compile(r"([\w.]+:\w+)(?:\((.*)\))?")


def list_methods() -> list[str]:
    """Return the names that :func:`adapt` takes: of this library, and entry points ``testtime.methods`` of other packages.

    >>> "paf-kip" in list_methods()
    True
    """
    return sorted({method.name for method in METHODS.values()} | plugins("testtime.methods").keys())


def adapt(
    model: nn.Module,
    method: str | type[Adapter] = "paf-kip",
    *,
    guarded: bool = False,
    disturb: Callable[[Any], Any] | None = None,
    source: Iterable[Any] | None = None,
    **arguments: Any,
) -> Adapter:
    """Wrap a model in a method.

    Args:
        model: any classifier; timm and Hugging Face models work as they come.
        method: name that :func:`find_method` takes, or a class, your own too.
        guarded: whether the adapter is put into :class:`testtime.wrap.Guarded`, which serves it only where it is likely to be
            better than the model. It is calibrated on ``source``; without, it warns at the first batch that it is not.
        disturb: function of a guarded adapter that changes a batch and keeps its classes; token ids need it.
        source: batches as in training, with which ``prepare`` is called: unlabelled images (N, C, H, W), or pairs (images,
            labels) for a method with ``labelled_source``.
        arguments: those of the method's class, e.g. ``classes=10``.

    Raises:
        ValueError: no such method, or the method does not take these arguments; the message lists what there is. Or
            ``disturb`` is given, and ``guarded`` is not.
        TypeError: the method is neither a name nor a class of adapters, or ``disturb`` is no function.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> type(adapt(net, "tent")).__name__, type(adapt(net, testtime.methods.Tent)).__name__
    ('Tent', 'Tent')
    """
    cls = find_method(method) if isinstance(method, str) else method
    if not (isinstance(cls, type) and issubclass(cls, Adapter)):
        raise TypeError(
            f"expected the name of a method or its class, got {method!r}; for example testtime.adapt(model, 'tent') or "
            "testtime.adapt(model, testtime.methods.Tent)"
        )
    if disturb is not None and not guarded:
        raise ValueError("disturb= is of a guarded adapter; pass guarded=True with it, or leave it out")
    arguments = current_arguments(cls, arguments)
    try:
        inspect.signature(cls).bind(model, **arguments)
    except TypeError as error:
        takes = [p for p in inspect.signature(cls).parameters if p != "model"]
        raise ValueError(
            f"{cls.__name__}: {error}; it takes {', '.join(takes)}{_place(cls, arguments)}"
        ) from None
    adapter = cls(model, **arguments)
    adapter = Guarded(adapter, disturb=disturb) if guarded else adapter
    if source is not None:
        adapter.prepare(source)
    return adapter


def find_method(name: str) -> type[Adapter]:
    """Return a class of adapters.

    Args:
        name: name of :func:`list_methods` or of a class of :mod:`testtime.methods` (case, "-" and "_" do not matter), or an
            import path "package.module:Class".

    Raises:
        ValueError: there is no method of this name, or it is no class of adapters.
        ImportError: the import path leads nowhere.

    >>> find_method("bn_adapt").label, find_method("UniEntPlus").name
    ('BN-adapt', 'unient+')
    """
    known = {_bare(form): cls for cls, entry in METHODS.items() for form in (entry.name, cls)}
    if ":" in name:
        found = resolve(name)
    elif _bare(name) in known:
        found = getattr(testtime.methods, known[_bare(name)])
    elif (point := plugins("testtime.methods").get(name)) is not None:
        found = load_plugin(point)
    else:
        names = list_methods()
        guess = did_you_mean(name.replace("_", "-"), names)
        own = "an own class is named as package.module:Class; " * ("." in name)
        raise ValueError(
            f"there is no method {name!r}{guess}; {own}testtime.list_methods() has {', '.join(names)}"
        )
    if not (isinstance(found, type) and issubclass(found, Adapter)):
        raise ValueError(f"{name}: expected a class of testtime.Adapter, got {found!r}")
    return found


def _place(cls: type[Adapter], arguments: Mapping[str, Any]) -> str:
    """Where a setting belongs that the class does not take itself, for a message; empty if it belongs nowhere."""
    takes = inspect.signature(cls).parameters
    if "lr" in arguments and "optimizer" in takes:
        return "; a learning rate belongs to optimizer=, such as optimizer=testtime.adam(1e-3)"
    options = takes["options"].default if "options" in takes else None
    known = (
        {field.name for field in dataclasses.fields(options)} if dataclasses.is_dataclass(options) else set()
    )
    name = next((name for name in arguments if name not in takes and name in known), None)
    return "" if name is None else f"; {name} belongs to options={type(options).__name__}({name}=...)"


def nested_arguments(cls: type[Adapter], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments of a class with those that are fields of its options put into them.

    Tables and files name all settings of a method side by side; the class takes those that are rarely changed as one object.

    Args:
        cls: class of adapters, with an argument ``options`` or without.
        arguments: its arguments, and fields of its options, by name.

    >>> from testtime.methods import STAMP
    >>> nested_arguments(STAMP, {"alpha": 0.9, "epsilon": 0.0})["options"].epsilon
    0.0
    """
    takes = inspect.signature(cls).parameters
    options = arguments.get("options", takes["options"].default if "options" in takes else None)
    if not dataclasses.is_dataclass(options) or isinstance(options, type):
        return dict(arguments)
    inside = {field.name for field in dataclasses.fields(options)} - takes.keys()
    fields = {name: value for name, value in arguments.items() if name in inside}
    rest = {name: value for name, value in arguments.items() if name not in inside}
    return rest | ({"options": dataclasses.replace(options, **fields)} if fields else {})


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
        row: facts of the row: ``method`` (for :func:`find_method`), its ``arguments`` and
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


def _bare(name: str) -> str:
    return name.lower().replace("+", "plus").replace("-", "").replace("_", "")
