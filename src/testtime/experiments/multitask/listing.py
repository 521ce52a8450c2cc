"""The experiments of the family "multitask", for lists; the tables beside this module hold all that is constant."""

from testtime.experiments.registry import Listed, read_constants

__all__ = ["CONSTANTS", "LISTED", "PUBLISHED"]

CONSTANTS = read_constants(__package__, "experiments")
"""Presets, rows, experiments, columns, notes and leads: the tables of ``experiments.toml``."""
PUBLISHED = read_constants(__package__, "published")
"""The tables of the papers, rows by shift."""
LISTED = tuple(
    Listed(
        name, facts["title"], f"{__package__}.{facts.get('load', 'studies:Study')}", facts.get("source", "")
    )
    for name, facts in CONSTANTS["experiments"].items()
)
