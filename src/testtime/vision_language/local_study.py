"""The units of the studies on local tokens: pairs, adapters on them, controls without text, and ceilings with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from testtime.data.folders import imagenet_names
from testtime.files import read_tensors, write_tensors
from testtime.metrics import auroc
from testtime.metrics.localisation import f1_max, mask_iou, pixel_auroc, pro
from testtime.metrics.temporal import Segment, frame_f, segment_map
from testtime.parts import adam, generator
from testtime.vision_language.anovl import AnoVL
from testtime.vision_language.conse import conse_pair
from testtime.vision_language.gensam import GenSAM, heat_map, heat_points, unit_range
from testtime.vision_language.local_data import FILE, GRID
from testtime.vision_language.local_tokens import distance_to_mean, ensemble, token_map
from testtime.vision_language.pair import ImageText
from testtime.vision_language.point_segmenter import load_point_segmenter
from testtime.vision_language.probe import MobileNetFeatures, Probe, ridge
from testtime.vision_language.t3al import T3AL, Captioner, segments_of, uniform_segments

if TYPE_CHECKING:
    from testtime.experiments import Workspace

__all__ = ["WEIGHTS", "localise", "score_anomalies", "segment_words", "teach"]

WEIGHTS = "weights/imagenet_mobilenetv1_x0.25.safetensors"
"""Weights of the MobileNet in the folder of data sets."""
PROBE = "probe.safetensors"
BATCH = 16
NAMED = 3  # classes that a caption of the stand-in captioner names
IOUS = (0.3, 0.5, 0.7)


@cache
def _pair(data: str) -> ImageText:
    return conse_pair(Path(data) / WEIGHTS)


def _features(pair: ImageText) -> MobileNetFeatures:
    return MobileNetFeatures(pair.images.classifier).eval()  # type: ignore[arg-type]


def _images(levels: Tensor) -> Tensor:
    return levels.float() / 255


def _data(work: Workspace) -> tuple[Mapping[str, Tensor], Mapping[str, Any]]:
    """Tensors and facts of the data unit."""
    made = work.needs["data"]
    return read_tensors(made.folder / FILE)[0], made.result


@torch.no_grad()
def teach(work: Workspace) -> dict[str, Any]:
    """Learn the last layer of an image encoder with the labels of the part to teach on: of cells, or of whole images."""
    tensors, facts = _data(work)
    pair = _pair(work.places["data"])
    features = _features(pair)
    embedded = torch.stack([ensemble(pair.encode_texts(prompts)) for prompts in facts["teach"]])
    found = torch.cat([features(_images(part)) for part in tensors["teach.images"].split(BATCH)])
    targets = tensors["teach.targets"]
    found = found.mean(1) if targets.dim() == 1 else found.flatten(0, 1)
    targets = targets.flatten()
    known = targets >= 0
    found, targets = found[known], targets[known]
    counts = torch.bincount(targets, minlength=len(embedded)).clamp(min=1)
    weights = 1 / counts[targets].double()
    scale = found.std(0).clamp(min=1e-6)
    matrix, bias = ridge(found / scale, embedded[targets], work.parameters["strength"], weights)
    write_tensors(work.folder / PROBE, {"matrix": (matrix / scale[:, None]).float(), "bias": bias.float()})
    answers = F.normalize((found / scale).double() @ matrix + bias, dim=1) @ embedded.double().T
    return {"samples": len(found), "accuracy": float((answers.argmax(1) == targets).float().mean() * 100)}


def _taught(work: Workspace) -> ImageText:
    """The pair of the unit: as it is, or with the image encoder that was taught."""
    pair = _pair(work.places["data"])
    if work.parameters["pair"] != "taught":
        return pair
    tensors, _ = read_tensors(work.needs["teach"].folder / PROBE)
    probe = Probe(_features(pair), tensors["matrix"], tensors["bias"])
    return ImageText(probe, pair.texts, pair.scale).eval()


# Anomalies ------------------------------------------------------------------------------------------------------------


def score_anomalies(work: Workspace) -> dict[str, Any]:
    """Score images and pixels by a method, and measure the scores by the masks, in percent."""
    p, (tensors, facts) = work.parameters, _data(work)
    images, masks = _images(tensors["test.images"]), tensors["test.masks"].bool().numpy()
    names = tensors["test.names"]
    maps, whole = torch.zeros(masks.shape), torch.zeros(len(masks))
    method = p["method"]
    pair = None if method == "random" else _taught(work)
    size = (masks.shape[1], masks.shape[2])
    for name in names.unique().tolist():
        which = (names == name).nonzero()[:, 0]
        adapter = None
        if method == "anovl" and pair is not None:
            normal, abnormal = (pair.encode_texts(facts["prompts"][2 * name + k]) for k in range(2))
            about: dict[str, Any] = {
                "steps": p["steps"],
                "clean": p["clean"],
                "scale": float(pair.scale),
                "seed": p["seed"],
            }
            adapter = AnoVL(pair, normal, abnormal, **about)
        for part in which.split(BATCH):
            x = images[part]
            if adapter is not None:
                y = adapter(x)
                maps[part], whole[part] = y["map"], y["score"]
                continue
            with torch.no_grad():
                maps[part] = token_map(_plain(method, pair, x, p["seed"], part), size)
            whole[part] = maps[part].flatten(1).amax(1)
        work.progress(name + 1, int(names.max()) + 1)
    return _anomaly_metrics(maps.numpy(), whole.numpy(), masks, facts["kinds"])


def _plain(method: str, pair: ImageText | None, x: Tensor, seed: int, part: Tensor) -> Tensor:
    """Values (N, P) of the patches by a method without text."""
    if pair is None:
        draws = [torch.rand(GRID**2, generator=generator(seed, int(i), "random")) for i in part]
        return torch.stack(draws)
    if method == "distance of tokens":
        return distance_to_mean(pair.patches(x))
    return distance_to_mean(_features(pair)(x))


def _anomaly_metrics(
    maps: np.ndarray, whole: np.ndarray, masks: np.ndarray, kinds: Sequence[str]
) -> dict[str, Any]:
    half = len(masks) // 2
    peak = maps.reshape(len(maps), -1).max(1)
    by = {}
    for kind in dict.fromkeys(kinds):
        rows = half + np.flatnonzero(np.array(kinds) == kind)
        by[kind] = pixel_auroc(maps[rows], masks[rows])
    return {
        "image": auroc(whole[:half], whole[half:]),
        "peak": auroc(peak[:half], peak[half:]),
        "pixel": pixel_auroc(maps, masks),
        "pro": pro(maps, masks),
        "f1": f1_max(maps, masks),
        "by": by,
        "images": len(masks),
    }


# Walks ----------------------------------------------------------------------------------------------------------------


def localise(work: Workspace) -> dict[str, Any]:
    """Find the visits of the main room of each walk, and measure them."""
    p, (tensors, facts) = work.parameters, _data(work)
    videos, inside = tensors["test.videos"], tensors["test.inside"].bool().numpy()
    truth = [
        Segment(v, facts["classes"][v], a, b) for v, some in enumerate(facts["segments"]) for a, b in some
    ]
    found, frames, right = list[Segment](), list[np.ndarray](), list[bool]()
    pair = None if p["method"] == "uniform" else _taught(work)
    texts = None if pair is None else pair.encode_texts([some[0] for some in facts["prompts"]])
    for v, video in enumerate(videos):
        actual, count = facts["classes"][v], len(video)
        if pair is None or texts is None:
            some: Sequence[Segment] = uniform_segments(count, p["segments"], actual, v, p["share"])
            label = actual
            answered = np.zeros(count, bool)
            for s in some:
                answered[round(s.start) : round(s.end)] = True
        else:
            given = texts[actual][None] if p["method"] == "known class" else texts
            about = {"captioner": _captioner(work, v), "agreement": p["agreement"]}
            adapter = T3AL(pair, given, adam(p["rate"]), steps=p["steps"], loss=p["loss"], **about)
            y = adapter(_images(video))
            label = actual if p["method"] == "known class" else int(y["class"][0])
            some = segments_of(y["similarity"], label, v, least=2, inside=y["inside"])
            answered = (y["inside"] > 0.5).numpy()
        found += some
        right.append(label == actual)
        frames.append(answered if label == actual else np.zeros(count, bool))
        work.progress(v + 1, len(videos))
    maps = {f"map_{int(100 * iou)}": segment_map(found, truth, iou) for iou in IOUS}
    return {
        **maps,
        "map": float(np.mean(list(maps.values()))),
        "frame_f": frame_f(frames, list(inside)),
        "classes": 100 * float(np.mean(right)),
        "videos": len(videos),
    }


def _captioner(work: Workspace, video: int) -> Captioner | None:
    """A captioner for the frames of a walk: classes of ImageNet, random classes, or the true room of a frame."""
    kind, names = work.parameters["captions"], imagenet_names()
    encoder: Any = None if kind == "none" else _pair(work.places["data"]).images
    draw = generator(work.parameters["seed"], video, "captions")

    def of_classes(frames: Tensor) -> list[str]:
        with torch.no_grad():
            best = encoder.logits(frames).topk(NAMED, dim=1).indices
        if kind == "random":
            best = torch.randint(len(names), best.shape, generator=draw)
        return [f"a photo of {', '.join(names[i] for i in some)}." for some in best.tolist()]

    if kind != "rooms":
        return None if kind == "none" else of_classes
    tensors, facts = _data(work)
    images, rooms = _images(tensors["test.videos"][video]), tensors["test.rooms"][video].tolist()
    texts = [some[0] for some in facts["prompts"]]

    def of_rooms(frames: Tensor) -> list[str]:  # the room of the frame whose pixels are these
        return [texts[rooms[int((images - x).abs().flatten(1).amax(1).argmin())]] for x in frames]

    return of_rooms


# Prompted masks -------------------------------------------------------------------------------------------------------


def segment_words(work: Workspace) -> dict[str, Any]:
    """Segment what a word names, and measure the masks; "hits" is the share of points on the object that are on it."""
    p, (tensors, facts) = work.parameters, _data(work)
    images, masks = _images(tensors["test.images"]), tensors["test.masks"].bool()
    words: Sequence[str] = facts["words"]
    background = list(facts["background"])
    points, labels = _points_of(work, images, masks, words, background)
    if p["method"] == "gensam":
        order = iter(words)  # a vision-language model that names the object and what is around it

        def named(x: Tensor) -> list[tuple[list[str], list[str]]]:
            return [([next(order)], background) for _ in x]

        adapter = GenSAM(_taught(work), load_point_segmenter(), named, rounds=p["rounds"], points=p["points"])
        logits = torch.cat([adapter(part)["mask"] for part in images.split(BATCH)])
    elif p["method"] == "heat":
        logits = _heat(_taught(work), images, words, background)
        logits = token_map(logits, (images.shape[2], images.shape[3]), smooth=False) - 0.5
    else:
        segmenter = load_point_segmenter()
        with torch.no_grad():
            logits = segmenter(images, points, labels)
    answers = (logits > 0).numpy()
    share = mask_iou(answers, masks.numpy())
    height, width = masks.shape[1:]
    column, row = (points[..., 0] * width).long(), (points[..., 1] * height).long()
    hit = masks[torch.arange(len(masks))[:, None], row.clamp(max=height - 1), column.clamp(max=width - 1)]
    return {
        "iou": float(share.mean()),
        "half": 100 * float((share >= 50).mean()),
        "hits": 100 * float(hit[labels == 1].float().mean()),
        "images": len(masks),
    }


@torch.no_grad()
def _heat(pair: ImageText, images: Tensor, words: Sequence[str], background: Sequence[str]) -> Tensor:
    """Heat of the patches of images, (N, P)."""
    known = {word: pair.encode_texts([word]) for word in dict.fromkeys(words)}
    behind = pair.encode_texts(list(background))
    tokens = torch.cat([pair.patches(part) for part in images.split(BATCH)])
    return torch.stack([heat_map(z, known[w], behind) for z, w in zip(tokens, words, strict=True)])


def _points_of(
    work: Workspace, images: Tensor, masks: Tensor, words: Sequence[str], background: Sequence[str]
) -> tuple[Tensor, Tensor]:
    """The points of a method; those of the first round for GenSAM."""
    p, n = work.parameters, len(images)
    if p["method"] in ("gensam", "heat"):
        return heat_points(_heat(_taught(work), images, words, background), p["points"])
    if p["method"] == "centre":
        return torch.full((n, 1, 2), 0.5), torch.ones(n, 1, dtype=torch.int64)
    if p["method"] == "random":
        draws = [torch.rand(GRID**2, generator=generator(p["seed"], i, "points")) for i in range(n)]
        return heat_points(unit_range(torch.stack(draws)), p["points"])
    points, labels = [], []
    for i, mask in enumerate(masks):  # "labels": places in the mask and beside it
        draw, some = generator(p["seed"], i, "points"), []
        for inside in (mask, ~mask):
            places = inside.nonzero()
            chosen = places[torch.randint(len(places), (p["points"],), generator=draw)]
            some.append((chosen.flip(1).float() + 0.5) / torch.tensor([mask.shape[1], mask.shape[0]]))
        points.append(torch.cat(some))
        labels.append(torch.tensor([1] * p["points"] + [0] * p["points"]))
    return torch.stack(points), torch.stack(labels)
