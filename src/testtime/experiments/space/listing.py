"""The experiments of the family "space", for lists."""

from types import NoneType
from typing import Any

from testtime.experiments.registry import EVERY, Listed, read_constants

__all__ = ["EXPERIMENTS", "LISTED", "PREFIX", "SHAPES"]

PREFIX = "space-"
"""Begin of the experiments' names."""
LOAD = f"{__package__}.experiment:SpaceExperiment"
EXPERIMENTS = read_constants(__package__, "experiments")
LISTED = tuple(
    Listed(PREFIX + name, facts["title"], LOAD, f"TST-MM, {facts['source']}" if "source" in facts else "")
    for name, facts in EXPERIMENTS.items()
)
NUMBER = (float, NoneType)
SEGMENTED = {"mIoU": NUMBER, "IoU": {EVERY: NUMBER}}
RECALLS = [f"{kind} R@{k}" for kind in ("depth", "picture", "chance") for k in (1, 5, 10)]
SHAPES: dict[str, dict[str, Any]] = {
    "about": {"preset": str, "precision": str},
    **{
        "segmentation": SEGMENTED,
        "teacher_segmentation": SEGMENTED,
        "retrieval": dict.fromkeys(RECALLS, NUMBER),
    },
    "decoding": {
        **dict.fromkeys(
            ("decoded mIoU", "token mIoU", "agreement", "depth error", "token depth error"), NUMBER
        ),
        "IoU": {EVERY: NUMBER},
    },
    "detection": {"AP": NUMBER, "AP50": NUMBER},
    "depth": dict.fromkeys(
        ("relative depth error", "relative depth error of a constant", "within 25 %"), NUMBER
    ),
    "captions": {"CIDEr-D": NUMBER, "scene graph F": NUMBER},
    "learning_on": {"mIoU before": NUMBER, "mIoU after": NUMBER},
    "pictures": {"light": str, "dark": str},
}
"""What the results hold, see :func:`testtime.experiments.registry.result_shapes`."""
