"""The experiments by family, and methods and data sets of other packages; nothing here imports torch before it is asked for.

A family registers a light module that lists its experiments in ``LISTED``. Other packages register through the entry points
``testtime.experiments`` (such a module), ``testtime.methods`` (a class of adapters) and ``testtime.data`` (a function of a
folder that returns a data set).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from testtime.errors import did_you_mean, unknown_name

if TYPE_CHECKING:
    from testtime.adapter import Adapter
    from testtime.experiments.experiment import Experiment

__all__ = [
    "FAMILIES",
    "Listed",
    "find_experiment",
    "find_method",
    "find_reader",
    "list_experiments",
    "plugins",
]

FAMILIES = {"demo": "testtime.experiments.demo_list", "online": "testtime.experiments.online.listing"}
"""The light module of each family."""


@dataclass(frozen=True)
class Listed:
    """An experiment that can be listed without being imported.

    Args:
        name: name on the command line.
        title: what it shows, in one line.
        load: import path "package.module:name" of the experiment, or of a function that takes the name and returns it.
        source: paper and table.
    """

    name: str
    title: str
    load: str
    source: str = ""


def list_experiments(family: str | None = None) -> dict[str, list[Listed]]:
    """Return the experiments of all families or of one, by family.

    Raises:
        ValueError: there is no such family.
    """
    modules: dict[str, Any] = {**FAMILIES, **plugins("testtime.experiments")}
    if family is not None and family not in modules:
        raise unknown_name("family", family, modules)
    chosen = [family] if family is not None else list(modules)
    found = {}
    for name in chosen:
        module = import_module(modules[name]) if isinstance(modules[name], str) else modules[name].load()
        found[name] = list(module.LISTED)
    return found


def find_experiment(name: str) -> Experiment:
    """Return an experiment by its name.

    Raises:
        ValueError: there is none.
    """
    from testtime.experiments.experiment import Experiment
    from testtime.experiments.store import resolve

    listed = {one.name: one for family in list_experiments().values() for one in family}
    if name not in listed:
        raise ValueError(
            f"no experiment {name!r}{did_you_mean(name, listed)}; testtime list shows all {len(listed)}"
        )
    found = resolve(listed[name].load)
    made = found if isinstance(found, Experiment) else found(name)
    if not isinstance(made, Experiment):
        raise TypeError(f"{listed[name].load} gave {made!r} for {name!r}, expected an Experiment")
    return made


def plugins(group: str) -> Mapping[str, Any]:
    """Return the entry points of a group by name; ``load()`` imports one.

    Args:
        group: "testtime.methods", "testtime.data" or "testtime.experiments".
    """
    return {point.name: point for point in entry_points(group=group)}


def find_method(name: str) -> type[Adapter]:
    """Return a class of adapters: of this library, of an entry point ``testtime.methods``, or "package.module:Class".

    Raises:
        ValueError: there is no method of this name, or it is no class of adapters.
        ImportError: the import path leads nowhere.
    """
    import testtime.methods
    from testtime.adapter import Adapter
    from testtime.experiments.store import resolve

    others = plugins("testtime.methods")
    own = {_bare(cls): cls for cls in testtime.methods.__all__}
    if ":" in name:
        found: Any = resolve(name)
    elif name in others:
        found = others[name].load()
    elif _bare(name) in own:
        found = getattr(testtime.methods, own[_bare(name)])
    else:
        raise unknown_name("method", name, [*own.values(), *others])
    if not (isinstance(found, type) and issubclass(found, Adapter)):
        raise ValueError(f"{name}: expected a class of testtime.Adapter, got {found!r}")
    return found


def find_reader(name: str) -> Callable[..., Any] | None:
    """Return the function of an entry point ``testtime.data`` that reads a data set; None if there is none of this name."""
    point = plugins("testtime.data").get(name)
    return None if point is None else point.load()


def _bare(name: str) -> str:
    return name.lower().replace("+", "plus").replace("-", "").replace("_", "")
