"""Save an adapter to a folder and load it again.

A folder holds ``adapter.safetensors``, which :func:`load` reads, and ``adapter.json``, a copy of its description for people.
The description names classes and functions; nothing that it names by an import path is imported. Only the registered parts
of this library, what the caller of :func:`load` passes, and classes that installed packages register under the entry points
``testtime.methods`` are ever called.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import json
import math
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import numpy as np
import torch
from torch import Tensor, nn

import testtime.methods
import testtime.wrap
from testtime.adapter import Adapter
from testtime.errors import DataError, in_short
from testtime.files import (
    check_shape,
    damaged,
    make_folder,
    parse_json,
    read_json,
    read_tensors,
    sweep,
    write_bytes,
    write_tensors,
)
from testtime.intake.fingerprint import Fingerprint, fingerprint
from testtime.intake.views import Views
from testtime.methods.sotta import mean_entropy, smoothed_entropy
from testtime.moved import current_arguments, current_name, renamed
from testtime.norm import (
    alpha_statistics,
    batch_statistics,
    ema_statistics,
    iabn,
    robust_statistics,
    running_statistics,
    source_statistics,
    unmix_tns,
)
from testtime.parts import (
    adam,
    adamw,
    augmix,
    identity,
    katana,
    random_crop_flip,
    sgd,
    shuffle_patches,
    simclr,
)
from testtime.parts.mixture import two_gaussians
from testtime.plugins import plugins

__all__ = ["load", "save"]

__getattr__ = renamed(
    __name__, {"adapt": "testtime.build:adapt", "list_methods": "testtime.build:list_methods"}
)

DESCRIPTION, STATE = "adapter.json", "adapter.safetensors"
FORMAT = 2
AGAIN = "save the adapter again"
DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
    "float64": torch.float64,
}

# The functions that a saved state may name, by kind of argument: nothing else of the library is called by a file.
NORMS = (
    *(alpha_statistics, batch_statistics, ema_statistics, iabn),
    *(robust_statistics, running_statistics, source_statistics, unmix_tns),
)
AUGMENTATIONS = (augmix, identity, katana, random_crop_flip, shuffle_patches, simclr)
OPTIMIZERS = (adam, adamw, sgd)
LOSSES = (mean_entropy, smoothed_entropy)
MIXTURES = (two_gaussians,)
FACTS = (Views,)
PARTS: dict[str, Callable[..., Any]] = {
    f"{part.__module__}:{part.__name__}": part
    for part in (*NORMS, *AUGMENTATIONS, *OPTIMIZERS, *LOSSES, *MIXTURES, *FACTS)
}

HOMES = ("testtime.methods", "testtime.wrap", "testtime.forecasting")
"""Modules that offer classes of adapters, all of which a saved state may name."""

OPTIONS = frozenset(
    f"testtime.methods.{name}Options"
    for name in (
        *("adacontrast:AdaContrast", "atlas:ATLAS", "meta_dmoe:MetaDMoE", "nc_ttt:NCTTT", "paf_kip:PAFKIP"),
        *("petal:PETAL", "rmt:RMT", "roid:ROID", "rotta:RoTTA", "sotta:SoTTA", "stamp:STAMP"),
        *("ttt_plus_plus:TTTPlusPlus", "vida:ViDA"),
    )
) | {"testtime.wrap.guard_options:GuardOptions"}
"""Options of methods and wrappers that a saved state may name; their modules are imported when one does."""


def _part(name: str) -> Callable[..., Any] | None:
    """The registered part of the library with this name, "module:name"."""
    if name not in OPTIONS:
        return PARTS.get(name)
    module, _, options = name.partition(":")
    found: Callable[..., Any] = getattr(importlib.import_module(module), options)
    return found


def save(adapter: Adapter, folder: str | Path) -> None:
    """Write the adapter to a folder: its class, its arguments, its state and the fingerprint of its source model.

    The model itself is not saved; only what moves is. A process that is killed while it saves leaves the adapter that was
    there before, or the new one. Only the owner may read the files.

    Args:
        adapter: instance of a class of this library or of your own; your class keeps each argument as an attribute of its
            name, or of another name that its class attribute ``kept_as`` gives.
        folder: made if it is missing; an adapter that was saved there is replaced.

    Raises:
        ValueError: an argument cannot be written to a file; the message names it.
        TypeError: this is no adapter.
        FileExistsError: the folder, or one that it is in, is a file; nothing is written.
        OSError: the disk is full or read-only.
    """
    if not isinstance(adapter, Adapter):
        raise TypeError(
            f"expected an adapter, as testtime.adapt(model) builds it, got {type(adapter).__name__}"
        )
    folder = Path(folder)
    description = {"format": FORMAT, "model": asdict(adapter.fingerprint), **_describe(adapter)}
    description["dtype"] = _dtype(adapter)
    text = json.dumps(description, allow_nan=False)
    sweep(make_folder(folder))
    write_tensors(folder / STATE, adapter.state_dict(), {"testtime": text}, private=True)
    copied = {
        "about": f"a copy for people; testtime.load reads {STATE}",
        **description,
        "sha256": _sha256(text),
    }
    write_bytes(folder / DESCRIPTION, (json.dumps(copied, indent=2) + "\n").encode(), private=True)


def load(
    folder: str | Path,
    model: nn.Module,
    classes: type[Adapter] | Iterable[type[Adapter]] | Mapping[str, type[Adapter]] = (),
    functions: Callable[..., Any] | Iterable[Callable[..., Any]] | Mapping[str, Callable[..., Any]] = (),
) -> Adapter:
    """Build the adapter that :func:`save` wrote, on the same source model, and continue where it was.

    Args:
        folder: a folder written by :func:`save`.
        model: the source model with the weights that the adapter was built on.
        classes: your own classes of adapters that the folder may name: one, a list, or a dictionary by name.
        functions: your own functions that it may name (norm policies, augmentations, losses, optimizer factories), alike.

    Raises:
        TypeError: the model is no module, or something among ``classes`` or ``functions`` is none.
        FileNotFoundError: the folder holds no saved adapter.
        ValueError: a file is damaged, or names a class or function that was not passed; or the state belongs to another
            source model.
    """
    if isinstance(folder, nn.Module):
        raise TypeError("load takes the folder first and then the model: testtime.load(folder, model)")
    folder = Path(folder)
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module as the model, got {type(model).__name__}")
    if not (folder / STATE).is_file():
        raise FileNotFoundError(
            f"{folder / STATE} is missing; expected a folder written by testtime.save(adapter, ...)"
        )
    state, metadata = read_tensors(folder / STATE, AGAIN)
    source = folder / (STATE if "testtime" in metadata else DESCRIPTION)
    description = _description(folder, metadata)
    own = _Own(folder, _by_name(classes, "classes"), _by_name(functions, "functions"))
    with damaged(source, AGAIN):
        builder = _builder(description, own)
        saved = None
        if description["format"] != 1:
            check_shape(description, {"model": dict.fromkeys(("architecture", "weights"), str)})
            saved = Fingerprint(**description["model"])
        if (dtype := description.get("dtype")) is not None and dtype not in tuple(DTYPES):
            raise ValueError(f"the dtype {dtype!r}")
    if saved is None:
        warnings.warn(
            f"{folder} was saved by an earlier version, without a fingerprint of its source model: whether the weights of "
            "this model are those it belongs to is not checked; save it again",
            stacklevel=2,
        )
    else:
        _same_model(folder, saved, model.fingerprint if isinstance(model, Adapter) else fingerprint(model))
    try:
        adapter = builder(model)
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError) as error:
        raise DataError(f"{source} does not describe an adapter of this model ({error}); {AGAIN}") from error
    _to_dtype(adapter, dtype, state)
    adapter.load_state_dict(state)
    return adapter


def _description(folder: Path, metadata: Mapping[str, str]) -> dict[str, Any]:
    """The description in the state's file, or in ``adapter.json`` where the first format has it."""
    copy = folder / DESCRIPTION
    if "testtime" not in metadata:
        if not copy.is_file():
            raise FileNotFoundError(
                f"{copy} is missing; expected a folder written by testtime.save(adapter, ...)"
            )
        found: dict[str, Any] = read_json(copy, AGAIN, finite=False)
        if found.get("format") != 1:
            raise DataError(f"{folder / STATE} is damaged (it has no description); {AGAIN}")
        return found
    with damaged(folder / STATE, AGAIN):
        if "sha256" not in metadata:
            raise ValueError("it has no checksum")
        description: dict[str, Any] = parse_json(metadata["testtime"])
        number = description["format"]
    if number != FORMAT:
        raise DataError(
            f"{folder / STATE} has format {number}, this version reads 1 and {FORMAT}; update testtime"
        )
    advice = f"it is a copy of what {STATE} holds: delete it to load the adapter as it was saved"
    there = read_json(copy, advice, finite=False) if copy.is_file() else {"format": 1}
    content = {key: value for key, value in there.items() if key not in ("about", "sha256")}
    # A kill between the two files leaves an older copy, which is whole.
    if there.get("format") != 1 and there.get("sha256") != _sha256(json.dumps(content)):
        raise DataError(
            f"{copy} was edited; {advice}, or build one with other arguments by testtime.adapt(...)"
        )
    return description


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _same_model(folder: Path, saved: Fingerprint, given: Fingerprint) -> None:
    if saved.architecture != given.architecture:
        raise ValueError(
            f"the state in {folder} belongs to a source model of another architecture: {saved.parameters} parameters and "
            f"{saved.outputs} outputs there, {given.parameters} parameters and {given.outputs} outputs here; give the model "
            "that the adapter was built on, or build a new adapter on this one"
        )
    if saved.weights != given.weights:
        raise ValueError(
            f"the state in {folder} belongs to another source model: the architecture is the same, the weights (or their "
            "dtype) are others; load the weights that the adapter was built on, or build a new adapter on this model"
        )


def _dtype(adapter: Adapter) -> str | None:
    """The type of the adapter's weights by its name in torch; None without any."""
    found = next((p.dtype for p in adapter.parameters() if p.is_floating_point()), None)
    return next((name for name, dtype in DTYPES.items() if dtype == found), None)


def _to_dtype(adapter: Adapter, saved: str | None, state: Mapping[str, Tensor]) -> None:
    """Move the adapter to the dtype in which the saved one was; earlier versions did not write it down."""
    if saved is None:
        types = {value.dtype for value in state.values() if value.is_floating_point() and value.dim()}
        saved = next((name for name, dtype in DTYPES.items() if types == {dtype}), None)
    if saved in DTYPES and saved != _dtype(adapter):
        adapter.to(DTYPES[saved])


# The description of an adapter in a file -------------------------------------------------------------------------------


def _describe(adapter: Adapter) -> dict[str, Any]:
    cls = type(adapter)
    kept = getattr(cls, "kept_as", {})
    arguments = {}
    for name, parameter in list(inspect.signature(cls).parameters.items())[1:]:
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
            raise ValueError(
                f"{cls.__name__} takes {parameter}, which cannot be saved; name every argument in __init__"
            )
        try:
            value = getattr(adapter, kept.get(name, name))
        except AttributeError:
            raise ValueError(
                f"{cls.__name__} has no attribute {name!r}, so its argument of this name cannot be saved; write "
                f"self.{name} = {name} in __init__"
            ) from None
        arguments[name] = _encode(f"{cls.__name__}.{name}", value, adapter)
    home = next((m for m in HOMES if getattr(sys.modules.get(m), cls.__name__, None) is cls), None)
    described: dict[str, Any] = {
        "class": cls.__name__,
        "module": home or cls.__module__,
        "arguments": arguments,
    }
    if home is None and (point := _entry_point(cls)) is not None:
        described["entry_point"] = point
    if isinstance(adapter, testtime.wrap.Wrapper):
        described["inner"] = _describe(adapter.adapter)
    return described


def _entry_point(cls: type[Adapter]) -> str | None:
    """The name of the entry point ``testtime.methods`` from which a class comes; nothing is imported."""
    for name, point in plugins("testtime.methods").items():
        if getattr(sys.modules.get(point.module), point.attr, None) is cls:
            return name
    return None


def _encode(name: str, value: Any, adapter: Adapter) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_encode(name, item, adapter) for item in value]
    if isinstance(value, Adapter):
        if value.fingerprint != adapter.fingerprint:
            raise ValueError(
                f"{name} is an adapter of another source model, which a file cannot hold; keep state_dict()"
            )
        return {"adapter": _describe(value)}
    if isinstance(value, functools.partial) and not value.args:
        function, keywords = value.func, value.keywords
    elif is_dataclass(value) and not isinstance(value, type):
        function, keywords = type(value), {f: getattr(value, f) for f in value.__dataclass_fields__}
    else:
        function, keywords = value, None
    known = getattr(function, "__name__", "<lambda>")  # an object that can be called has none
    if not callable(function) or known == "<lambda>":
        raise ValueError(
            f"{name}={in_short(value)} cannot be written to a file: expected a number, a text, a function with a name, a "
            "dataclass or functools.partial with keywords; or keep state_dict() and build the adapter in code"
        )
    described = {"function": f"{function.__module__}:{known}"}
    if keywords is None:
        return described
    if _part(described["function"]):
        _check_keywords(function, keywords)
    options = {key: _encode(f"{name}.{key}", item, adapter) for key, item in keywords.items()}
    return {**described, "with": options}


# What a file may ask for ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Own:
    """The classes and functions that the caller of :func:`load` passed, by name."""

    folder: Path
    classes: dict[str, Any]
    functions: dict[str, Any]

    def find(self, name: str, module: str, kind: str) -> Any:
        given = getattr(self, kind)
        found = given.get(f"{module}:{name}", given.get(name))
        if found is None:
            raise DataError(
                f"{self.folder} names {module}.{name}, which is not one of the parts that a saved state may name; if it is "
                f"your own, pass it: testtime.load(folder, model, {kind}=[{name}])"
            )
        return found


def _by_name(given: Any, what: str) -> dict[str, Any]:
    """What the caller passed, one or several, by name."""
    several = given if isinstance(given, Iterable) and not isinstance(given, str | type) else [given]
    named = [(getattr(one, "__name__", None), one) for one in several]
    found: dict[str, Any] = {}
    for name, one in given.items() if isinstance(given, Mapping) else named:
        if not callable(one) or (
            what == "classes" and not (isinstance(one, type) and issubclass(one, Adapter))
        ):
            raise TypeError(
                f"{what}: expected {'subclasses of Adapter' if what == 'classes' else 'functions'}, got {one!r}"
            )
        if name is None:
            raise TypeError(f"{what}: {one!r} has no name; pass a dictionary from the name in the file to it")
        if found.setdefault(name, one) is not one:
            raise ValueError(
                f"two of {what} have the name {name!r}; pass a dictionary of 'module:name' to each"
            )
    return found


def _builder(described: Mapping[str, Any], own: _Own) -> Callable[[nn.Module], Adapter]:
    """What builds the adapter on a model. Everything that the description names is checked before anything is called."""
    inner = _builder(described["inner"], own) if "inner" in described else None
    name, module = (
        described["class"],
        described.get("module"),
    )  # the first format has no modules, and no own classes
    home = module or ("testtime.wrap" if inner else "testtime.methods")
    if home not in HOMES:
        cls: Any = _installed(described) or own.find(name, str(module), "classes")
    else:
        cls = _of_library(home, name)
        if cls is None:
            raise DataError(
                f"there is no class {name!r} in {home}; was {own.folder} saved by a newer version?"
            )
    decoded = {key: _decode(value, own) for key, value in described["arguments"].items()}
    arguments = current_arguments(cls, decoded, saved=True)
    inspect.signature(cls).bind(None, **arguments)

    def build(model: nn.Module) -> Adapter:
        ready = {k: v.build(model) if isinstance(v, _Beside) else v for k, v in arguments.items()}
        made: Adapter = cls(inner(model) if inner else model, **ready)
        return made

    return build


def _of_library(home: str, name: str) -> type[Adapter] | None:
    """The class of adapters that a module of this library offers by a name."""
    found = importlib.import_module(home)
    cls = getattr(found, name, None) if name in found.__all__ else None
    return cls if isinstance(cls, type) and issubclass(cls, Adapter) else None


def _installed(described: Mapping[str, Any]) -> type[Adapter] | None:
    """The class of the entry point that a description names, if an installed package registers this very class."""
    point = plugins("testtime.methods").get(described.get("entry_point", ""))
    cls = None if point is None else point.load()
    if not (isinstance(cls, type) and issubclass(cls, Adapter)):
        return None
    return cls if (cls.__module__, cls.__name__) == (described["module"], described["class"]) else None


@dataclass(frozen=True)
class _Beside:
    """An argument that is an adapter of the same model."""

    build: Callable[[nn.Module], Adapter]


def _decode(value: Any, own: _Own) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item, own) for item in value)
    if not isinstance(value, dict):
        return value
    if value.keys() == {"float"}:
        return float(value["float"])
    if value.keys() == {"adapter"}:
        return _Beside(_builder(value["adapter"], own))
    if not {"function"} <= value.keys() <= {"function", "with"}:
        raise ValueError(f"an argument with the keys {', '.join(map(repr, value))}")
    module, _, name = value["function"].partition(":")
    part = _part(f"{current_name(module)}:{name}")
    function = part or own.find(name, module, "functions")
    if "with" not in value:
        return function
    keywords = {key: _decode(item, own) for key, item in value["with"].items()}
    if part is not None:
        _check_keywords(function, keywords)
    else:
        inspect.signature(function).bind_partial(**keywords)
    if inspect.isclass(function) and is_dataclass(function):
        return function(**keywords)
    return functools.partial(function, **keywords)


def _check_keywords(function: Callable[..., Any], keywords: Mapping[str, Any]) -> None:
    """Raise ValueError unless a registered part takes these keywords, with values of the type of its defaults, or None where
    its annotation has that."""
    parameters, hints = inspect.signature(function).parameters, get_type_hints(function)
    takes = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    for name, value in keywords.items():
        if name not in takes:
            raise ValueError(
                f"{function.__name__} has no option {name!r}; it has {', '.join(takes) or 'none'}"
            )
        kind = type(takes[name])
        plain = value.item() if isinstance(value, np.generic) else value
        plain = tuple(plain) if isinstance(plain, list) else plain
        may_be_none = type(None) in get_args(hints.get(name))
        optional = (
            isinstance(plain, str | tuple | None) if kind is type(None) else plain is None and may_be_none
        )
        if not (optional or type(plain) is kind or (kind, type(plain)) == (float, int)):
            raise ValueError(f"{function.__name__}: expected {name} of type {kind.__name__}, got {value!r}")
