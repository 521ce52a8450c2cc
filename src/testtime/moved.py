"""Modules, names and arguments that have changed: old ones go on working for one version, with a DeprecationWarning.

The one table of the package. An entry is removed one version after it came.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, TypeVar, cast, final

__all__ = ["ARGUMENTS", "MODULES", "current_arguments", "current_name", "install", "renamed", "takes_former"]

F = TypeVar("F", bound=Callable[..., Any])

MODULES = {
    "testtime.bench.cache": "testtime.streams.cache",
    "testtime.bench.methods": "testtime.catalogue",
    "testtime.bench.prequential": "testtime.prequential",
    "testtime.bench.protocols": "testtime.experiments.online.former",
    "testtime.bench.sets": "testtime.experiments.online.former",
    "testtime.checkpoint": "testtime.training.checkpoint",
    "testtime.choosing": "testtime.selection",
    "testtime.experiments.multitask.houses": "testtime.multitask.houses",
    "testtime.experiments.production.measures": "testtime.metrics.windows",
    "testtime.fingerprint": "testtime.intake.fingerprint",
    "testtime.frozen": "testtime.intake.frozen",
    "testtime.gradients": "testtime.intake.gradients",
    "testtime.label_shift": "testtime.source.label_shift",
    "testtime.methods.dann": "testtime.source.dann",
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
    "testtime.report.heat": "testtime.report.points",
    "testtime.space.analyses": "testtime.experiments.space.analyses",
    "testtime.space.commands": "testtime.cli.space",
    "testtime.space.presets": "testtime.experiments.space.presets",
    "testtime.streams.arrivals": "testtime.streams.orders",
    "testtime.streams.wandering": "testtime.streams.ccc",
}
"""New module of every module that has moved."""


def _into_options(names: str) -> dict[str, str]:
    return {name: f"options.{name}" for name in names.split()}


WITHOUT_SEED = (
    *("actmad:ActMAD", "adanpc:AdaNPC", "bn_adapt:BNAdapt", "cafa:CAFA", "core:Core", "eata:EATA", "eta:ETA"),
    *(
        "lame:LAME",
        "nhl:NHL",
        "ostta:OSTTA",
        "pl:PL",
        "rpl:RPL",
        "sar:SAR",
        "shot_im:SHOTIM",
        "source:Source",
    ),
    *("t3a:T3A", "tent:Tent", "unient:UniEnt", "unient_plus:UniEntPlus"),
)
METHODS = {
    **{name: {"seed": ""} for name in WITHOUT_SEED},
    "adacontrast:AdaContrast": _into_options("contrast diversity begin capacity head"),
    "atlas:ATLAS": _into_options("tasks severity passes rate skip"),
    "cmf:CMF": _into_options("temperature weighting consistency prior"),
    "meta_dmoe:MetaDMoE": _into_options("tasks severity passes rate support mask depth heads head"),
    "nc_ttt:NCTTT": _into_options("width hidden small large layer passes rate"),
    "paf_kip:PAFKIP": _into_options("primary minimise maximise models source_statistics output batched"),
    "petal:PETAL": _into_options("restoration passes"),
    "rmt:RMT": _into_options("replay shuffle ensemble warm_up head") | {"outputs": "projection"},
    "roid:ROID": _into_options("temperature weighting consistency prior"),
    "rotta:RoTTA": _into_options("lambda_t lambda_u teacher_observes"),
    "santa:SANTA": {"outputs": "projection"},
    "sotta:SoTTA": _into_options("observe_twice skip"),
    "stamp:STAMP": _into_options("capacity decay rho score chunk original count normalise epsilon skip"),
    "ttt_plus_plus:TTTPlusPlus": _into_options("layer temperature passes rate")
    | {"outputs": "options.projection"},
    "vida:ViDA": _into_options("adapter_rate adapter_decay scale allotment restoration layers"),
}
RECIPE = "passes expert_passes aggregator_passes rate expert_rate pretrain_rate aggregator_rate inner_rate support mask"
ARGUMENTS = {
    **{f"testtime.methods.{name}": changed for name, changed in METHODS.items()},
    "testtime.models.synchronizer:Synchronizer": _into_options(
        "ratio strategy layout projection reconstruct lambda_tp lambda_tbs layers"
    ),
    "testtime.source.dann:train_dann": _into_options("alpha beta hidden head"),
    "testtime.source.itta:train_itta": _into_options("depth layers head"),
    "testtime.space.dino:SelfDistilled": _into_options(
        "local wide narrow temperature sharpening warmup momentum centring patches"
    ),
    "testtime.space.ingest:ingest": {"say": "log"}
    | _into_options("smallest pseudo modalities vocabulary box_tokens rows limit radius"),
    "testtime.space.tokenizers:VQTokenizer": _into_options("latent decay commitment"),
    "testtime.source.meta_dmoe:train_meta_dmoe": {name: f"recipe.{name}" for name in RECIPE.split()},
}
"""New name of every keyword argument that has changed, by "module:class" or "module:function": "" for one that is gone,
"options.field" for one that is now a field of an options object."""


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


def current_arguments(taker: Any, arguments: Mapping[str, Any], saved: bool = False) -> dict[str, Any]:
    """Return keyword arguments by their present names.

    Args:
        taker: class or function that takes them.
        arguments: keyword arguments as they were given.
        saved: whether they are all the arguments of a saved adapter, which does not warn.

    >>> import pytest
    >>> from testtime.methods import Tent
    >>> with pytest.warns(DeprecationWarning, match="Tent draws no random numbers"):
    ...     current_arguments(Tent, {"norm": None, "seed": 3})
    {'norm': None}
    """
    changed = ARGUMENTS.get(f"{taker.__module__}:{taker.__name__}", {})
    if not changed.keys() & arguments.keys():
        return dict(arguments)
    takes = inspect.signature(taker).parameters
    found: dict[str, Any] = {}
    moved: dict[str, dict[str, Any]] = {}
    for name, value in arguments.items():
        home, _, new = changed.get(name, "").rpartition(".")
        given = home in arguments or new in arguments
        if name not in changed or (name in takes and (given or not (saved or isinstance(value, int)))):
            found[name] = value
            continue
        if home:
            moved.setdefault(home, {})[new] = value
        elif new:
            found[new] = value
        if not saved:
            options = f"{home}={type(takes[home].default).__name__}({new}=...)" if home else f"{new}=..."
            _warn_of_argument(taker.__name__, name, options if new else "")
    for home, fields in moved.items():
        found[home] = dataclasses.replace(found.get(home, takes[home].default), **fields)
    return found


def takes_former(taker: F) -> F:
    """Let a function or a class take the keyword arguments that it had before."""
    function = taker.__init__ if isinstance(taker, type) else taker  # type: ignore[misc]  # of the class itself

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **current_arguments(taker, kwargs))

    if not isinstance(taker, type):
        return cast(F, call)
    type.__setattr__(taker, "__init__", call)
    return taker


def _warn_of_argument(taker: str, old: str, new: str) -> None:
    now = f"{taker}({old}=...) is now {taker}({new})"
    what = now if new else f"{taker} draws no random numbers: leave out {old}"
    warnings.warn(f"{what}; the old keyword goes with the next version", DeprecationWarning, stacklevel=4)


@final
class _Finder(MetaPathFinder, Loader):
    """Find modules by the names that they had before, and the packages of which nothing else is left."""

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = any(old.startswith(f"{name}.") for old in MODULES)
        return ModuleSpec(name, self, is_package=package) if package or name in MODULES else None

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        if spec.name not in MODULES:
            return None
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
        if module.__name__ in MODULES:
            module.__all__ = list(getattr(import_module(MODULES[module.__name__]), "__all__", ()))  # type: ignore[attr-defined]


def install() -> None:
    """Let the former names of modules be imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
