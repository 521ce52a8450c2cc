"""The units of the family: frames with labels, a source that is trained on rooms, and an adapter that follows a stream."""

from __future__ import annotations

import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from testtime.adapter import Adapter
from testtime.build import build_method
from testtime.data import camvid
from testtime.experiments import Workspace
from testtime.files import read_tensors, write_tensors
from testtime.labels import IGNORE
from testtime.metrics import BoundaryF, CalibrationError, MeanIoU
from testtime.models.preprocessed import Preprocessed
from testtime.models.small_segmenter import SmallSegmenter, source_roads
from testtime.models.zoo import CENTRED
from testtime.norm import batch_statistics, norm_affine
from testtime.parts import adam
from testtime.parts.optimizers import OptimizerFactory
from testtime.parts.pixels import as_rows
from testtime.scenes import CLASSES, Renderer, generate_house
from testtime.scenes.groups import GROUPS
from testtime.source.passes import class_loss, passes_over
from testtime.training import checkpoint

__all__ = ["Learned", "follow", "frames_digest", "measured", "render_rooms", "road_frames", "train_on_rooms"]

ROAD_SIZE, ROADS, WEIGHTS, FRAMES = (96, 128), 11, "source.safetensors", "frames.safetensors"
Frames = tuple[Tensor, Tensor]
"""Images (N, 3, H, W) in [0, 1] and class indices (N, H, W)."""


@lru_cache(maxsize=4)
def road_frames(root: str, part: str) -> Frames:
    """Return frames of CamVid at 96x128 in the order of time.

    Args:
        root: folder that holds CamVid.
        part: "source" (training frames by day), "dusk" (all of the drive at dusk) or "held" (validation frames by day).

    Raises:
        DataError: files are missing.
    """
    names = {"source": ("train", "day"), "dusk": ("all", "dusk"), "held": ("val", "day")}
    found = camvid(root, *names[part])
    order = sorted(range(len(found)), key=lambda i: found.keys[i].split("/")[1])
    x, labels = found.batch(order, ROAD_SIZE)
    return x, labels["semseg"]


def frames_digest(frames: Frames) -> str:
    """Return the SHA-256 of frames, as they are after decoding and resizing in 8 bits."""
    x, y = frames
    return hashlib.sha256((255 * x).round().byte().numpy().tobytes() + y.byte().numpy().tobytes()).hexdigest()


def render_rooms(work: Workspace) -> dict[str, Any]:
    """Render frames of houses that a seed names, each under one shift or none, with the grouped classes of scenes."""
    p = work.parameters
    groups = {name: i for i, members in enumerate(GROUPS.values()) for name in members}
    table = torch.tensor([groups.get(name, IGNORE) for name in CLASSES])
    images, labels = [], []
    for number, seed in enumerate(p["houses"]):
        house = generate_house(seed=seed, style=p["style"])
        renderer = Renderer(house, backend=None)
        for camera in house.cameras(count=p["frames"], seed=seed)[: p["frames"]]:
            frame = renderer.frame(camera, size=tuple(p["size"]), shift=p["shift"])
            images.append(torch.from_numpy(frame.rgb.copy()))
            labels.append(table[torch.from_numpy(frame.semantic.astype("int64"))])
        work.progress(number + 1, len(p["houses"]))
    tensors = {
        "images": torch.stack(images).movedim(-1, 1).contiguous(),
        "labels": torch.stack(labels).byte(),
    }
    write_tensors(work.folder / FRAMES, tensors)
    return {"frames": len(images)}


def _rendered(folder: Any) -> Frames:
    tensors, _ = read_tensors(folder / FRAMES)
    return tensors["images"].float() / 255, tensors["labels"].long()


def train_on_rooms(work: Workspace) -> dict[str, Any]:
    """Train a segmenter on rendered rooms, mirrored at random, with a checkpoint after every epoch."""
    p, (x, y) = work.parameters, _rendered(work.needs["rooms"].folder)
    torch.manual_seed(p["seed"])
    model = Preprocessed(SmallSegmenter(len(GROUPS)), *CENTRED).train()
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        mirrored = torch.rand(len(images), 1, 1, 1) < 0.5
        images = torch.where(mirrored, images.flip(-1), images)
        return class_loss(model(images), torch.where(mirrored[:, 0], labels.flip(-1), labels))

    file = {"file": work.folder / WEIGHTS, "described": dict(p), "seed": p["seed"]}
    batches: Any = DataLoader(TensorDataset(x, y), 12, shuffle=True)
    for done in passes_over(
        batches, p["epochs"], model, optimizer, loss, lambda e: 3e-3 * (1 - e / p["epochs"]), **file
    ):
        work.progress(done + 1, p["epochs"])
    return {"frames": len(x)}


@final
class Learned:
    """A ceiling that learns from labels: the parameters and statistics of TENT, cross-entropy with the labels in its place.

    Args:
        model: network, which is not changed.
        optimizer: moves gamma and beta.
    """

    def __init__(self, model: nn.Module, optimizer: OptimizerFactory = adam(1e-3)) -> None:  # noqa: B008
        self.model = batch_statistics(copy.deepcopy(model))
        self.affine = norm_affine(self.model)
        for p in self.affine:
            p.requires_grad_(True)
        self.optimizer, self.steps = optimizer(self.affine), 0

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Return logits (N, C, H, W)."""
        found: Tensor = self.model(x)
        return found

    def step(self, x: Tensor, y: Tensor) -> Tensor:
        """Return logits (N, C, H, W) from before a step on the labels (N, H, W)."""
        logits: Tensor = self.model(x)
        self.optimizer.zero_grad()
        class_loss(logits, y).backward()
        self.optimizer.step()
        self.steps += 1
        return logits.detach()


def measured(answers: Iterator[Frames] | list[Frames], classes: int, tolerance: float) -> dict[str, float]:
    """Return mIoU, pixel accuracy, boundary F and expected calibration error over pixels, in percent.

    Args:
        answers: logits (N, C, H, W) and labels (N, H, W) of batches.
        classes: number of classes C.
        tolerance: tolerance of boundaries, in pixels.
    """
    overlap, edges, error = MeanIoU(classes), BoundaryF(classes, tolerance), CalibrationError()
    for logits, labels in answers:
        overlap.update(logits, labels)
        edges.update(logits, labels)
        known = labels.flatten() != IGNORE
        confidence, answer = as_rows(logits.float()).softmax(1)[known].max(1)
        error.update(confidence.numpy(), (answer == labels.flatten()[known]).numpy())
    accuracy = 100 * overlap.confusion.trace() / max(overlap.confusion.sum(), 1)
    return {
        "miou": overlap.value(),
        "accuracy": float(accuracy),
        "boundary_f": edges.value(),
        "ece": error.value(),
    }


def _world(work: Workspace) -> tuple[nn.Module, int, Mapping[str, Frames]]:
    """The source model, its number of classes, and the frames by name: source, stream, held."""
    p = work.parameters
    if p["stream"] == "dusk":
        parts = {"source": "source", "stream": "dusk", "held": "held"}
        return (
            source_roads(),
            ROADS,
            {name: road_frames(work.places["data"], part) for name, part in parts.items()},
        )
    model = Preprocessed(SmallSegmenter(len(GROUPS)), *CENTRED)
    checkpoint.load(work.needs["source"].folder / WEIGHTS, model)
    frames = {name: _rendered(work.needs[name].folder) for name in ("rooms", "stream", "held")}
    return model.eval(), len(GROUPS), {"source": frames.pop("rooms"), **frames}


def follow(work: Workspace) -> dict[str, Any]:
    """Let a method follow a stream of frames, batch after batch; predict held-out frames of the source before and after."""
    p = work.parameters
    model, classes, frames = _world(work)
    model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x, y = (part[: p["limit"]] for part in frames["stream"])
    held = [part[:: p["held"]] for part in frames["held"]]
    predict: Callable[[Tensor], Tensor]
    learner: Learned | Adapter
    if p["method"] == "labels":
        learner = Learned(model)
    else:
        learner = build_method(p, model, classes, p["seed"])
        if learner.source != "none":
            learner.prepare(list(_thinned(frames["source"][0], p["source_frames"]).split(12)))
    predict = learner.predict

    def on_held() -> dict[str, float]:
        parts = zip(*(part.split(p["batch"]) for part in held), strict=True)
        return measured(((predict(a), b) for a, b in parts), classes, p["tolerance"])

    before = on_held()["miou"]
    answers, updated, begin = [], 0, time.process_time()
    batches = list(zip(x.split(p["batch"]), y.split(p["batch"]), strict=True))
    for number, (images, labels) in enumerate(batches, 1):
        z = learner.step(images, labels) if isinstance(learner, Learned) else learner(images)
        updated += bool(getattr(z, "updated", True))
        answers.append((z.as_subclass(Tensor), labels))
        work.progress(number, len(batches))
    seconds = time.process_time() - begin
    _keep(work, answers)
    after = on_held()["miou"]
    found = measured(answers, classes, p["tolerance"])
    facts = {"frames": len(x), "updated": updated, "seconds": seconds}
    return {**found, "before": before, "after": after, "forgetting": after - before, **facts}


def _thinned(x: Tensor, count: int) -> Tensor:
    """At most ``count`` samples, evenly over all."""
    return x[torch.linspace(0, len(x) - 1, min(count, len(x))).round().long()]


def _keep(work: Workspace, answers: list[Frames]) -> None:
    """Store what is known of each frame: its pixel accuracy, and signals that need no label."""
    logits, labels = (torch.cat(parts) for parts in zip(*answers, strict=True))
    p = logits.float().softmax(1)
    known = labels != IGNORE
    right = ((logits.argmax(1) == labels) & known).sum((1, 2)) / known.sum((1, 2)).clamp_min(1)
    tensors = {
        "accuracy": right.double(),
        "confidence": p.amax(1).mean((1, 2)).double(),
        "entropy": -(p * p.clamp_min(1e-30).log()).sum(1).mean((1, 2)).double(),
        "score": -logits.float().logsumexp(1).mean((1, 2)).double(),
        "shares": p.mean((2, 3)).double().contiguous(),
        "predicted": logits.argmax(1).byte(),
    }
    write_tensors(work.folder / FRAMES, tensors)
