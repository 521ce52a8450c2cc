"""The experiments of the family "multitask", for lists; the tables beside this module hold all that is constant."""

from types import NoneType

from testtime.experiments.registry import EVERY, Listed, read_constants

__all__ = ["CONSTANTS", "LISTED", "PUBLISHED", "SHAPES"]

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
NUMBER = (float, NoneType)
TASKS = ("semseg", "depth", "normals", "edge")
SHAPES = {
    "row": {"method": (str, NoneType), "network": dict, "rates": [float]},
    "about": {"preset": str, "protocol": {"steps": int}},
    "adapt": {
        **{"steps": [int], "values": {EVERY: [NUMBER]}},
        **{"higher_is_better": {EVERY: bool}, "parameters": float, "seconds": float},
    },
    "choose_rate": {"rate": float, "tried": {EVERY: NUMBER}},
    "draw": {"sheets": [dict.fromkeys(("caption", "light", "dark"), str)]},
    "measure_affinity": {"affinity": [[NUMBER]]},
    "measure_direction": {"cosines": dict.fromkeys((*TASKS, "all"), NUMBER)},
    "measure_gradients": {
        "pulls": {EVERY: {"cosines": {EVERY: NUMBER}, "shares": {EVERY: NUMBER}}},
        "qualities": {EVERY: {EVERY: NUMBER}},
    },
    "measure_masked_loss": {"losses": {EVERY: dict.fromkeys(TASKS, NUMBER)}},
    "time_steps": {EVERY: {"parameters": float, "times_a_prediction": NUMBER}},
}
"""What the results hold, see :func:`testtime.experiments.registry.result_shapes`."""
