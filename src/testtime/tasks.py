"""Tasks as objects, keyed by name: what a head puts out, what it is trained by, and how it is judged.

The losses are those of the multi-task literature as S4T uses them (NYUD and PASCAL-Context settings); labels follow
:class:`testtime.data.Sample`, and what a label ignores has no loss and no metric.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal, Protocol, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime import metrics
from testtime.labels import IGNORE

__all__ = [
    "Depth",
    "Edges",
    "Normals",
    "Reconstruction",
    "Segmentation",
    "Task",
    "Tasks",
    "class_logits",
    "tasks_of",
    "total_loss",
]


class Meter(Protocol):
    """What measures a task over many batches."""

    def update(self, output: Tensor, label: Tensor) -> None: ...

    def value(self) -> float: ...


@dataclass(frozen=True)
class Task(ABC):
    """One task of a dense multi-task model.

    Attributes:
        name: the key of its output and its label.
        weight: the weight of its loss in the sum over tasks.
        kind: kind of its output, for methods that treat classes and regressions differently.
        metric: metric of :meth:`meter`, with its unit.
        higher_is_better: the direction of the metric.
    """

    name: str
    weight: float = 1.0

    kind: ClassVar[Literal["classes", "regression", "binary"]]
    metric: ClassVar[str]
    higher_is_better: ClassVar[bool]

    @property
    @abstractmethod
    def channels(self) -> int:
        """How many channels the output has."""

    @abstractmethod
    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        """The supervised loss: a mean over the pixels whose label is known; zero where none is.

        Args:
            output: (N, channels, H, W), as the head puts it out.
            label: labels of a batch in the form of :class:`testtime.data.Sample`.
        """

    @abstractmethod
    def agreement(self, output: Tensor, target: Tensor) -> Tensor:
        """The same loss with another output (N, channels, H, W) as the label; no gradient flows into it."""

    @abstractmethod
    def meter(self) -> Meter:
        """A fresh meter of the headline metric: ``update(output, label)``, ``value()``."""


Tasks = Mapping[str, Task]
"""Tasks by name."""


def _known(label: Tensor) -> tuple[Tensor, Tensor]:
    """The label with zeros for what is not known (a NaN would reach the gradient), and where it is known."""
    known = label.isfinite()
    return torch.where(known, label, torch.zeros_like(label)), known


def _mean(values: Tensor, known: Tensor) -> Tensor:
    return (values * known).sum() / known.sum().clamp(min=1)


def _unit(y: Tensor) -> Tensor:
    """Unit vectors along the channels."""
    return y * (y.square().sum(1, keepdim=True) + 1e-12).rsqrt()


@final
@dataclass(frozen=True)
class Segmentation(Task):
    """Semantic segmentation: cross-entropy over the pixels whose class is known; mIoU.

    Args:
        classes: the names of the classes, in the order of the channels.

    >>> Segmentation(("wall", "floor")).channels
    2
    """

    classes: tuple[str, ...] = ()
    kind = "classes"
    metric, higher_is_better = "mIoU (%)", True

    def __init__(self, classes: tuple[str, ...], name: str = "semseg", weight: float = 1.0) -> None:
        object.__setattr__(self, "classes", tuple(classes))
        object.__setattr__(self, "name", name)
        object.__setattr__(self, "weight", weight)
        if len(self.classes) < 2:
            raise ValueError(f"a segmentation needs at least two classes, got {self.classes}")

    @property
    def channels(self) -> int:
        return len(self.classes)

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        total = F.cross_entropy(output, label, ignore_index=IGNORE, reduction="sum")
        return total / (label != IGNORE).sum().clamp(min=1)

    def agreement(self, output: Tensor, target: Tensor) -> Tensor:
        return -(target.detach().softmax(1) * output.log_softmax(1)).sum(1).mean()

    def meter(self) -> Meter:
        return metrics.MeanIoU(len(self.classes))


@final
@dataclass(frozen=True)
class Depth(Task):
    """Depth in metres: L1; RMSE, without any alignment unless asked for.

    Args:
        align: alignment of the RMSE: "none", "median", or "lsq", the released code's, which cannot exceed the label's
            deviation.
    """

    name: str = "depth"
    align: Literal["none", "median", "lsq"] = "none"
    kind = "regression"
    metric, higher_is_better = "RMSE (m)", False
    channels = 1

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        label, known = _known(label)
        return _mean((output - label).abs(), known)

    def agreement(self, output: Tensor, target: Tensor) -> Tensor:
        return (output - target.detach()).abs().mean()

    def meter(self) -> Meter:
        return metrics.RMSE(self.align)


@final
@dataclass(frozen=True)
class Normals(Task):
    """Surface normals: L1 between unit vectors, summed over their three components; the mean angle in degrees."""

    name: str = "normals"
    weight: float = 10.0
    kind = "regression"
    metric, higher_is_better = "mean angle (°)", False
    channels = 3

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        label, known = _known(label)
        return _mean((_unit(output) - label).abs().sum(1), known.all(1))

    def agreement(self, output: Tensor, target: Tensor) -> Tensor:
        return self.loss(output, _unit(target.detach()))

    def meter(self) -> Meter:
        return metrics.MeanAngle()


@final
@dataclass(frozen=True)
class Edges(Task):
    r"""Edges as logits: cross-entropy in which an edge weighs :math:`w`, the rest :math:`1 - w` (HED); average precision.

    Args:
        positive: w; the multi-task literature's 0.95.
    """

    name: str = "edge"
    weight: float = 50.0
    positive: float = 0.95
    kind = "binary"
    metric, higher_is_better = "AP (%)", True
    channels = 1

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        label, known = _known(label)
        ratio = torch.full((), self.positive / (1 - self.positive), dtype=output.dtype, device=output.device)
        losses = F.binary_cross_entropy_with_logits(
            output, label.to(output.dtype), pos_weight=ratio, reduction="none"
        )
        return (1 - self.positive) * _mean(losses, known)

    def agreement(self, output: Tensor, target: Tensor) -> Tensor:
        return self.loss(output, target.detach().sigmoid())

    def meter(self) -> Meter:
        return metrics.AveragePrecision()


@final
@dataclass(frozen=True)
class Reconstruction(Task):
    """The image itself as the label, as masked autoencoders have it: the mean squared error (S4T's table 2 tries it)."""

    name: str = "image"
    kind = "regression"
    metric, higher_is_better = "RMSE", False
    channels = 3

    def loss(self, output: Tensor, label: Tensor) -> Tensor:
        return F.mse_loss(output, label)

    def agreement(self, output: Tensor, target: Tensor) -> Tensor:
        return F.mse_loss(output, target.detach())

    def meter(self) -> Meter:
        return metrics.RMSE("none")


def tasks_of(model: nn.Module) -> dict[str, Task]:
    """The tasks that a model declares (an attribute ``tasks``, a mapping by name), or none: then it is a classifier."""
    for module in model.modules():
        tasks = getattr(module, "tasks", None)
        if isinstance(tasks, Mapping) and tasks and all(isinstance(t, Task) for t in tasks.values()):
            return dict(tasks)
    return {}


def class_logits(y: Tensor | Mapping[str, Tensor], tasks: Tasks) -> Tensor:
    """The logits over classes in an answer: a classifier's (N, C), or a multi-task model's segmentation (N, C, H, W).

    Raises:
        ValueError: none of the tasks has classes.
    """
    if isinstance(y, Tensor):
        return y
    found = [name for name in y if name in tasks and tasks[name].kind == "classes"]
    if not found:
        raise ValueError(
            f"this method needs logits over classes, and the model's outputs are {sorted(y)}, its declared tasks "
            f"{sorted(tasks)}; expected a Segmentation among them (MultiTaskNet(encoder, heads, tasks) declares them)"
        )
    return y[found[0]]


def total_loss(tasks: Tasks, outputs: Mapping[str, Tensor], labels: Mapping[str, Tensor]) -> Tensor:
    r"""The weighted sum of the task losses, :math:`\sum_i w_i L_i(y_i, \hat y_i)`; a task without a label has no part.

    Raises:
        ValueError: none of the tasks has a label.
    """
    losses = [t.weight * t.loss(outputs[name], labels[name]) for name, t in tasks.items() if name in labels]
    if not losses:
        raise ValueError(
            f"no label for any of the tasks {sorted(tasks)}; there are labels of {sorted(labels)}"
        )
    return torch.stack(losses).sum()
