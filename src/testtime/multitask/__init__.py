"""Multi-task models and their test-time training: tasks by name, heads on one encoder, branches, protocols."""

from testtime.models.assisted import Assisted, Branch
from testtime.models.multitask import MultiTaskNet, PyramidEncoder, multitask_resnet
from testtime.models.synchronizer import Synchronizer, SynchronizerOptions
from testtime.multitask.training import Recipe, load_trained, train
from testtime.tasks import (
    Depth,
    Edges,
    Normals,
    Reconstruction,
    Segmentation,
    Task,
    Tasks,
    tasks_of,
    total_loss,
)

__all__ = [
    "Assisted",
    "Branch",
    "Depth",
    "Edges",
    "MultiTaskNet",
    "Normals",
    "PyramidEncoder",
    "Recipe",
    "Reconstruction",
    "Segmentation",
    "Synchronizer",
    "SynchronizerOptions",
    "Task",
    "Tasks",
    "load_trained",
    "multitask_resnet",
    "tasks_of",
    "total_loss",
    "train",
]
