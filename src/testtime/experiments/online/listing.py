"""The experiments of the family "online" as they stand in its TOML files, and their list; without torch."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from types import NoneType
from typing import Any

from testtime.experiments.registry import EVERY, Listed

__all__ = ["FEW_LABELS", "LISTED", "SHAPES", "STREAM", "Figures", "entries", "published", "read", "rows"]

Figures = tuple[float | None, ...]  # accuracy, AUROC, H-score, in percent
STREAM = (
    *("order", "corruptions", "severity", "rounds", "slow_limit"),
    *("target", "pace", "speed", "reset", "returns"),
)
"""The settings of a stream; what an entry does not have is not set."""
COLUMN = {"open_set": None, "batch_size": 200, "ratio": 1.0, "note": ""}


@cache
def read(name: str) -> dict[str, Any]:
    """Return the content of a TOML file of this package."""
    return tomllib.loads((resources.files(__package__) / name).read_text(encoding="utf-8"))


@cache
def entries() -> dict[str, dict[str, Any]]:
    """Return the experiments by name, each with the defaults, and with what it takes from the one that it is like."""
    tables = read("experiments.toml")
    found: dict[str, dict[str, Any]] = {}
    for name, entry in tables["experiments"].items():
        like = found.get(entry.get("like", ""), {**tables["defaults"], "limit": None})
        kept = {k: v for k, v in like.items() if not (k in ("only", "without") and "rows" in entry)}
        whole = {**kept, **{k: v for k, v in entry.items() if k != "like"}}
        found[name] = {**whole, "columns": [{**COLUMN, **column} for column in whole["columns"]]}
    return found


def rows(entry: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the rows of an experiment by label: method, arguments, and role and reset_every where they differ."""
    tables, found = read("experiments.toml"), {}
    special = tables["methods"].get(entry["closed"], {})
    for label, row in (pair for group in entry["rows"] for pair in tables["rows"][group].items()):
        if label not in entry.get("without", ()) and label in entry.get("only", (label,)):
            facts = dict(row) if isinstance(row, Mapping) else {"method": row}
            own = {key: facts.pop(key) for key in ("method", "role", "reset_every") if key in facts}
            found[label] = {**own, "arguments": {**special.get(own["method"], {}), **facts}}
    return found


def published(name: str, labels: Sequence[str], columns: Sequence[str]) -> dict[str, dict[str, Figures]]:
    """Return published figures of some rows and columns, by label and name.

    Args:
        name: name of the table in ``published.toml``; empty for none.
        labels, columns: rows and columns that are wanted.
    """
    found: dict[str, dict[str, Figures]] = {}
    table = read("published.toml").get(name, {"columns": [], "figures": ""})
    count = 3 * len(table["columns"])
    for line in table["figures"].strip().splitlines():
        words = line.split()
        values = [None if word == "-" else float(word) for word in words[-count:]]
        if (label := " ".join(words[:-count])) in labels:
            triples = {c: tuple(values[3 * i : 3 * i + 3]) for i, c in enumerate(table["columns"])}
            found[label] = {c: triple for c, triple in triples.items() if c in columns}
    return found


ONLINE = "testtime.experiments.online.experiment:online"
FEW = "testtime.experiments.online.few_labels:FewLabels"
SHADOW = "Candidates in shadow on a stream without labels, own or of an experiment: which one to take"
FEW_LABELS: dict[str, dict[str, str]] = read("experiments.toml")["few-labels"]
"""Experiments on estimates from few labels by name: title, and the experiment whose stream they take."""
LISTED = (
    *(Listed(name, entry["title"], ONLINE, entry["source"]) for name, entry in entries().items()),
    *(Listed(name, entry["title"], FEW) for name, entry in FEW_LABELS.items()),
    Listed("no-labels", SHADOW, "testtime.experiments.online.no_labels:NO_LABELS"),
)
NUMBER = (float, NoneType)
MEASURES = ("accuracy", "error", "auroc", "h_score")
LINE = ("agreement", "confidence", "disagreement", "spread", "changed", "milliseconds")
SHAPES: dict[str, Any] = {
    "row": {"method": str, "arguments?": dict},
    "adapt_online": {
        "average": {**dict.fromkeys(MEASURES, NUMBER), EVERY: NUMBER},
        "domains": [{"domain": str, **dict.fromkeys(MEASURES, NUMBER)}],
        "time": {**dict.fromkeys(("accuracy", "auroc", "h_score"), list), "visit": [int], EVERY: [NUMBER]},
        "filters": {"all": {EVERY: NUMBER}, "time": {EVERY: [NUMBER]}},
        "forgetting": {"before": NUMBER, "after": NUMBER, EVERY: NUMBER},
        "cost": {"declared": [float], **dict.fromkeys(("forwards", "backwards", "ms"), NUMBER)},
        "steps?": {**dict.fromkeys(("batches", "updated", "failed"), int), "not_finite": [str]},
        "images": int,
    },
    "measure_baseline": {
        "baselines": [
            {"ms": {EVERY: float}, "load": NUMBER, "processor": str, "threads": int, "precision": str}
        ]
    },
    "repeat_estimates": {"accuracy": float, "samples": int, "labels": {EVERY: {"coverage": float}}},
    "group_images": {"groups": [int]},
    "run_in_shadow": {
        "diagnostics": [{"predicted": [int], "classes": int, **dict.fromkeys(LINE, NUMBER), "updated": bool}],
        "accuracy": NUMBER,
    },
}
"""What the results hold, see :func:`testtime.experiments.registry.result_shapes`."""
