"""The experiments of the family, for lists."""

from testtime.experiments.registry import EVERY, Listed, read_constants

__all__ = ["LISTED", "SHAPES"]

TITLES = read_constants(__package__ or "", "experiments")["experiments"]
LOAD = "testtime.experiments.local_tokens.experiment:LocalTokens"
LISTED = tuple(Listed(name, about["title"], LOAD) for name, about in TITLES.items())
ANOMALIES = {
    **dict.fromkeys(("image", "peak", "pixel", "pro", "f1"), float),
    "by": {EVERY: float},
    "images": int,
}
WALKS = {**dict.fromkeys(("map_30", "map_50", "map_70", "map", "frame_f", "classes"), float), "videos": int}
MASKS = {**dict.fromkeys(("iou", "half", "hits"), float), "images": int}
SHAPES = {"score_anomalies": ANOMALIES, "localise": WALKS, "segment_words": MASKS, "about": {"score": str}}
"""What the results hold, see :func:`testtime.experiments.registry.result_shapes`."""
