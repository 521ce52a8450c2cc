"""Names, and folders: build an adapter by name, list what there is, save one and load it again."""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import sys
from collections.abc import Callable
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

import testtime.methods
import testtime.norm
import testtime.wrap
from testtime.adapter import Adapter
from testtime.errors import did_you_mean

__all__ = ["adapt", "list_methods", "load", "save"]

CONFIGURATION, STATE = "adapter.json", "adapter.safetensors"
FORMAT = 1


def _slug(name: str) -> str:
    """The name people write: ``PAFKIP`` is "paf-kip", ``UniEntPlus`` is "unient+"."""
    spoken = {
        "PAFKIP": "paf-kip",
        "UniEntPlus": "unient+",
        "BNAdapt": "bn-adapt",
        "MetaDMoE": "meta-dmoe",
        "NCTTT": "nc-ttt",
        "SHOTIM": "shot-im",
        "TTTMAE": "ttt-mae",
        "TTTPlusPlus": "ttt++",
    }
    return spoken.get(name, name.lower())


def _methods() -> dict[str, type[Adapter]]:
    return {_slug(name): getattr(testtime.methods, name) for name in testtime.methods.__all__}


def list_methods() -> list[str]:
    """The names that :func:`adapt` takes.

    >>> "paf-kip" in list_methods()
    True
    """
    return sorted(_methods())


def adapt(model: nn.Module, method: str = "paf-kip", **arguments: Any) -> Adapter:
    """Wrap a model in a method, by name.

    Args:
        model: any classifier; timm and Hugging Face models work as they come.
        method: one of :func:`list_methods`; case, "-" and "_" do not matter.
        arguments: those of the method's class, e.g. ``classes=10``.

    Raises:
        ValueError: no such method, or the method does not take these arguments; the message lists what there is.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> type(adapt(net, "tent")).__name__
    'Tent'
    """
    known = {name.replace("-", ""): cls for name, cls in _methods().items()}
    cls = known.get(method.lower().replace("-", "").replace("_", ""))
    if cls is None:
        raise ValueError(
            f"there is no method {method!r}{did_you_mean(method, known)}; testtime.list_methods() has "
            f"{', '.join(list_methods())}"
        )
    try:
        inspect.signature(cls).bind(model, **arguments)
    except TypeError as error:
        takes = [p for p in inspect.signature(cls).parameters if p != "model"]
        raise ValueError(f"{cls.__name__}: {error}; it takes {', '.join(takes)}") from None
    return cls(model, **arguments)


def save(adapter: Adapter, folder: str | Path) -> None:
    """Write the adapter to a folder: ``adapter.json`` (which method, which arguments) and ``adapter.safetensors``.

    The model itself is not saved; only what moves is. Both files appear whole or not at all.

    Raises:
        ValueError: an argument that is a function of your own, which a file cannot hold; the message names it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    configuration = {"format": FORMAT, **_describe(adapter)}
    state = {name: value.detach().cpu().contiguous() for name, value in adapter.state_dict().items()}
    for name, write in (
        (STATE, lambda path: save_file(state, path)),
        (CONFIGURATION, lambda path: path.write_text(json.dumps(configuration, indent=2) + "\n")),
    ):
        partial = folder / f".{name}.partial"
        write(partial)
        partial.replace(folder / name)


def load(folder: str | Path, model: nn.Module) -> Adapter:
    """Build the adapter that :func:`save` wrote, on the same source model, and continue where it was.

    Raises:
        FileNotFoundError: the folder holds no saved adapter.
        ValueError: a file is damaged, or the state does not fit the model.
    """
    folder = Path(folder)
    for name in (CONFIGURATION, STATE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} is missing; expected a folder written by testtime.save(adapter, ...)"
            )
    try:
        configuration = json.loads((folder / CONFIGURATION).read_text())
        if configuration["format"] != FORMAT:
            raise ValueError(
                f"{folder / CONFIGURATION} has format {configuration['format']}, this reads {FORMAT}"
            )
        adapter = _build(configuration, model)
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / CONFIGURATION} is damaged ({error!r}); save the adapter again"
        ) from error
    try:
        with safe_open(folder / STATE, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except SafetensorError as error:
        raise ValueError(f"{folder / STATE} is damaged ({error}); save the adapter again") from error
    adapter.load_state_dict(state)
    return adapter


def _describe(adapter: Adapter) -> dict[str, Any]:
    parameters = list(inspect.signature(type(adapter)).parameters)[1:]
    described: dict[str, Any] = {
        "class": type(adapter).__name__,
        "arguments": {name: _encode(name, getattr(adapter, name)) for name in parameters},
    }
    if isinstance(adapter, testtime.wrap.Wrapper):
        described["inner"] = _describe(adapter.adapter)
    return described


def _build(described: dict[str, Any], model: nn.Module) -> Adapter:
    inner = described.get("inner")
    home = testtime.wrap if inner else testtime.methods
    if described["class"] not in home.__all__:
        raise ValueError(
            f"there is no class {described['class']!r} in {home.__name__}; was it saved by a newer version?"
        )
    arguments = {name: _decode(value) for name, value in described["arguments"].items()}
    return getattr(home, described["class"])(_build(inner, model) if inner else model, **arguments)


def _function(name: str) -> Callable[..., Any]:
    """The function or class of this library that goes by a saved name, ``module:name``."""
    module, _, attribute = name.partition(":")
    if not module.startswith("testtime."):
        raise KeyError(f"{name} is not one of testtime's own functions")
    return getattr(importlib.import_module(module), attribute)


def _encode(name: str, value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return [_encode(name, item) for item in value]
    if isinstance(value, functools.partial) and not value.args:
        return {"function": _encode(name, value.func)["function"], "with": value.keywords}
    values = asdict(value) if is_dataclass(value) and not isinstance(value, type) else None
    kind = value if values is None else type(value)
    module, known = getattr(kind, "__module__", None) or "", getattr(kind, "__name__", "")
    if module.startswith("testtime.") and getattr(sys.modules.get(module), known, None) is kind:
        return {"function": f"{module}:{known}", **({} if values is None else {"with": values})}
    raise ValueError(
        f"{name}={value!r} is not one of testtime's own functions, so a file cannot hold it; "
        "keep state_dict() and build the adapter in code, or pass a function of testtime.norm or testtime.parts"
    )


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_decode(item) for item in value)
    if not isinstance(value, dict):
        return value
    function, keywords = _function(value["function"]), value.get("with")
    if keywords is None:
        return function
    return (
        function(**keywords)
        if inspect.isclass(function) and is_dataclass(function)
        else functools.partial(function, **keywords)
    )
