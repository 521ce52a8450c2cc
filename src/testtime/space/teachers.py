"""Pseudo-labellers of the embedded setting: one small network, trained with labels on *other* houses, asked about this one.

The paper asks networks of the Internet (CLIP, ImageBind, SAM, ViTDet, Mask2Former); any callable does, see
:class:`~testtime.space.frames.SpaceFrames`. What they know of other places is distilled on pictures of the test space alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn

from testtime.data.dense import DenseSet
from testtime.errors import missing_extra
from testtime.multitask import Recipe, Segmentation, multitask_resnet, train
from testtime.space.frames import PseudoLabeller
from testtime.space.modalities import OBJECT_EDGES, Modality, boxes, classes, features
from testtime.space.sequences import Box, BoxVocabulary

__all__ = ["Teacher", "borders", "train_teacher"]

STRUCTURE = ("wall", "floor", "ceiling")
"""Classes whose regions are no things, and get no box."""


@final
class Teacher:
    """A segmentation network as four modalities: classes, object edges, features, boxes.

    Args:
        network: from pictures (N, 3, H, W) to {"semseg": logits}, with an ``encoder`` that gives its features.
        names: of the classes.
        smallest: share of the picture that a box covers at least.
        bins: of the boxes' coordinates.

    Attributes:
        modalities: by name: "classes", "object_edge", "features", "boxes".
        vocabulary: of the boxes.
    """

    def __init__(
        self, network: nn.Module, names: Sequence[str], smallest: float = 0.01, bins: int = 32
    ) -> None:
        self.network, self.names, self.smallest = network.eval().requires_grad_(False), tuple(names), smallest
        self.vocabulary = BoxVocabulary([n for n in names if n not in STRUCTURE], bins, sentinels=40)
        self.modalities: Mapping[str, Modality] = {
            "classes": classes("classes", len(self.names)),
            "object_edge": OBJECT_EDGES,
            "features": features("features", self.network.encoder.channels),  # type: ignore[arg-type, union-attr]
            "boxes": boxes("boxes", len(self.vocabulary)),
        }

    @property
    def pseudo(self) -> Mapping[str, PseudoLabeller]:
        """By the name of the modality, what :class:`~testtime.space.frames.SpaceFrames` asks."""
        return {
            "classes": self.classes,
            "object_edge": lambda x: borders(self.classes(x)),
            "features": self.features,
            "boxes": self.boxes,
        }

    @torch.no_grad()
    def logits(self, pictures: Tensor) -> Tensor:
        """The logits of every pixel, (N, C, H, W)."""
        return self.network(pictures)["semseg"]

    def classes(self, pictures: Tensor) -> Tensor:
        """The class of every pixel, (N, H, W) int64."""
        return self.logits(pictures).argmax(1)

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """The encoder's features, (N, C, h, w)."""
        return self.network.encoder(pictures)  # type: ignore[operator]

    def boxes(self, pictures: Tensor) -> list[list[Box]]:
        """A box around every connected region of a class of things; its score is the mean probability inside."""
        try:
            import cv2
        except ImportError as error:
            raise missing_extra("opencv-python-headless", "scenes") from error
        chances, named = self.logits(pictures).softmax(1).max(1)
        found = []
        for chance, one in zip(chances, named, strict=True):
            height, width = one.shape
            here: list[Box] = []
            for number, name in enumerate(self.names):
                if name in STRUCTURE or not bool((one == number).any()):
                    continue
                _, regions, stats, _ = cv2.connectedComponentsWithStats(
                    (one == number).to(torch.uint8).numpy()
                )
                for region, (x, y, w, h, area) in enumerate(stats[1:].tolist(), 1):
                    if area >= self.smallest * height * width:
                        score = float(chance[torch.from_numpy(regions == region)].mean())
                        here.append(
                            Box(x / width, y / height, (x + w) / width, (y + h) / height, name, score)
                        )
            found.append(here)
        return found


def borders(named: Tensor) -> Tensor:
    """Where a pixel's class differs from that of its right or lower neighbour, (N, 1, H, W) float32 of 0 and 1."""
    edges = torch.zeros_like(named, dtype=torch.bool)
    edges[:, :, :-1] |= named[:, :, 1:] != named[:, :, :-1]
    edges[:, :-1] |= named[:, 1:] != named[:, :-1]
    return edges[:, None].float()


def train_teacher(
    data: DenseSet,
    folder: str | Path,
    recipe: Recipe,
    width: int = 16,
    seed: int = 0,
    trained: bool = True,
    device: str | torch.device = "cpu",
) -> Teacher:
    """A teacher of these labelled houses, trained or (figure 19 of the paper) as it was born.

    Args:
        data: pictures with "semseg"; not of the test space.
        folder: for checkpoint and weights; what is there is not trained again.
        recipe: of the training.
        width: of the ResNet-18.
        seed: of weights and order.
        trained: False leaves the weights random.
        device: where to train; it answers on the CPU.
    """
    tasks = {"semseg": Segmentation(data.classes)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = multitask_resnet(tasks, 18, width)
    if trained:
        train(network, data, recipe, folder, seed, device)
    return Teacher(network.cpu(), data.classes)
