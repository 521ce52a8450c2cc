"""Modules and names that have moved: old ones go on working for one version, with a DeprecationWarning.

The one table of the package. An entry is removed one version after it came.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, final

__all__ = ["MODULES", "current_name", "install", "renamed"]

MODULES = {
    "testtime.bench.methods": "testtime.catalogue",
    "testtime.checkpoint": "testtime.training.checkpoint",
    "testtime.choosing": "testtime.selection",
    "testtime.fingerprint": "testtime.intake.fingerprint",
    "testtime.frozen": "testtime.intake.frozen",
    "testtime.gradients": "testtime.intake.gradients",
    "testtime.label_shift": "testtime.source.label_shift",
    "testtime.metrics.looks": "testtime.metrics.appearance",
    "testtime.models.views": "testtime.intake.views",
    "testtime.multitask.commands": "testtime.cli.multitask",
    "testtime.multitask.network": "testtime.models.multitask",
    "testtime.multitask.synchronizer": "testtime.models.synchronizer",
    "testtime.multitask.tasks": "testtime.tasks",
    "testtime.options": "testtime.cli.options",
    "testtime.outputs": "testtime.intake.outputs",
    "testtime.parts.branches": "testtime.source.branches",
    "testtime.parts.source_training": "testtime.source.passes",
    "testtime.sharing": "testtime.intake.sharing",
    "testtime.space.analyses": "testtime.experiments.space.analyses",
    "testtime.space.commands": "testtime.cli.space",
    "testtime.space.presets": "testtime.experiments.space.presets",
    "testtime.streams.arrivals": "testtime.streams.orders",
    "testtime.streams.wandering": "testtime.streams.ccc",
}
"""New module of every module that has moved."""


def current_name(module: str) -> str:
    """Return the present name of a module, its own name if it has not moved.

    >>> current_name("testtime.choosing"), current_name("testtime.adapter")
    ('testtime.selection', 'testtime.adapter')
    """
    return MODULES.get(module, module)


def renamed(module: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """Return a module's ``__getattr__`` that hands out names by the ones they had before.

    Args:
        module: name of the module, ``__name__``.
        names: new name by old name; a new name with a colon, ``package.module:name``, is in another module.

    >>> renamed("testtime.errors", {"TroubleError": "DataError"})("DataError")
    Traceback (most recent call last):
    ...
    AttributeError: module 'testtime.errors' has no attribute 'DataError'
    """

    def get(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        home, _, new = names[name].rpartition(":")
        home = home or module
        warnings.warn(
            f"{module}.{name} is now {home}.{new}; the old name goes with the next version",
            DeprecationWarning,
            stacklevel=3,
        )
        return getattr(import_module(home), new)

    return get


@final
class _Finder(MetaPathFinder, Loader):
    """Find modules by the names that they had before."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        return ModuleSpec(name, self) if name in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        new = MODULES[spec.name]
        warnings.warn(
            f"{spec.name} is now {new}; the old name goes with the next version",
            DeprecationWarning,
            stacklevel=6,
        )
        module = ModuleType(spec.name, f"The former name of :mod:`{new}`.")
        vars(module)["__getattr__"] = lambda name: getattr(import_module(new), name)
        return module

    def exec_module(self, module: ModuleType) -> None:
        module.__all__ = list(getattr(import_module(MODULES[module.__name__]), "__all__", ()))  # type: ignore[attr-defined]


def install() -> None:
    """Let the former names of modules be imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
