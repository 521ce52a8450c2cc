"""The experiments of the family, for lists."""

from testtime.experiments.registry import Listed, read_constants

__all__ = ["LISTED", "SHAPES"]

TITLES = read_constants(__package__ or "", "experiments")["experiments"]
LOAD = "testtime.experiments.segmentation.experiment:Segmentation"
LISTED = tuple(Listed(name, about["title"], LOAD) for name, about in TITLES.items())
MEASURES = ("miou", "accuracy", "boundary_f", "ece", "before", "after", "forgetting")
SHAPES = {
    "about": {"columns": [str], "tolerance": (int, float)},
    "follow": {**dict.fromkeys(MEASURES, float), "frames": int, "updated": int, "seconds": float},
}
"""What the results hold, see :func:`testtime.experiments.registry.result_shapes`."""
