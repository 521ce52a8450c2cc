"""Multi-task models and their test-time training: tasks by name, heads on one encoder, branches, protocols."""

from testtime.multitask.network import Assisted, Branch, MultiTaskNet, PyramidEncoder, multitask_resnet
from testtime.multitask.synchronizer import Synchronizer
from testtime.multitask.tasks import (
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
from testtime.multitask.training import Recipe, load_trained, train

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
    "Task",
    "Tasks",
    "load_trained",
    "multitask_resnet",
    "tasks_of",
    "total_loss",
    "train",
]
