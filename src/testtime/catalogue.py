"""What every method needs and does, read from the facts that its class declares: nothing is built."""

from __future__ import annotations

import inspect
from typing import Any

import testtime.methods
from testtime.adapter import Adapter
from testtime.facts import norm_kinds
from testtime.methods import METHODS

__all__ = ["catalogue", "text"]


def catalogue() -> list[dict[str, Any]]:
    """Return the methods in alphabetical order of their names.

    Returns:
        for each: ``name`` (what :func:`testtime.adapt` takes), ``label``, ``class``, ``sentence``, ``needs``, ``norm`` (kinds
        of normalisation layers that it works with), ``source``, ``output``, ``stochastic``, ``forwards`` and ``backwards`` of
        a batch, ``venue``, ``paper``, ``code`` and ``reference``: :class:`testtime.facts.Facts` explains them. Facts that
        depend on arguments are those of the defaults.

    >>> next(m["reference"] for m in catalogue() if m["name"] == "cotta")
    'Wang, Fink, Van Gool and Dai, Continual Test-Time Domain Adaptation, CVPR 2022.'
    """
    classes = [getattr(testtime.methods, name) for name in METHODS]
    return [_facts(cls) for cls in sorted(classes, key=lambda cls: cls.name)]


def text(methods: list[dict[str, Any]]) -> str:
    """Return the catalogue for a terminal.

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
        lines += [f"{'':<{width}}  {m[key]}" for key in ("reference", "code") if m[key]]
    lines.append(
        "\nforwards, backwards: of a batch of 64, at most. source: what prepare() must get first. answers: computed before "
        "or after this batch's update, or by a teacher."
    )
    return "\n".join(lines)


def _facts(cls: type[Adapter]) -> dict[str, Any]:
    return {
        "name": cls.name,
        "label": cls.label,
        "class": cls.__name__,
        "sentence": (inspect.getdoc(cls) or "").split("\n", 1)[0],
        "needs": list(cls.needs),
        "norm": list(norm_kinds(cls.needs)),
        "source": cls.source,
        "output": cls.output,
        "stochastic": cls.stochastic,
        "forwards": float(cls.cost[0]),
        "backwards": float(cls.cost[1]),
        "venue": cls.venue,
        "paper": cls.paper,
        "code": cls.code,
        "reference": f"{cls.paper}, {cls.venue}." if cls.paper else "",
    }
