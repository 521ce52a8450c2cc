r"""MTI-Net: task features at four scales that are propagated from coarse to fine, and exchanged between the tasks at each.

At every scale, from the coarsest on, features :math:`F_k` of each task are made from the backbone's map and what the coarser
scale propagates; the tasks then take from each other what a spatial attention lets through:

.. math:: F_k^o = F_k + \sum_{l \ne k} \sigma(W_{kl} F_l) \odot (W'_{kl} F_l)

Propagation weighs the tasks' features by a softmax over the tasks, mixes them into shared features, and adds these to each
task's through a gate of its own (squeeze and excitation). The distilled features of all scales are joined on the finest grid,
where each task has its head. Initial predictions at every scale are trained too (:meth:`Interaction.initial`).

Departures: the backbone is the ResNet of :class:`~testtime.models.multitask.PyramidEncoder`, whose latent z the scales are
taken from again, so that branches of test-time training read the same z as without (the paper has an HRNet, or an FPN of 256
channels); one convolution makes the features of a task, where the published code has two residual blocks.

Reference: Vandenhende, Georgoulis and Van Gool, MTI-Net: Multi-Scale Task Interaction Networks for Multi-Task Learning, ECCV
2020.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime.models.multitask import MultiTaskNet, PyramidEncoder
from testtime.tasks import Tasks

__all__ = ["Distillation", "Interaction", "Propagation", "mti_net"]

Maps = dict[str, Tensor]
FEATURES = 4
"""Channels of a task's features at every scale, as a multiple of the width: 256 for the public ResNets, as in an FPN."""


@final
class Distillation(nn.Module):
    """Exchange of features between tasks by spatial attention.

    Args:
        tasks: names of the tasks.
        channels: channels of every task's features.
    """

    def __init__(self, tasks: Iterable[str], channels: int) -> None:
        super().__init__()
        names = list(tasks)
        pairs = {task: [other for other in names if other != task] for task in names}

        def convolutions() -> nn.ModuleDict:
            return nn.ModuleDict(
                {
                    task: nn.ModuleDict({other: nn.Conv2d(channels, channels, 1) for other in others})
                    for task, others in pairs.items()
                }
            )

        self.attention, self.content = convolutions(), convolutions()

    def forward(self, features: Mapping[str, Tensor]) -> Maps:
        """Return the distilled features by task, of features (N, C, h, w) by task."""
        found = {}
        for task, own in features.items():
            attention: Any = self.attention[task]
            content: Any = self.content[task]
            taken = [attention[n](features[n]).sigmoid() * content[n](features[n]) for n in attention]
            found[task] = torch.stack([own, *taken]).sum(0)
        return found


@final
class Propagation(nn.Module):
    """What a coarser scale gives to the next: each task's features and, gated, what all tasks share.

    Args:
        tasks: names of the tasks.
        channels: channels of every task's features.
    """

    def __init__(self, tasks: Sequence[str], channels: int) -> None:
        super().__init__()
        every = channels * len(tasks)
        self.weigh = nn.Sequential(_mixed(every, channels, 1), nn.Conv2d(channels, every, 3, padding=1))
        self.share = _mixed(every, channels, 1)
        small = max(1, channels // 4)
        self.gates = nn.ModuleDict(
            {
                task: nn.Sequential(
                    nn.Linear(channels, small), nn.ReLU(), nn.Linear(small, channels), nn.Sigmoid()
                )
                for task in tasks
            }
        )

    def forward(self, features: Mapping[str, Tensor]) -> Maps:
        """Return the propagated features by task, at the same scale, of features (N, C, h, w) by task."""
        stacked = torch.stack([features[task] for task in self.gates], 1)  # (N, tasks, C, h, w)
        weights = self.weigh(stacked.flatten(1, 2)).view_as(stacked).softmax(1)
        shared = self.share((weights * stacked).flatten(1, 2))
        squeezed = shared.mean((2, 3))
        gates = {task: gate(squeezed)[..., None, None] for task, gate in self.gates.items()}
        return {task: features[task] + gates[task] * shared for task in gates}


@final
class Interaction(nn.Module):
    """The decoder of MTI-Net: from the latent z to features of each task, on the grid of z.

    Args:
        tasks: tasks by name.
        channels: channels of the stages that z consists of, the finest first; each stage is half as large as the one before.
        width: channels of a task's features at every scale.
    """

    def __init__(self, tasks: Tasks, channels: Sequence[int], width: int) -> None:
        super().__init__()
        self.channels, self.names = tuple(channels), list(tasks)
        scales = len(self.channels)
        self.lateral = nn.ModuleList(nn.Conv2d(own, width, 1) for own in self.channels)
        self.front = nn.ModuleList(
            nn.ModuleDict(
                {name: _mixed(width if scale == scales - 1 else 2 * width, width, 3) for name in tasks}
            )
            for scale in range(scales)
        )
        self.guess = nn.ModuleList(
            nn.ModuleDict({name: nn.Conv2d(width, task.channels, 1) for name, task in tasks.items()})
            for _ in range(scales)
        )
        self.propagate = nn.ModuleList(Propagation(self.names, width) for _ in range(scales - 1))
        self.distil = nn.ModuleList(Distillation(tasks, width) for _ in range(scales))

    def _fronts(self, z: Tensor) -> list[Maps]:
        """Features of each task before distillation, the finest scale first."""
        found: list[Maps] = []
        stages = z.split(self.channels, 1)
        for scale in reversed(range(len(stages))):
            height, width = (max(1, -(-side // 2**scale)) for side in z.shape[-2:])
            size = (height, width)
            stage = self.lateral[scale](F.adaptive_avg_pool2d(stages[scale], size))
            given: dict[str, list[Tensor]] = {name: [stage] for name in self.names}
            if found:
                for name, more in self.propagate[scale](found[0]).items():
                    given[name].append(F.interpolate(more, size, mode="bilinear"))
            front: Any = self.front[scale]
            found.insert(0, {name: front[name](torch.cat(parts, 1)) for name, parts in given.items()})
        return found

    def initial(self, z: Tensor) -> list[Maps]:
        """Return the initial predictions of every scale, the finest first, (N, channels of the task, h, w) by task."""
        guesses: Any = self.guess
        return [
            {name: guesses[scale][name](y) for name, y in maps.items()}
            for scale, maps in enumerate(self._fronts(z))
        ]

    def forward(self, z: Tensor) -> Maps:
        """Return the features of each task, those of all scales joined, (N, scales * width, h, w)."""
        scales = [distil(maps) for distil, maps in zip(self.distil, self._fronts(z), strict=True)]
        size = z.shape[-2:]
        return {
            name: torch.cat([F.interpolate(maps[name], size, mode="bilinear") for maps in scales], 1)
            for name in self.names
        }


def mti_net(tasks: Tasks, depth: int = 50, width: int = 64) -> MultiTaskNet:
    """Return MTI-Net on a ResNet.

    Args:
        tasks: tasks by name.
        depth, width: those of :class:`~testtime.models.multitask.PyramidEncoder`.

    >>> from testtime.tasks import Depth, Edges
    >>> net = mti_net({"depth": Depth(), "edge": Edges()}, 18, 4).eval()
    >>> {name: tuple(y.shape) for name, y in net(torch.rand(2, 3, 32, 32)).items()}
    {'depth': (2, 1, 32, 32), 'edge': (2, 1, 32, 32)}
    """
    encoder = PyramidEncoder(depth, width)
    decoder = Interaction(tasks, encoder.backbone.channels, FEATURES * width)
    joined = len(encoder.backbone.channels) * FEATURES * width
    heads = {
        name: nn.Sequential(_mixed(joined, joined, 1), nn.Conv2d(joined, task.channels, 1))
        for name, task in tasks.items()
    }
    return MultiTaskNet(encoder, heads, tasks, decoder)


def _mixed(inputs: int, outputs: int, side: int) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())
