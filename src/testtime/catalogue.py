"""What every method needs and does, read from its class and its docstring: there is no list to keep up to date."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

from torch import nn

import testtime.methods
from testtime.adapter import Adapter
from testtime.multitask import Assisted, Depth, Edges, MultiTaskNet, Synchronizer
from testtime.saving import list_methods
from testtime.space.mae import MaskedAutoencoder
from testtime.space.model import Size

__all__ = ["catalogue", "text"]


class _Probe(nn.Sequential):
    """The smallest network with one kind of normalisation."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__(nn.Conv2d(3, 4, 3), norm, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def _assisted(norm: nn.Module) -> nn.Module:
    """The smallest multi-task network with a synchronizer, for the methods that live there alone."""
    tasks = {"depth": Depth(), "edge": Edges()}
    net = MultiTaskNet(nn.Sequential(nn.Conv2d(3, 4, 3), norm), {t: nn.Conv2d(4, 1, 1) for t in tasks}, tasks)
    return Assisted(net, Synchronizer(tasks, 4, 2, 8, 4, 8, 1, 1, 2))


def _autoencoded(norm: nn.Module) -> nn.Module:
    """The smallest network on the encoder of a masked autoencoder, for the method that needs one."""
    mae = MaskedAutoencoder(Size(1, 1, 8, 2), (8, 8), 4)
    return Assisted(
        nn.Sequential(mae.encoder, nn.Flatten(), nn.Linear(32, 4 * 36), nn.Unflatten(1, (4, 6, 6)), norm), mae
    )


KINDS = {
    "BatchNorm": lambda: nn.BatchNorm2d(4),
    "GroupNorm": lambda: nn.GroupNorm(2, 4),
    "LayerNorm": lambda: nn.LayerNorm([4, 6, 6]),
}


def catalogue() -> list[dict[str, Any]]:
    """The methods in alphabetical order of their names.

    Returns:
        for each: ``name`` (what `testtime.adapt` takes), ``class``, ``sentence``, ``norm`` (the kinds of
        layers it works
        with: it was built on each), ``source``, ``output``, ``stochastic``, ``forwards`` and ``backwards`` of
            a batch,
        and ``reference``.
    """
    classes = {cls.lower(): cls for cls in testtime.methods.__all__}
    found = []
    for name in list_methods():
        plain = name.replace("-", "").replace("+", "plus")
        cls = getattr(testtime.methods, classes[plain])
        built = {kind: _build(cls, make()) for kind, make in KINDS.items()}
        one = next(adapter for adapter in built.values() if adapter is not None)
        module = importlib.import_module(cls.__module__)
        found.append(
            {
                "name": name,
                "class": cls.__name__,
                "sentence": (inspect.getdoc(cls) or "").split("\n", 1)[0],
                "norm": [kind for kind, adapter in built.items() if adapter is not None],
                "source": cls.source,
                "output": one.output,
                "stochastic": cls.stochastic,
                "forwards": float(one.cost[0]),
                "backwards": float(one.cost[1]),
                "reference": _reference(module.__doc__ or ""),
            }
        )
    return found


def text(methods: list[dict[str, Any]]) -> str:
    """The catalogue for a terminal.

    Args:
        methods: result of :func:`catalogue`.
    """
    width = max(len(m["name"]) for m in methods)
    lines = [f"{'method':<{width}}  forwards  backwards  source      answers  random  norm layers"]
    for m in methods:
        lines.append(
            f"{m['name']:<{width}}  {m['forwards']:>8.3g}  {m['backwards']:>9.3g}  {m['source']:<10}  "
            f"{m['output']:<7}  {'yes' if m['stochastic'] else 'no':<6}  {', '.join(m['norm'])}"
        )
        lines.append(f"{'':<{width}}  {m['sentence']}")
        lines.append(f"{'':<{width}}  {m['reference']}")
    lines.append(
        "\nforwards, backwards: of a batch of 64, at most. source: what prepare() must see first. answers: computed before "
        "or after this batch's update, or by a teacher."
    )
    return "\n".join(lines)


def _build(cls: type[Adapter], norm: nn.Module) -> Adapter | None:
    """The method on the smallest network with this layer, or None where it says that it cannot."""
    takes = inspect.signature(cls.__init__).parameters
    arguments: dict[str, Any] = {"classes": 2} if "classes" in takes else {}
    for network in (_Probe, _assisted, _autoencoded):
        try:
            return cls(network(norm), **arguments)
        except ValueError:
            continue
    return None


def _reference(doc: str) -> str:
    """The paragraph of a module's docstring that starts with "Reference:", on one line."""
    _, found, rest = doc.partition("Reference:")
    return " ".join(rest.split("\n\n", 1)[0].split()) if found else ""
