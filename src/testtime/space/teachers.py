"""Pseudo-labellers of the embedded setting: one small network, trained with labels of *other* houses, predicts in this one.

The paper uses public networks (CLIP, ImageBind, SAM, ViTDet, Mask2Former); any callable can take their place, see
:class:`~testtime.space.frames.SpaceFrames`. Their knowledge of other places is distilled on images of the test space alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn

from testtime.data.dense import DenseSet
from testtime.errors import missing_extra
from testtime.metrics.dense import MeanIoU
from testtime.multitask import Recipe, Segmentation, multitask_resnet, train
from testtime.space.frames import PseudoLabeller
from testtime.space.modalities import OBJECT_EDGES, Modality, boxes, classes, features
from testtime.space.sequences import Box, BoxVocabulary

__all__ = ["Teacher", "borders", "train_teacher"]

STRUCTURE = ("wall", "floor", "ceiling")
"""Classes without boxes."""


@final
class Teacher:
    """A segmentation network as four modalities: classes, object edges, features, boxes.

    Args:
        network: network from images (N, 3, H, W) to {"semseg": logits}, with an ``encoder`` that returns features.
        names: names of the classes.
        smallest: smallest fraction of the image that a box covers.
        bins: number of bins of a box's coordinates.

    Attributes:
        modalities: modalities by name: "classes", "object_edge", "features", "boxes".
        vocabulary: vocabulary of the boxes.
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
        """Pseudo-labellers by modality, for :class:`~testtime.space.frames.SpaceFrames`."""
        return {
            "classes": self.classes,
            "object_edge": lambda x: borders(self.classes(x)),
            "features": self.features,
            "boxes": self.boxes,
        }

    @torch.no_grad()
    def logits(self, pictures: Tensor) -> Tensor:
        """Return the logits of every pixel, (N, C, H, W), of images (N, 3, H, W)."""
        return self.network(pictures)["semseg"]

    def evaluate(self, data: DenseSet) -> dict[str, Any]:
        """Measure "mIoU", and "IoU" by class, in percent, of the segmentation of labelled images."""
        meter = MeanIoU(len(data.classes))
        for sample in data:
            meter.update(self.logits(sample.image[None]), sample.labels["semseg"][None])
        return {"mIoU": meter.value(), "IoU": dict(zip(data.classes, meter.by_class.tolist(), strict=True))}

    def classes(self, pictures: Tensor) -> Tensor:
        """Return the class of every pixel, (N, H, W) int64, of images (N, 3, H, W)."""
        return self.logits(pictures).argmax(1)

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """Return the encoder's features, (N, C, h, w), of images (N, 3, H, W)."""
        return self.network.encoder(pictures)  # type: ignore[operator]

    def boxes(self, pictures: Tensor) -> list[list[Box]]:
        """Return a box around every connected region of a class with boxes; its score is the mean probability inside."""
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
    """Return a map, (N, 1, H, W) float32, that is 1 where a class differs from that of the right or lower neighbour.

    Args:
        named: classes (N, H, W).
    """
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
    """Train a teacher on labelled houses; see :func:`testtime.multitask.train` for the folder.

    Args:
        data: images with "semseg"; not of the test space.
        folder: folder of checkpoint, log and weights.
        recipe: recipe of the training.
        width: width of the ResNet-18.
        seed: random seed of weights and order.
        trained: whether the teacher is trained; otherwise its weights stay random (figure 19 of the paper).
        device: device of the training; the teacher itself stays on the CPU.
    """
    tasks = {"semseg": Segmentation(data.classes)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = multitask_resnet(tasks, 18, width)
    if trained:
        train(network, data, recipe, folder, seed, device)
    return Teacher(network.cpu(), data.classes)
