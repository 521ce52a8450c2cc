"""What other packages add: entry points, and objects by their import path.

A package registers a class of adapters under ``testtime.methods``, a function of a folder that returns a data set under
``testtime.data``, and a module with a list of experiments under ``testtime.experiments``::

    [project.entry-points."testtime.methods"]
    mine = "my_package.mine:Mine"
"""

from __future__ import annotations

import traceback
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

__all__ = ["load_plugin", "located", "plugins", "resolve"]


def plugins(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name; ``load()`` imports one.

    Args:
        group: "testtime.methods", "testtime.data" or "testtime.experiments".
    """
    return {point.name: point for point in entry_points(group=group)}


def load_plugin(point: EntryPoint) -> Any:
    """Return what an entry point names.

    Raises:
        ImportError: it cannot be imported; the message names the entry point and its package.
    """
    try:
        return point.load()
    except Exception as error:  # the code of another's module may raise anything
        package = point.dist.name if point.dist else "the package that registers it"
        raise ImportError(
            f"the entry point {point.name} = {point.value} of {point.group} cannot be loaded: {located(error)}; repair or "
            f"uninstall {package}"
        ) from error


def resolve(path: str) -> Any:
    """Return what an import path names.

    Args:
        path: "package.module:name".

    Raises:
        ImportError: there is no such module or name, or the code of the module raises an error.

    >>> resolve("math:pi")
    3.141592653589793
    """
    module, _, name = path.partition(":")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        advice = "install its package, or add the folder of the module to PYTHONPATH"
        raise ImportError(f"{path}: {error}; {advice}") from error
    except Exception as error:  # the code of another's module may raise anything
        raise ImportError(f"{path}: the module cannot be imported: {located(error)}") from error
    try:
        return getattr(found, name)
    except AttributeError as error:
        raise ImportError(f"{path}: {error}; expected an import path as package.module:name") from error


def located(error: BaseException) -> str:
    """Return the type and message of an error with the line of code that raised it.

    >>> try:
    ...     compile("1 +", "mine.py", "exec")
    ... except SyntaxError as error:
    ...     print(located(error))
    SyntaxError: invalid syntax (mine.py, line 1)
    """
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error}"
    last = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__}: {error} ({last.filename}, line {last.lineno})"
