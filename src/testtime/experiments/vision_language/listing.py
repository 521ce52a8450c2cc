"""The experiments of the family, for lists."""

from testtime.experiments.registry import Listed, read_constants

__all__ = ["LISTED", "SHAPES"]

TITLES = read_constants(__package__ or "", "experiments")["experiments"]
FOLDER = "testtime.experiments.vision_language"
LISTED = (
    *(Listed(name, about["title"], f"{FOLDER}.experiment:VisionLanguage") for name, about in TITLES.items()),
    Listed(
        "vision-language-retrieval",
        "Captions by images and images by captions, each with one right answer",
        f"{FOLDER}.retrieval:RETRIEVAL",
    ),
)
SHAPES = {
    "about": {"domains": [str], "images": int},
    "classify": {"accuracy": float, "ece": float, "images": int, "forwards": float, "texts": float},
    "make_pairs": {"captions": [str]},
    "retrieve": {"images": {str: float}, "texts": {str: float}, "pairs": int},
}
"""What the results hold, see :func:`testtime.experiments.registry.result_shapes`."""
