"""What other packages add: entry points, and objects by their import path.

A package registers a class of adapters under ``testtime.methods``, a function of a folder that returns a data set under
``testtime.data``, and a module with a list of experiments under ``testtime.experiments``::

    [project.entry-points."testtime.methods"]
    mine = "my_package.mine:Mine"
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any

__all__ = ["plugins", "resolve"]


def plugins(group: str) -> dict[str, EntryPoint]:
    """Return the entry points of a group by name; ``load()`` imports one.

    Args:
        group: "testtime.methods", "testtime.data" or "testtime.experiments".
    """
    return {point.name: point for point in entry_points(group=group)}


def resolve(path: str) -> Any:
    """Return what an import path names.

    Args:
        path: "package.module:name".

    Raises:
        ImportError: there is no such module or name.

    >>> resolve("math:pi")
    3.141592653589793
    """
    module, _, name = path.partition(":")
    try:
        return getattr(import_module(module), name)
    except ModuleNotFoundError as error:
        advice = "install its package, or add the folder of the module to PYTHONPATH"
        raise ImportError(f"{path}: {error}; {advice}") from error
    except AttributeError as error:
        raise ImportError(f"{path}: {error}; expected an import path as package.module:name") from error
