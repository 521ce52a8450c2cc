"""The model that a server serves, and the adapters that a configuration builds on it."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.build import adapt, find_method, nested_arguments
from testtime.data import Crop
from testtime.errors import unknown_name
from testtime.saving import PARTS
from testtime.wrap import Guarded

__all__ = ["Configuration", "ServedModel", "channels_of"]

PLAIN = (bool, int, float, str)
TRIAL = 4  # images of the trial step
ANY_SIDE = 64  # side of the images of the trial step where the model takes any


@dataclass(frozen=True)
class Configuration:
    """How the model adapts: what ``PUT /configuration`` sets.

    Args:
        method: name that :func:`testtime.adapt` takes; no import path.
        options: arguments of the method and fields of its options, in values of JSON. A function is an object
            ``{"function": "adam", "with": {"lr": 0.001}}`` whose name is one that saved adapters may have.
        guarded: whether the adapter is guarded against collapse (:class:`testtime.wrap.Guarded`).
    """

    method: str
    options: Mapping[str, Any] = field(default_factory=dict)
    guarded: bool = True


@dataclass(frozen=True)
class ServedModel:
    """A source model and what the server needs to know of it.

    Args:
        network: source model for images (N, channels, side, side) in [0, 1] that returns logits (N, classes).
        name: name of the model in addresses: letters, digits, ``._-``.
        classes: number of classes.
        side: height and width of its images in pixels; None where it takes any.
        channels: number of channels of its images, 1 or 3.
        source: unlabelled batches of source images, from which methods and guards learn before the first request.
        seed: random seed of the methods.

    Raises:
        ValueError: name, classes, side or channels is not valid.
    """

    network: nn.Module
    name: str
    classes: int
    side: int | None
    channels: Literal[1, 3] = 3
    source: tuple[Tensor, ...] = ()
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.name or not all(c.isascii() and (c.isalnum() or c in "._-") for c in self.name):
            raise ValueError(
                f"expected letters, digits, '.', '_' and '-' as the name of the model, got {self.name!r}"
            )
        if self.classes < 2 or (self.side is not None and self.side < 1) or self.channels not in (1, 3):
            raise ValueError(
                "expected two or more classes, a side from 1 and 1 or 3 channels, "
                f"got {self.classes}, {self.side}, {self.channels}"
            )

    @property
    def size(self) -> Crop | tuple[int, int] | None:
        """The size to which images are brought: a centre crop for models of 224 pixels and more, as in their training."""
        if self.side is None:
            return None
        return Crop(self.side, self.side * 8 // 7) if self.side >= 224 else (self.side, self.side)

    def placed(self, x: Tensor) -> Tensor:
        """Return samples on the device of the model, in its precision."""
        like = next((p for p in self.network.parameters() if p.is_floating_point()), None)
        return x.float() if like is None else x.to(like)

    def build(self, configuration: Configuration) -> Adapter:
        """Build the adapter of a configuration, prepared on the source images, and try a step.

        Guards are calibrated on the source images; without any they are more cautious.

        Args:
            configuration: method, its options and whether it is guarded.

        Returns:
            the adapter before its first step.

        Raises:
            ValueError: there is no such method, an option is not valid, the method needs source images and there are none, or
                it does not work with this model.
        """
        try:
            built = self._built(configuration)
            prepared = bool(self.source) and (built.source != "none" or configuration.guarded)
            if built.source != "none" and not self.source:
                raise ValueError(
                    f"{configuration.method} learns from source images before the first request, and there are none; name "
                    "their folder: testtime serve --source FOLDER"
                )
            if prepared:
                built.prepare(self.source)
            built(self._trial())
            if prepared:
                built.reset()
                return built
            return self._built(configuration)
        except ValueError:
            raise
        except (TypeError, LookupError, AttributeError, RuntimeError, ArithmeticError, ImportError) as error:
            raise ValueError(
                f"{configuration.method} does not work with these options and this model ({type(error).__name__}: {error})"
            ) from error

    def _built(self, configuration: Configuration) -> Adapter:
        if ":" in configuration.method:
            raise ValueError(f"expected the name of a method, got the import path {configuration.method!r}")
        cls = find_method(configuration.method)
        takes = inspect.signature(cls).parameters
        given = {
            name: value for name, value in (("classes", self.classes), ("seed", self.seed)) if name in takes
        }
        options = {
            name: _checked(cls, name, _decoded(value)) for name, value in configuration.options.items()
        }
        adapter = adapt(self.network, cls, **{**given, **nested_arguments(cls, options)})
        if not configuration.guarded:
            return adapter
        return Guarded(adapter)

    def _trial(self) -> Tensor:
        if self.source:
            return self.source[0][:TRIAL].clone()
        side = self.side or ANY_SIDE
        images = torch.rand(TRIAL, self.channels, side, side, generator=torch.Generator().manual_seed(0))
        return self.placed(images)


def channels_of(network: nn.Module) -> Literal[1, 3]:
    """Return the number of channels that a network takes, that of its first convolution; 3 for a network without one.

    Raises:
        ValueError: it takes images of another number of channels than 1 or 3.
    """
    first = next((m for m in network.modules() if isinstance(m, nn.Conv2d)), None)
    channels = 3 if first is None else first.in_channels
    if channels not in (1, 3):
        raise ValueError(
            f"expected a model for images of 1 or 3 channels, its first convolution has {channels}"
        )
    return 1 if channels == 1 else 3


def _decoded(value: Any) -> Any:
    """The value of an option: a function where an object names one of those that saved adapters may have."""
    if isinstance(value, list | tuple):
        return tuple(_decoded(item) for item in value)
    if not isinstance(value, Mapping):
        return value
    if not {"function"} <= value.keys() <= {"function", "with"} or not isinstance(value["function"], str):
        raise ValueError(
            'expected an object {"function": NAME, "with": {...}} as the value of an option, with a name such as "adam", '
            f"got the keys {', '.join(map(repr, value)) or 'none'}"
        )
    parts: dict[str, Callable[..., Any]] = {name.partition(":")[2]: part for name, part in PARTS.items()}
    if value["function"] not in parts:
        raise unknown_name("function", value["function"], sorted(parts))
    part, keywords = parts[value["function"]], value.get("with")
    if keywords is None:
        return part() if dataclasses.is_dataclass(part) else part
    if not isinstance(keywords, Mapping):
        raise ValueError(
            f'{value["function"]}: expected an object of its options as "with", got {keywords!r}'
        )
    given = {name: _checked(part, name, _decoded(item)) for name, item in keywords.items()}
    return part(**given) if inspect.isclass(part) else functools.partial(part, **given)


def _checked(function: Callable[..., Any], name: str, value: Any) -> Any:
    """The value of an option, compared with the type of its default."""
    parameter = inspect.signature(function).parameters.get(name)
    options = inspect.signature(function).parameters.get("options")
    if parameter is None and options is not None and dataclasses.is_dataclass(options.default):
        return _checked(type(options.default), name, value) if _has_field(options.default, name) else value
    if parameter is None or parameter.default is inspect.Parameter.empty:
        return value  # the class itself says what it takes
    default, kind = parameter.default, type(parameter.default)
    plain = isinstance(default, PLAIN)
    fits = (
        type(value) is kind
        or (kind is float and type(value) is int)
        or (value is None and _may_be_none(function, name))
    )
    if plain and not fits:
        raise ValueError(
            f"expected {name} of type {kind.__name__}, as its default {default!r}, got {value!r}"
        )
    if callable(default) and not callable(value) and value is not None:
        raise ValueError(f'expected {name} as an object {{"function": NAME, "with": {{...}}}}, got {value!r}')
    return value


def _has_field(options: Any, name: str) -> bool:
    return any(one.name == name for one in dataclasses.fields(options))


def _may_be_none(function: Callable[..., Any], name: str) -> bool:
    target = function.__init__ if inspect.isclass(function) else function
    hint = typing.get_type_hints(target).get(name)
    return typing.get_origin(hint) in (typing.Union, types.UnionType) and type(None) in typing.get_args(hint)
