"""Networks with the branches of test-time training, from names and numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from testtime.errors import unknown_name
from testtime.models.assisted import Assisted, Branch
from testtime.models.mti_net import mti_net
from testtime.models.multitask import MultiTaskNet, group_normalised, multitask_resnet
from testtime.models.synchronizer import Synchronizer
from testtime.moved import current_arguments
from testtime.source.clust3 import Projectors
from testtime.source.nc_ttt import NoiseDiscriminator
from testtime.source.ttt import RotationBranch
from testtime.source.ttt_plus_plus import ContrastiveBranch
from testtime.tasks import Tasks

__all__ = ["ARCHITECTURES", "BRANCHES", "build"]


def _synchronizer(tasks: Tasks, channels: int, only: str | None = None, **arguments: Any) -> Branch:
    mine = tasks if only is None else {only: tasks[only]}
    return Synchronizer(mine, channels, **current_arguments(Synchronizer, arguments, saved=True))


BRANCHES: dict[str, Callable[..., Branch]] = {
    "synchronizer": _synchronizer,
    "rotation": lambda tasks, channels, **arguments: RotationBranch(channels, **arguments),
    "contrastive": lambda tasks, channels, **arguments: ContrastiveBranch(channels, **arguments),
    "projectors": lambda tasks, channels, **arguments: Projectors([channels], **arguments),
    "noise discriminator": lambda tasks, channels, **arguments: NoiseDiscriminator(channels, **arguments),
}
"""Functions of tasks, channels of the encoder and arguments, by the name of the branch."""


ARCHITECTURES: dict[str, Callable[[Tasks, int, int], MultiTaskNet]] = {
    "resnet": multitask_resnet,
    "mti-net": mti_net,
}
"""Functions of tasks, depth and width of the ResNet, by the name of the architecture."""


def build(tasks: Tasks, network: Mapping[str, Any], seed: int, imagenet: str | None = None) -> nn.Module:
    """Return a network for dense tasks with its branch, not trained.

    Args:
        tasks: tasks by name.
        network: "depth" and "width" of the ResNet; "branch" (a name of :data:`BRANCHES`, or None) and "arguments" of it, for
            the synchronizer also "only": the one task that it predicts. Where it has them, "architecture" (of
            :data:`ARCHITECTURES`, "resnet" by default), "norm" ("batch" by default, or "group") and "tasks" (all by default).
        seed: random seed of the weights.
        imagenet: file of public ImageNet weights that the encoder starts from.

    Raises:
        ValueError: there is no such branch or architecture.

    >>> from testtime.tasks import Depth, Edges
    >>> tasks = {"depth": Depth(), "edge": Edges()}
    >>> build(tasks, {"depth": 18, "width": 4, "branch": "rotation", "arguments": {}}, seed=0).branch.layers
    ('encoder',)
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        tasks = {name: tasks[name] for name in network.get("tasks", tasks)}
        name = network.get("architecture", "resnet")
        if name not in ARCHITECTURES:
            raise unknown_name("architecture", name, ARCHITECTURES)
        net = ARCHITECTURES[name](tasks, network["depth"], network["width"])
        if network.get("norm") == "group":
            group_normalised(net)
        if imagenet is not None:
            net.encoder.load_imagenet(imagenet)  # type: ignore[operator]
        if network["branch"] is None:
            return net
        if network["branch"] not in BRANCHES:
            raise unknown_name("branch", network["branch"], BRANCHES)
        branch = BRANCHES[network["branch"]](tasks, net.encoder.channels, **network["arguments"])
        return Assisted(net, branch)
