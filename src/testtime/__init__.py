"""testtime keeps a deployed PyTorch model right while its world changes, without labels."""

from typing import TYPE_CHECKING

from testtime import moved
from testtime.lazy import lazily

if TYPE_CHECKING:
    from testtime.adapter import Adapter, state_hash
    from testtime.build import adapt, list_methods
    from testtime.parts.optimizers import adam, sgd
    from testtime.prediction import Prediction, TaskPredictions, energy
    from testtime.saving import load, save
    from testtime.wrap import (
        Episodic,
        Guarded,
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
    "Guarded",
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

__getattr__, __dir__ = lazily(
    __name__,
    {
        "adapter": "Adapter state_hash",
        "build": "adapt list_methods",
        "parts.optimizers": "adam sgd",
        "prediction": "Prediction TaskPredictions energy",
        "saving": "load save",
        "wrap": "Episodic Guarded LabelShift PriorCorrected Repeat ResetEvery TimeConstrained Window",
    },
)

moved.install()
