"""The experiments of the family "space", for lists."""

import tomllib
from importlib import resources

from testtime.experiments.registry import Listed

__all__ = ["LISTED", "PREFIX"]

PREFIX = "space-"
"""Begin of the experiments' names."""

LISTED = tuple(
    Listed(
        PREFIX + name,
        facts["title"],
        f"{__package__}.experiment:SpaceExperiment",
        f"TST-MM, {facts['source']}" if "source" in facts else "",
    )
    for name, facts in tomllib.loads(
        (resources.files(__package__) / "experiments.toml").read_text(encoding="utf-8")
    ).items()
)
