"""What RMT and SANTA hold of the source, class prototypes and images to replay, and their projection."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.intake.sharing import AtLeastFloat32, Stateful
from testtime.parts import generator

__all__ = ["Projector", "SourceReplay", "projector"]


@final
class SourceReplay(Stateful):
    """What RMT holds of its source; empty until ``learn`` and ``hold``.

    Attributes:
        prototypes: (C, D) mean feature of each class.
        met: (C,) number of features; a class of none has no prototype.
        images: (M, ...) to replay.
        label: (M,).
        batch: (M,) number of the batch that each image to replay came in.
    """

    learned = True
    prototypes: Tensor
    met: Tensor
    images: Tensor
    label: Tensor
    batch: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("prototypes", torch.empty(0))
        self.register_buffer("met", torch.empty(0))
        self.register_buffer("images", torch.empty(0))
        self.register_buffer("label", torch.empty(0, dtype=torch.int64))
        self.register_buffer("batch", torch.empty(0, dtype=torch.int64))

    def learn(self, label: Tensor, classes: int, features: Tensor) -> None:
        """Take the labels (M,) and features (M, D) of the source for prototypes of C classes."""
        ours = F.one_hot(label, classes).to(features)
        self.met = ours.sum(dim=0)
        self.prototypes = ours.T @ features / self.met.clamp_min(1)[:, None]

    def hold(self, images: Sequence[Tensor], label: Tensor, kept: Tensor) -> None:
        """Hold the images with the indices ``kept``, of batches with labels (M,), to replay them."""
        batch = torch.arange(len(images)).repeat_interleave(torch.tensor([len(x) for x in images]))
        kept = kept.to(label.device)
        self.images, self.label = torch.cat(list(images))[kept], label[kept]
        self.batch = batch.to(label.device)[kept]

    def nearest(self, features: Tensor) -> Tensor:
        """The prototype (N, D) nearest by the cosine to each feature (N, D)."""
        prototypes = self.prototypes.to(features.dtype)
        likeness = F.normalize(features, dim=1) @ F.normalize(prototypes, dim=1).T
        return prototypes[likeness.masked_fill(self.met == 0, -torch.inf).argmax(dim=1)]


class Projector(AtLeastFloat32, nn.Sequential):
    """Layers on the features, at least in float32."""


def projector(wide: int, outputs: int | None, seed: int) -> nn.Module:
    """Two linear layers with weights of the seed."""
    if outputs is None:
        return nn.Identity()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator(seed, 0, "projector").initial_seed())
        return Projector(nn.Linear(wide, outputs), nn.ReLU(), nn.Linear(outputs, outputs))
