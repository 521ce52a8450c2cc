"""The experiments of the family "online" as they stand in its TOML files, and their list; without torch."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from testtime.experiments.registry import Listed

__all__ = ["LISTED", "Figures", "entries", "published", "read", "rows"]

Figures = tuple[float | None, float | None, float | None]  # accuracy, AUROC, H-score, in percent


@cache
def read(name: str) -> dict[str, Any]:
    """Return the content of a TOML file of this package."""
    return tomllib.loads((resources.files(__package__) / name).read_text(encoding="utf-8"))


@cache
def entries() -> dict[str, dict[str, Any]]:
    """Return the experiments by name, each with what it takes from the one that it is like."""
    found: dict[str, dict[str, Any]] = {}
    for name, entry in read("experiments.toml")["experiments"].items():
        like = found.get(entry.get("like", ""), {})
        kept = {k: v for k, v in like.items() if not (k in ("only", "without") and "rows" in entry)}
        found[name] = {**kept, **{k: v for k, v in entry.items() if k != "like"}}
    return found


def rows(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows of an experiment by label: ``method``, ``arguments``, and ``role`` and ``reset_every`` where they differ.

    Args:
        entry: the experiment, from :func:`entries`.
    """
    tables = read("experiments.toml")
    special = tables["methods"].get(entry["closed"], {})
    found = {}
    for label, row in (
        (label, row) for group in entry["rows"] for label, row in tables["rows"][group].items()
    ):
        if label in entry.get("without", ()) or label not in entry.get("only", (label,)):
            continue
        arguments = dict(row) if isinstance(row, Mapping) else {"method": row}
        facts = {key: arguments.pop(key) for key in ("method", "role", "reset_every") if key in arguments}
        found[label] = {**facts, "arguments": {**special.get(facts["method"], {}), **arguments}}
    return found


def published(name: str, labels: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, Figures]]:
    """Return published figures by row label and column name.

    Args:
        name: name of the table in ``published.toml``; empty for none.
        labels: rows that are wanted.
        columns: columns that are wanted.
    """
    if not name:
        return {}
    table, found = read("published.toml")[name], {}
    count = 3 * len(table["columns"])
    for line in table["figures"].strip().splitlines():
        words = line.split()
        label = " ".join(words[:-count])
        values = [None if word == "-" else float(word) for word in words[-count:]]
        figures = {c: (*values[3 * i : 3 * i + 3],) for i, c in enumerate(table["columns"]) if c in columns}
        if label in labels:
            found[label] = figures
    return found


LISTED = (
    *(
        Listed(name, entry["title"], "testtime.experiments.online.experiment:online", entry.get("source", ""))
        for name, entry in entries().items()
    ),
    Listed(
        "no-labels",
        "Candidates in shadow on a stream without labels, one's own images or that of an experiment: which one to take",
        "testtime.experiments.online.no_labels:NO_LABELS",
    ),
)
