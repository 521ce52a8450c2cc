"""The experiments of the family "space", for lists."""

from testtime.experiments.registry import Listed, read_constants

__all__ = ["EXPERIMENTS", "LISTED", "PREFIX"]

PREFIX = "space-"
"""Begin of the experiments' names."""
LOAD = f"{__package__}.experiment:SpaceExperiment"
EXPERIMENTS = read_constants(__package__, "experiments")
LISTED = tuple(
    Listed(PREFIX + name, facts["title"], LOAD, f"TST-MM, {facts['source']}" if "source" in facts else "")
    for name, facts in EXPERIMENTS.items()
)
