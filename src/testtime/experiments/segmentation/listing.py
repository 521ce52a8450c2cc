"""The experiments of the family, for lists."""

from testtime.experiments.registry import EVERY, Listed, read_constants

__all__ = ["LISTED", "SHAPES"]

FACTS = read_constants(__package__ or "", "experiments")
HERE = "testtime.experiments.segmentation"
LOAD = {"experiments": f"{HERE}.experiment:Segmentation", "labels": f"{HERE}.labels:FrameLabels"}
LISTED = tuple(
    Listed(name, about["title"], load) for kind, load in LOAD.items() for name, about in FACTS[kind].items()
)
DRAWS = {"coverage": float, "ratio": float}
MEASURES = ("miou", "accuracy", "boundary_f", "ece", "before", "after", "forgetting")
SHAPES = {
    "about": {"columns": [str], "tolerance": (int, float)},
    "follow": {**dict.fromkeys(MEASURES, float), "frames": int, "updated": int, "seconds": float},
    "repeat_frames": {"accuracy": float, "samples": int, "labels": {EVERY: DRAWS}},
}
"""What the results hold, see :func:`testtime.experiments.registry.result_shapes`."""
