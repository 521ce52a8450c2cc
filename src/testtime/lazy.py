"""Packages whose names are imported when they are first used, so that one of them does not load all the others."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from testtime.moved import renamed

__all__ = ["lazily"]


def lazily(
    package: str, homes: Mapping[str, str], former: Mapping[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return a package's ``__getattr__`` and ``__dir__``.

    Args:
        package: name of the package, ``__name__``.
        homes: public names, separated by blanks, by the module that defines them: one of the package, or any by its full
            name. A name must not be that of a module of the package, which would take its place.
        former: names that have changed, as :func:`testtime.moved.renamed` takes them.

    >>> get, names = lazily("testtime", {"moved": "current_name renamed"})
    >>> names(), get("current_name").__module__
    (['current_name', 'renamed'], 'testtime.moved')
    """
    home_of = {name: home for home, names in homes.items() for name in names.split()}

    get_former = renamed(package, former or {})

    def get(name: str) -> Any:
        if name not in home_of:
            return get_former(name)
        home = home_of[name]
        module = import_module(home if home.startswith("testtime.") else f"{package}.{home}")
        value = getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted(home_of)
