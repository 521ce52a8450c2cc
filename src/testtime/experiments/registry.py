"""The experiments by family, and by name; nothing imports torch before it is asked for."""

from __future__ import annotations

import inspect
import tomllib
from dataclasses import dataclass
from importlib import import_module, resources
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from testtime.errors import check_name, did_you_mean
from testtime.plugins import load_plugin, plugins, resolve

if TYPE_CHECKING:
    from testtime.experiments.experiment import Experiment

__all__ = ["EVERY", "FAMILIES", "Listed", "code_of", "find_experiment", "guard_code", "list_experiments"]
__all__ += ["read_constants", "result_shapes"]

GUARDS = ("testtime.wrap.", "testtime.metrics.")  # packages of the modules that a guard is made of

EVERY: Any = str
"""Key that stands for every key in what :func:`result_shapes` returns."""
FAMILIES = {
    "demo": "testtime.experiments.demo_list",
    "forecasting": "testtime.experiments.forecasting.listing",
    "local_tokens": "testtime.experiments.local_tokens.listing",
    "multitask": "testtime.experiments.multitask.listing",
    "online": "testtime.experiments.online.listing",
    "production": "testtime.experiments.production.listing",
    "segmentation": "testtime.experiments.segmentation.listing",
    "space": "testtime.experiments.space.listing",
    "vision-language": "testtime.experiments.vision_language.listing",
}
"""By family, the light module with its experiments in ``LISTED``, and in ``SHAPES`` what :func:`result_shapes` returns."""


@dataclass(frozen=True)
class Listed:
    """An experiment that is listed without being imported: name, title in one line, and source (paper and table).

    Args:
        load: import path "package.module:name" of the experiment, or of a function that takes the name and returns it.
    """

    name: str
    title: str
    load: str
    source: str = ""


def read_constants(package: str, name: str) -> dict[str, Any]:
    """Return the content of a TOML file beside the modules of a package.

    Args:
        package: name of the package.
        name: name of the file without its ending.
    """
    return tomllib.loads((resources.files(package) / f"{name}.toml").read_text(encoding="utf-8"))


def list_experiments(family: str | None = None) -> dict[str, list[Listed]]:
    """Return the experiments of all families or of one, by family; a ValueError says that there is none of this name."""
    names = [family] if family in FAMILIES else [*FAMILIES, *plugins("testtime.experiments")]
    if family is not None:
        check_name("family", family, names)
        names = [family]
    return {name: list(_listing(name).LISTED) for name in names}


def result_shapes(family: str) -> dict[str, Any]:
    """Return what the results of a family must hold for its tables, see :func:`testtime.files.check_shape`.

    Returns:
        Shapes by the name of the unit's function, of the plan's further facts as "about", and of those of a row as "row"; none
        for another family.
    """
    known = family in FAMILIES or family in plugins("testtime.experiments")
    return getattr(_listing(family), "SHAPES", {}) if known else {}


def _listing(family: str) -> ModuleType:
    if family in FAMILIES:
        return import_module(FAMILIES[family])
    return load_plugin(plugins("testtime.experiments")[family])


def find_experiment(name: str) -> Experiment:
    """Return an experiment by its name; a ValueError says that there is none."""
    from testtime.experiments.experiment import Experiment

    listed: dict[str, str] = {}
    for family in (*FAMILIES, None):  # those of other packages are loaded only where they are needed
        if name not in listed:
            listed |= {one.name: one.load for found in list_experiments(family).values() for one in found}
    if name not in listed:
        meant = did_you_mean(name, listed)
        raise ValueError(f"no experiment {name!r}{meant}; testtime list shows all {len(listed)}")
    found = resolve(listed[name])
    made: Experiment = found if isinstance(found, Experiment) else found(name)
    return made


def code_of(*parts: Any) -> dict[str, str]:
    """Return the SHA-256 of the files of classes, functions, modules and methods (by name) by their names."""
    from testtime.build import find_method
    from testtime.data import sha256_of

    found = [find_method(part) if isinstance(part, str) else part for part in parts]
    names = [getattr(part, "__qualname__", part.__name__) for part in found]
    return {name: sha256_of(Path(inspect.getfile(part))) for name, part in zip(names, found, strict=True)}


def guard_code(guard: Any) -> dict[str, str]:
    """Return the SHA-256 of the file of a guard (a wrapper's class) and of the modules of these packages that it imports.

    >>> from testtime.wrap import Guarded
    >>> sorted(guard_code(Guarded))[:3]
    ['Guarded', 'testtime.metrics.competence', 'testtime.metrics.label_free']
    """
    found = [import_module(guard.__module__)]
    for module in found:
        homes = (inspect.getmodule(value) for value in vars(module).values())
        inside = (m for m in homes if m is not None and m.__name__.startswith(GUARDS))
        found += [m for m in dict.fromkeys(inside) if m not in found]
    return code_of(guard, *found[1:])
