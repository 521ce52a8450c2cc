"""The experiments of the family "multitask", for lists; the tables beside this module hold all that is constant."""

import tomllib
from importlib import resources
from typing import Any

from testtime.experiments.registry import Listed

__all__ = ["LISTED", "read_constants"]


def read_constants(name: str) -> dict[str, Any]:
    """Return "experiments" or "published": the tables of the TOML file of that name."""
    return tomllib.loads((resources.files(__package__) / f"{name}.toml").read_text(encoding="utf-8"))


LISTED = tuple(
    Listed(
        name,
        facts["title"],
        f"{__package__}.analyses:{facts['load']}" if "load" in facts else f"{__package__}.studies:study",
        facts.get("source", ""),
    )
    for name, facts in read_constants("experiments")["experiments"].items()
)
