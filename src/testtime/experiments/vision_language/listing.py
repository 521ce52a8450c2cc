"""The experiments of the family, for lists."""

from testtime.experiments.registry import Listed, read_constants

__all__ = ["LISTED", "SHAPES"]

TITLES = read_constants(__package__ or "", "experiments")["experiments"]
LOAD = "testtime.experiments.vision_language.experiment:VisionLanguage"
LISTED = tuple(Listed(name, about["title"], LOAD) for name, about in TITLES.items())
SHAPES = {
    "about": {"domains": [str], "images": int, "views": int},
    "classify": {"accuracy": float, "ece": float, "images": int, "forwards": float, "texts": float},
}
"""What the results hold, see :func:`testtime.experiments.registry.result_shapes`."""
