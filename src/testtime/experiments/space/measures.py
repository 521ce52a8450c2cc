"""Functions of the units that measure: segmentation, boxes, captions, retrieval, learning on at test time, and pictures."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from testtime.experiments.space import units
from testtime.experiments.space.units import labelled_scenes, read_teacher, read_views, trained
from testtime.experiments.store import Workspace
from testtime.methods.ttt_mae import TTTMAE
from testtime.metrics.dense import MeanIoU
from testtime.models.assisted import Assisted
from testtime.parts.optimizers import sgd
from testtime.space.captioning import captions_of, evaluate_captioner
from testtime.space.depths import evaluate_depth
from testtime.space.detection import boxes_of, evaluate_detector
from testtime.space.distilled import decoded
from testtime.space.frames import SpaceFrames
from testtime.space.modalities import DEPTH
from testtime.space.pictures import write_pictures, write_predictions, write_retrieved
from testtime.space.retrieval import depth_recalls, nearest, paired_vectors
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
    return read_teacher(work.needs["teacher"]).evaluate(labelled_scenes(work))


def decoding(work: Workspace) -> dict[str, Any]:
    """Measure classes and depth as the pre-trained model decodes them from pictures, see :mod:`testtime.space.distilled`."""
    needs = work.needs
    model, taught = trained(needs["pretraining"]), read_teacher(needs["teacher"])
    return decoded(model, units.tokenizers(work), taught, labelled_scenes(work))


def detection(work: Workspace) -> dict[str, Any]:
    """Measure "AP" and "AP50" of COCO, in percent."""
    model, scenes = trained(work.needs["transfer"]), read_views(work)
    found = evaluate_detector(model, scenes, boxes_of(scenes, model.classes, units.MAPPING))
    return {"AP": found["AP"], "AP50": found["AP50"]}


def depth(work: Workspace) -> dict[str, Any]:
    """Measure depth up to a scale, and what a constant depth gives, in percent."""
    return evaluate_depth(trained(work.needs["transfer"]), read_views(work))


def captions(work: Workspace) -> dict[str, Any]:
    """Measure "CIDEr-D" and the "scene graph F"."""
    scenes = read_views(work)
    return dict(evaluate_captioner(trained(work.needs["transfer"]), scenes, captions_of(scenes)))


def retrieval(work: Workspace) -> dict[str, Any]:
    """Measure R@1, R@5 and R@10 in percent, of depth maps by images and of images by depth maps, and what chance gives."""
    pixels, depth = _pairs(work)
    recalled = depth_recalls(trained(work.needs["pretraining"]), units.tokenizers(work), pixels, depth)
    found = {f"{name} R@{k}": value for name, by_k in recalled.items() for k, value in by_k.items()}
    return found | {f"chance R@{k}": 100 * k / len(pixels) for k in (1, 5, 10)}


def _pairs(work: Workspace) -> tuple[Tensor, Tensor]:
    """Return the pictures (N, 3, H, W) of the test house, and their depth maps in the size of the tokenizer."""
    frames = SpaceFrames(labelled_scenes(work), (DEPTH.name,))
    size = units.tokenizers(work)["depth"].size
    return torch.stack([frame["rgb"] for frame in frames]), torch.stack(list(frames.values(DEPTH, size)))


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
    model, data, known = trained(work.needs["pretraining"]), labelled_scenes(work), units.tokenizers(work)
    streams = {f"tok_{name}": known[name] for name in work.parameters["drawn"]}
    segmenters = {name: trained(work.needs[name]) for name in ("scratch", "TST-MM")}
    return _encoded(write_pictures(work.folder, model, streams, segmenters, data, _spread(len(data))))


def predictions(work: Workspace) -> dict[str, Any]:
    """Draw held-out frames of a walk as PNG, light and dark, with their labels and the predictions of every row."""
    data, networks = labelled_scenes(work), dict[str, dict[str, Any]]()
    for task, row in (need.split(", ", 1) for need in work.parameters["drawn"]):
        networks.setdefault(task, {})[row] = trained(work.needs[f"{task}, {row}"])
    size = tuple(work.parameters["image"])
    return _encoded(write_predictions(work.folder, networks, data, _spread(len(data)), size))


def retrieved(work: Workspace) -> dict[str, Any]:
    """Draw the nearest depth maps of pictures and the nearest pictures of depth maps as PNG, light and dark."""
    pixels, depth = _pairs(work)
    a, b = paired_vectors(trained(work.needs["pretraining"]), units.tokenizers(work), pixels, depth)
    shown = DEPTH.normalised(depth)
    ranks = nearest(a, b), nearest(b, a)
    return _encoded(write_retrieved(work.folder, pixels, shown, ranks, _spread(len(pixels))))


def _spread(count: int) -> range:
    """Indices of the frames that are drawn, of ``count``."""
    step = max(1, count // DRAWN)
    return range(0, step * DRAWN, step)[: min(DRAWN, count)]


def _encoded(sheets: Sequence[Path]) -> dict[str, str]:
    return {path.stem: base64.b64encode(path.read_bytes()).decode() for path in sheets}
