"""testtime keeps a deployed PyTorch model right while its world changes, without labels."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from testtime import moved

if TYPE_CHECKING:
    from testtime.adapter import Adapter, state_hash
    from testtime.parts.optimizers import adam, sgd
    from testtime.prediction import Prediction, TaskPredictions, energy
    from testtime.saving import adapt, list_methods, load, save
    from testtime.wrap import (
        Episodic,
        LabelShift,
        PriorCorrected,
        Repeat,
        ResetEvery,
        TimeConstrained,
        Window,
    )

__version__ = "0.1.0"

__all__ = [
    "Adapter",
    "Episodic",
    "LabelShift",
    "Prediction",
    "PriorCorrected",
    "Repeat",
    "ResetEvery",
    "TaskPredictions",
    "TimeConstrained",
    "Window",
    "adam",
    "adapt",
    "energy",
    "list_methods",
    "load",
    "save",
    "sgd",
    "state_hash",
]

_HOMES = {
    "testtime.adapter": ("Adapter", "state_hash"),
    "testtime.parts.optimizers": ("adam", "sgd"),
    "testtime.prediction": ("Prediction", "TaskPredictions", "energy"),
    "testtime.saving": ("adapt", "list_methods", "load", "save"),
    "testtime.wrap": (
        "Episodic",
        "LabelShift",
        "PriorCorrected",
        "Repeat",
        "ResetEvery",
        "TimeConstrained",
        "Window",
    ),
}


def __getattr__(name: str) -> Any:
    """Names are fetched when they are first used, so that ``testtime --help`` does not wait for torch."""
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'testtime' has no attribute {name!r}")


moved.install()
