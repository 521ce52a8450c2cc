"""Functions of the units that measure: segmentation, boxes, captions, retrieval, learning on at test time, and pictures."""

from __future__ import annotations

import base64
from typing import Any

import torch

from testtime.experiments.space.units import (
    MAPPING,
    labelled_scenes,
    read_teacher,
    read_views,
    tokenizers,
    trained,
)
from testtime.experiments.store import Workspace
from testtime.methods.ttt_mae import TTTMAE
from testtime.metrics.dense import MeanIoU
from testtime.models.assisted import Assisted
from testtime.parts.optimizers import sgd
from testtime.space.captioning import captions_of, evaluate_captioner
from testtime.space.detection import boxes_of, evaluate_detector
from testtime.space.frames import SpaceFrames
from testtime.space.modalities import DEPTH
from testtime.space.pictures import write_pictures
from testtime.space.retrieval import predicted_vectors, recalls
from testtime.space.transfer import evaluate
from testtime.wrap import Episodic, Repeat

COPIES, PASSES = 32, 20
DRAWN = 6
"""Largest number of frames that are drawn."""


def segmentation(work: Workspace) -> dict[str, Any]:
    """Measure "mIoU", and "IoU" by class, in percent."""
    return evaluate(trained(work.needs["transfer"]), labelled_scenes(work), device=work.parameters["device"])


def teacher_segmentation(work: Workspace) -> dict[str, Any]:
    """Measure the same of the pseudo-labeller's own segmentation."""
    data, teacher = labelled_scenes(work), read_teacher(work.needs["teacher"])
    meter = MeanIoU(len(data.classes))
    for sample in data:
        meter.update(teacher.logits(sample.image[None]), sample.labels["semseg"][None])
    by_class = dict(zip(data.classes, meter.by_class.tolist(), strict=True))
    return {"mIoU": meter.value(), "IoU": by_class}


def detection(work: Workspace) -> dict[str, Any]:
    """Measure "AP" and "AP50" of COCO, in percent."""
    model, scenes = trained(work.needs["transfer"]), read_views(work)
    found = evaluate_detector(model, scenes, boxes_of(scenes, model.classes, MAPPING))
    return {"AP": found["AP"], "AP50": found["AP50"]}


def captions(work: Workspace) -> dict[str, Any]:
    """Measure "CIDEr-D" and the "scene graph F"."""
    scenes = read_views(work)
    return dict(evaluate_captioner(trained(work.needs["transfer"]), scenes, captions_of(scenes)))


def retrieval(work: Workspace) -> dict[str, Any]:
    """Measure R@1, R@5 and R@10 in percent, of depth maps by images and of images by depth maps, and what chance gives."""
    model, known = trained(work.needs["pretraining"]), tokenizers(work)
    frames = SpaceFrames(labelled_scenes(work), (DEPTH.name,))
    pixels = torch.stack([frame["rgb"] for frame in frames])
    depth = torch.stack(list(frames.values(DEPTH, known["depth"].size)))
    ids = known["depth"].encode(depth).flatten(1)
    by_picture = predicted_vectors(model, known["features"], pixels)
    by_depth = predicted_vectors(model, known["features"], pixels, (f"tok_{DEPTH.name}", ids))
    found: dict[str, Any] = {}
    for name, (a, b) in {"depth": (by_picture, by_depth), "picture": (by_depth, by_picture)}.items():
        found |= {f"{name} R@{k}": value for k, value in recalls(a, b).items()}
    return found | {f"chance R@{k}": 100 * k / len(pixels) for k in (1, 5, 10)}


def learning_on(work: Workspace) -> dict[str, Any]:
    """Measure "mIoU before" and "mIoU after" some steps of TTT-MAE on each image, from the source each time.

    The learning rate is the paper's, 1e-2 for 256 copies.
    """
    autoencoder, network = trained(work.needs["pretraining"]), trained(work.needs["transfer"])
    autoencoder.add_module("encoder", network.encoder)
    rate = 1e-2 * COPIES / 256
    adapter = Episodic(Repeat(TTTMAE(Assisted(network, autoencoder), sgd(rate), COPIES), PASSES))
    data = labelled_scenes(work)
    before, after = MeanIoU(len(data.classes)), MeanIoU(len(data.classes))
    for index in range(len(data)):
        work.progress(index, len(data))
        image, labels = data.batch([index], network.encoder.size)
        adapter.reset()
        before.update(adapter.predict(image).logits, labels["semseg"])
        after.update(adapter(image).logits, labels["semseg"])
    return {"mIoU before": before.value(), "mIoU after": after.value()}


def pictures(work: Workspace) -> dict[str, Any]:
    """Draw frames of the test house as PNG, light and dark, and what a model expects of them."""
    model, data, known = trained(work.needs["pretraining"]), labelled_scenes(work), tokenizers(work)
    streams = {f"tok_{name}": known[name] for name in work.parameters["drawn"]}
    segmenters = {name: trained(work.needs[name]) for name in ("scratch", "TST-MM")}
    step = max(1, len(data) // DRAWN)
    indices = range(0, step * DRAWN, step)[: min(DRAWN, len(data))]
    sheets = write_pictures(work.folder, model, streams, segmenters, data, indices)
    return {path.stem: base64.b64encode(path.read_bytes()).decode() for path in sheets}
