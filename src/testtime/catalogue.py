"""What every method needs and does, read from the facts that its class declares, in the text of its file: without torch."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from testtime import methods
from testtime.methods import METHODS
from testtime.plugins import plugins

__all__ = ["catalogue", "read_facts", "text"]

PACKAGE = Path(__file__).parent
FACTS = ("name", "label", "needs", "source", "output", "stochastic", "venue", "paper", "code")


def catalogue() -> list[dict[str, Any]]:
    """Return the methods in alphabetical order of their names, then those of other packages.

    Returns:
        for each: ``name`` (what :func:`testtime.adapt` takes), ``label``, ``class``, ``sentence``, ``needs``, ``norm`` (kinds
        of normalisation layers that it works with), ``source``, ``output``, ``stochastic``, ``forwards`` and ``backwards`` of
        a batch, ``venue``, ``paper``, ``code`` and ``reference``: :class:`testtime.facts.Facts` explains them. Facts that
        depend on arguments are those of the defaults. Of a method of another package ``name``, ``class`` (its import path) and
        ``package``, and the other facts where they can be read.

    >>> next(m["reference"] for m in catalogue() if m["name"] == "cotta")
    'Wang, Fink, Van Gool and Dai, Continual Test-Time Domain Adaptation, CVPR 2022.'
    """
    own = [read_facts(_file(entry.module), cls) for cls, entry in METHODS.items()]
    found = sorted((facts for facts in own if facts), key=lambda facts: str(facts["name"]))
    return [*found, *(_of_other(name, point) for name, point in plugins("testtime.methods").items())]


def read_facts(path: Path, name: str) -> dict[str, Any] | None:
    """Return the facts that a class declares in the text of a file, with the defaults of those that it does not declare.

    Args:
        path: file of Python code.
        name: name of the class.

    Returns:
        the facts of :func:`catalogue`; None if there is no such class, it inherits from another one than ``Adapter``, or a
        fact is no literal.
    """
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = (node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    node = next(classes, None)
    if node is None or [ast.unparse(base).rpartition(".")[2] for base in node.bases] != ["Adapter"]:
        return None
    defaults, kinds, only = _defaults()
    label = {"label": name, "name": name.lower()}
    try:
        declared = _literals(node.body, (*FACTS, "cost"))
    except ValueError:
        return None
    if "label" in declared:
        label["name"] = declared["label"].lower()
    facts = {**defaults, **label, **declared}
    forwards, backwards = facts["cost"]
    return {
        **{key: list(value) if isinstance(value := facts[key], tuple) else value for key in FACTS},
        "class": name,
        "sentence": (ast.get_docstring(node) or "").split("\n", 1)[0],
        "norm": [kind for need, kind in only.items() if need in facts["needs"]] or list(kinds),
        "forwards": float(forwards),
        "backwards": float(backwards),
        "reference": f"{facts['paper']}, {facts['venue']}." if facts["paper"] else "",
    }


def text(methods: list[dict[str, Any]]) -> str:
    """Return the catalogue for a terminal.

    Args:
        methods: result of :func:`catalogue`.
    """
    width = max(len(m["name"]) for m in methods)
    lines = [f"{'method':<{width}}  forwards  backwards  source      answers  random  norm layers"]
    for m in methods:
        if "forwards" in m:
            lines.append(
                f"{m['name']:<{width}}  {m['forwards']:>8.3g}  {m['backwards']:>9.3g}  {m['source']:<10}  "
                f"{m['output']:<7}  {'yes' if m['stochastic'] else 'no':<6}  {', '.join(m['norm'])}"
            )
            lines.append(f"{'':<{width}}  {m['sentence']}")
        if "package" in m:
            lines.append(f"{m['name'] * ('forwards' not in m):<{width}}  {m['class']}, of {m['package']}")
        lines += [f"{'':<{width}}  {m[key]}" for key in ("reference", "code") if m.get(key)]
    lines.append(
        "\nforwards, backwards: of a batch of 64, at most. source: what prepare() must get first. answers: computed before "
        "or after this batch's update, or by a teacher."
    )
    return "\n".join(lines)


def _file(module: str) -> Path:
    """The file of a module of methods, or of the package where its full name is given."""
    full = module.removeprefix("testtime.")
    place = Path(methods.__file__).parent if full == module else PACKAGE
    return place.joinpath(*full.split(".")).with_suffix(".py")


def _defaults() -> tuple[dict[str, Any], tuple[str, ...], dict[str, str]]:
    """The defaults of the facts, the kinds of normalisation layers, and the needs that only one of them meets."""
    tree = ast.parse((PACKAGE / "facts.py").read_text(encoding="utf-8"))
    node = next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "Facts")
    kinds = _literals(tree.body, ("NORM_KINDS", "ONE_KIND"))
    return _literals(node.body, (*FACTS, "cost")), kinds["NORM_KINDS"], kinds["ONE_KIND"]


def _literals(body: Sequence[ast.stmt], names: Sequence[str]) -> dict[str, Any]:
    """The values of some names that statements assign.

    Raises:
        ValueError: a value is no literal.
    """
    found = {}
    for statement in body:
        targets = (
            statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
        )
        value = getattr(statement, "value", None)
        for target in targets:
            several = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            pairs = zip(target.elts, value.elts, strict=True) if several else [(target, value)]  # type: ignore[union-attr]
            for one, given in pairs:
                if isinstance(one, ast.Name) and one.id in names and given is not None:
                    found[one.id] = ast.literal_eval(given)
    return found


def _of_other(name: str, point: EntryPoint) -> dict[str, Any]:
    """A method of another package, which is not imported."""
    top, *rest = point.module.split(".")
    spec = find_spec(top)
    facts: dict[str, Any] = {}
    if spec is not None and spec.origin is not None:
        file = Path(spec.origin)
        if rest:
            below = file.parent.joinpath(*rest)
            file = below.with_suffix(".py") if below.with_suffix(".py").is_file() else below / "__init__.py"
        facts = (read_facts(file, point.attr) if file.is_file() else None) or {}
    package = "" if point.dist is None else f"{point.dist.name} {point.dist.version}"
    return {**facts, "name": name, "class": point.value, "package": package or top}
