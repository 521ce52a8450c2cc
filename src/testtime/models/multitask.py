"""The dense multi-task network: one encoder and one head for each task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime.models.resnet import ResNet
from testtime.models.weights import read_weights, strip_prefixes
from testtime.tasks import Task, Tasks

__all__ = ["MultiTaskNet", "PyramidEncoder", "multitask_resnet"]


class PyramidEncoder(nn.Module):
    """A ResNet whose four stage outputs, brought to the grid of the first, are the latent z.

    Args:
        depth: 18, 34, 50, 101 or 152.
        width: channels of the first stage; the public checkpoints' is 64.

    Takes images (N, 3, H, W) in [0, 1] and returns (N, channels, H/4, W/4). The images are normalised here, with the
    ImageNet mean and deviation, so that source and target are treated alike.

    Source: S4T (Jeong et al.), section 4.1 and its code: bilinear, corners not aligned, concatenated.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, depth: int = 50, width: int = 64) -> None:
        super().__init__()
        self.backbone = ResNet(depth, 1, width)
        self.backbone.fc = nn.Identity()  # type: ignore[assignment]
        self.channels = sum(self.backbone.channels)
        for name, values in (("mean", (0.485, 0.456, 0.406)), ("std", (0.229, 0.224, 0.225))):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        first, *rest = self.backbone.stages((x - self.mean) / self.std)
        grid = first.shape[-2:]
        return torch.cat([first, *(F.interpolate(c, grid, mode="bilinear") for c in rest)], dim=1)

    def load_imagenet(self, path: str | Path) -> None:
        """Take the weights of a public ImageNet ResNet (torchvision's keys) but for its classifier.

        Raises:
            WeightsError: the file cannot be read.
            ValueError: the weights are of another depth or width; the message says what differs.
        """
        own = self.backbone.state_dict()
        state = {k: v for k, v in strip_prefixes(read_weights(path), own).items() if not k.startswith("fc.")}
        missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
        wrong = [k for k in state if k not in own or state[k].shape != own[k].shape]
        if missing or wrong:
            raise ValueError(
                f"{path} does not fit this encoder: {len(missing)} tensors are missing (first {missing[:3]}), "
                f"{len(wrong)} do not fit (first {wrong[:3]}); choose the depth and width it was trained with"
            )
        self.backbone.load_state_dict(state, strict=False)


class MultiTaskNet(nn.Module):
    """An encoder and one head for each task: the latent z becomes a dictionary of outputs at the image's size.

    Args:
        encoder: any module from images (N, 3, H, W) to z (N, C, h, w).
        heads: modules by task name, each from z to (N, channels of the task, h', w'); resized bilinearly to (H, W).
        tasks: tasks by name; the names must be those of the heads.
        decoder: module from z to features by task, which the heads then get instead of z; its method ``initial``, from z to
            a list of predictions by task, is trained beside the heads (:class:`testtime.models.mti_net.Interaction`).

    Raises:
        ValueError: the names differ.

    >>> from testtime.multitask import Depth, Edges
    >>> heads = {"depth": nn.Conv2d(8, 1, 1), "edge": nn.Conv2d(8, 1, 1)}
    >>> net = MultiTaskNet(nn.Conv2d(3, 8, 3, stride=2), heads, {"depth": Depth(), "edge": Edges()})
    >>> {name: tuple(y.shape) for name, y in net(torch.rand(2, 3, 16, 16)).items()}
    {'depth': (2, 1, 16, 16), 'edge': (2, 1, 16, 16)}
    """

    def __init__(
        self,
        encoder: nn.Module,
        heads: Mapping[str, nn.Module],
        tasks: Tasks,
        decoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if set(heads) != set(tasks):
            raise ValueError(
                f"heads and tasks are keyed by the same names; got {sorted(heads)} and {sorted(tasks)}"
            )
        self.encoder, self.decoder = encoder, decoder
        self.heads = nn.ModuleDict({name: heads[name] for name in tasks})
        self.tasks: dict[str, Task] = dict(tasks)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        z = self.encoder(x)
        features = dict.fromkeys(self.heads, z) if self.decoder is None else self.decoder(z)
        return {name: resized(head(features[name]), x.shape[-2:]) for name, head in self.heads.items()}


def resized(y: Tensor, size: Sequence[int]) -> Tensor:
    """A map (N, C, h, w) at another size, bilinear."""
    return y if tuple(y.shape[-2:]) == tuple(size) else F.interpolate(y, tuple(size), mode="bilinear")


def group_normalised(module: nn.Module, size: int = 8) -> nn.Module:
    """Replace the BatchNorm layers in a module by GroupNorm, in place.

    Args:
        module: module.
        size: channels of a group, at most.

    >>> group_normalised(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)))[1].num_groups
    2
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(
                module,
                name,
                nn.GroupNorm(child.num_features // math.gcd(child.num_features, size), child.num_features),
            )
        else:
            group_normalised(child, size)
    return module


def multitask_resnet(tasks: Tasks, depth: int = 50, width: int = 64) -> MultiTaskNet:
    """The network of the S4T paper: a ResNet whose stages are fused, and one 1x1 convolution for each task.

    Args:
        tasks: tasks by name.
        depth, width: those of :class:`PyramidEncoder`.

    >>> from testtime.multitask import Depth, Edges, Normals, Segmentation
    >>> tasks = {t.name: t for t in (Segmentation(tuple("abcdefg")), Depth(), Normals(), Edges())}
    >>> sum(p.numel() for p in multitask_resnet(tasks).parameters())  # the paper's 23.55 M
    23554124
    """
    encoder = PyramidEncoder(depth, width)
    heads = {name: nn.Conv2d(encoder.channels, task.channels, 1) for name, task in tasks.items()}
    return MultiTaskNet(encoder, heads, tasks)
