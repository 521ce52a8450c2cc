"""What a point is worth: in segmentation, boxes, captions and retrieval, and in segmentation when it learns on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch

from testtime.methods.ttt_mae import TTTMAE
from testtime.metrics.dense import MeanIoU
from testtime.models.assisted import Assisted
from testtime.parts.optimizers import sgd
from testtime.progress import progress
from testtime.space.mae import MaskedAutoencoder
from testtime.space.modalities import DEPTH
from testtime.space.model import FourM
from testtime.space.presets import MAPPING
from testtime.space.retrieval import expected_vectors, recalls
from testtime.space.transfer import evaluate
from testtime.wrap import Episodic, Repeat

if TYPE_CHECKING:
    from testtime.space.points import Lab, Point

__all__ = ["FAMILIES", "family_of"]

COPIES, PASSES = 32, 20


def segmentation(lab: Lab, point: Point) -> dict[str, Any]:
    """ "mIoU", and "IoU" by class, in percent."""
    data = lab.read(lab.preset.test(point.test))
    if point.objective != "teacher":
        return evaluate(lab.transferred(point), data, device=lab.device)
    meter = MeanIoU(len(data.classes))
    for sample in data:
        meter.update(lab.teacher(point.taught).logits(sample.image[None]), sample.labels["semseg"][None])
    by_class = dict(zip(data.classes, meter.by_class.tolist(), strict=True))
    return {"mIoU": meter.value(), "IoU": by_class}


def detection(lab: Lab, point: Point) -> dict[str, Any]:
    """COCO's "AP" and "AP50", in percent."""
    from testtime.space.detection import boxes_of, evaluate_detector

    model = lab.detector(point)
    scenes = lab.scenes(lab.preset.test(point.test))
    found = evaluate_detector(model, scenes, boxes_of(scenes, model.classes, MAPPING))
    return {"AP": found["AP"], "AP50": found["AP50"]}


def captions(lab: Lab, point: Point) -> dict[str, Any]:
    """ "CIDEr-D" and the "scene graph F"."""
    from testtime.space.captioning import captions_of, evaluate_captioner

    scenes = lab.scenes(lab.preset.test(point.test))
    return dict(evaluate_captioner(lab.captioner(point), scenes, captions_of(scenes)))


def retrieval(lab: Lab, point: Point) -> dict[str, Any]:
    """R@1, R@5 and R@10 in percent, of depth maps by pictures and of pictures by depth maps, and what chance gives.

    Raises:
        ValueError: the point's model does not know pictures, depth and features.
    """
    model = lab.pretrained(point).cpu()
    if not isinstance(model, FourM) or not {"depth", "features"} <= {*point.modalities}:
        raise ValueError(f"{point.name}: retrieval needs TST-MM with depth and features")
    frames = lab.frames(lab.preset.test(point.test), (DEPTH.name,))
    pixels = torch.stack([frame["rgb"] for frame in frames])
    tokenizer = lab.tokenizer(DEPTH.name, point)
    ids = tokenizer.encode(torch.stack(list(frames.values(DEPTH, tokenizer.size)))).flatten(1)
    features = lab.tokenizer("features", point)
    by_picture = expected_vectors(model, features, pixels)
    by_depth = expected_vectors(model, features, pixels, (f"tok_{DEPTH.name}", ids))
    found: dict[str, Any] = {}
    for name, (a, b) in {"depth": (by_picture, by_depth), "picture": (by_depth, by_picture)}.items():
        found |= {f"{name} R@{k}": value for k, value in recalls(a, b).items()}
    return found | {f"chance R@{k}": 100 * k / len(pixels) for k in (1, 5, 10)}


def learning_on(lab: Lab, point: Point) -> dict[str, Any]:
    """ "mIoU before" and "mIoU after" some steps of TTT-MAE on each picture, from the source each time.

    The rate is the paper's, 1e-2 for 256 copies.

    Raises:
        ValueError: the point is no TST-MAE with a frozen encoder.
    """
    if point.objective != "mae" or not point.frozen:
        raise ValueError(f"{point.name}: TTT-MAE needs TST-MAE, and a head on its frozen encoder")
    autoencoder: MaskedAutoencoder = lab.pretrained(point).cpu()
    network = lab.transferred(point).cpu()
    autoencoder.add_module("encoder", network.encoder)  # type: ignore[arg-type]
    rate = 1e-2 * COPIES / 256
    adapter = Episodic(Repeat(TTTMAE(Assisted(network, autoencoder), sgd(rate), COPIES), PASSES))
    data = lab.read(lab.preset.test(point.test))
    before, after = MeanIoU(len(data.classes)), MeanIoU(len(data.classes))
    for index in progress(range(len(data)), len(data), "TTT-MAE"):
        image, labels = data.batch([index], network.encoder.size)
        adapter.reset()
        before.update(adapter.predict(image).logits, labels["semseg"])
        after.update(adapter(image).logits, labels["semseg"])
    return {"mIoU before": before.value(), "mIoU after": after.value()}


FAMILIES: Mapping[tuple[str, ...], Callable[[Lab, Point], dict[str, Any]]] = {
    ("mIoU", "IoU"): segmentation,
    ("AP", "AP50"): detection,
    ("CIDEr-D", "scene graph F"): captions,
    tuple(f"{name} R@{k}" for name in ("depth", "picture", "chance") for k in (1, 5, 10)): retrieval,
    ("mIoU before", "mIoU after"): learning_on,
}
"""By what is measured together, how."""


def family_of(measure: str) -> tuple[str, Callable[[Lab, Point], dict[str, Any]]]:
    """The name of what is measured with this one, and how.

    Raises:
        ValueError: nothing of that name is measured.
    """
    for names, how in FAMILIES.items():
        if measure in names:
            return how.__name__, how
    known = ", ".join(name for names in FAMILIES for name in names)
    raise ValueError(f"nothing is measured as {measure!r}; there are {known}")
