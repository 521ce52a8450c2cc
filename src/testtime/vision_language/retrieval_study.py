"""The units of the retrieval study: images with one right caption each, and how often a method finds the right one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from testtime.corruptions import CORRUPTIONS, corrupt
from testtime.files import read_tensors, write_tensors
from testtime.parts import generator
from testtime.vision_language import study
from testtime.vision_language.gallery import ImageGallery
from testtime.vision_language.local_data import FILE, levels
from testtime.vision_language.pair import ImageText
from testtime.vision_language.rlcf import RLCF
from testtime.vision_language.zero_shot import ZeroShot

if TYPE_CHECKING:
    from testtime.experiments import Workspace

__all__ = ["make_pairs", "ranks", "retrieve"]

RANKS = (1, 5, 10)
BATCH = 16


def make_pairs(work: Workspace) -> dict[str, Any]:
    """Write images of ImageNet with the names of their classes, or views of rendered rooms with captions of their objects."""
    p = work.parameters
    images, captions = _rooms(p["images"], p["side"]) if p["domain"] == "rooms" else _named(work)
    write_tensors(work.folder / FILE, {"images": images})
    return {"captions": captions}


def _named(work: Workspace) -> tuple[Tensor, list[str]]:
    """One image (N, 3, S, S), uint8, of each of N evenly spaced classes, corrupted, and their captions."""
    p = work.parameters
    asked = {"data": "imagenet", "domain": p["domain"], "images": p["images"], "classes": p["images"]}
    found, names = study.chosen_images(asked, work.places["data"])
    labels = np.asarray(found.labels)
    kept, first = np.unique(labels, return_index=True)
    x = found.batch(first.tolist(), size=study.SIDE)
    if p["domain"] in CORRUPTIONS:
        x = corrupt(x, p["domain"], p["severity"], seeds=torch.arange(len(x)))
    return (x * 255).round().byte(), [study.TEMPLATE.replace("{}", names[i]) for i in range(len(kept))]


def _rooms(count: int, side: int) -> tuple[Tensor, list[str]]:
    """Rendered views (N, 3, S, S), uint8, whose captions differ, and the captions."""
    from testtime.scenes import Renderer, generate_house
    from testtime.scenes.captions import caption

    images, captions, seed = list[Tensor](), list[str](), 0
    while len(images) < count:
        house = generate_house(seed)
        render = Renderer(house)
        for camera in house.cameras(len(house.rooms), seed):
            frame = render.frame(camera, (side, side))
            text = caption(frame, house)
            if text not in captions and len(images) < count:
                images.append(levels(frame.rgb))
                captions.append(text)
        seed += 1
    return torch.stack(images), captions


def ranks(scores: Tensor) -> dict[str, float]:
    """Return how often the right answer is among the first 1, 5 and 10, in percent; ties count as wrong.

    Args:
        scores: (N, N); the right answer to query i is i.

    >>> ranks(torch.tensor([[2.0, 1.0], [2.0, 1.0]]))
    {'1': 50.0, '5': 100.0, '10': 100.0}
    """
    place = (scores >= scores.diagonal()[:, None]).sum(1)
    return {str(k): 100 * float((place <= k).double().mean()) for k in RANKS}


def retrieve(work: Workspace) -> dict[str, Any]:
    """Rank the captions for each image, and the images for each caption, by a method."""
    p, made = work.parameters, work.needs["data"]
    x = read_tensors(made.folder / FILE)[0]["images"].float() / 255
    captions = made.result["captions"]
    if p["method"] == "random":
        of_images, of_texts = (
            torch.rand(len(x), len(x), generator=generator(p["seed"], k, "ranks")) for k in range(2)
        )
    else:
        pair, reward = (study._pair(work.places["data"], top) for top in (study.TOP, study.REWARD_TOP))
        of_images, of_texts = _scores(work, reward if p["method"] == "reward" else pair, reward, x, captions)
    return {"images": ranks(of_images), "texts": ranks(of_texts), "pairs": len(x)}


def _scores(
    work: Workspace, pair: ImageText, reward: ImageText, x: Tensor, captions: list[str]
) -> tuple[Tensor, Tensor]:
    """The scores (N, N) of captions for images, and of images for captions."""
    p = work.parameters
    model, gallery = ZeroShot(pair, captions, "{}"), ImageGallery(pair, x)
    by_image: Any = model
    by_text: Any = gallery
    if p["method"] == "rlcf":
        about: dict[str, Any] = {"tunes": "encoder", "views": 1, "samples": min(p["samples"], len(x))}
        by_image = RLCF(model, reward, **about)
        by_text = RLCF(gallery, ImageGallery(reward, x), **about)
    of_images, of_texts, ids = list[Tensor](), list[Tensor](), gallery.tokenize(captions)
    with torch.no_grad():
        for part, queries in zip(x.split(BATCH), ids.split(BATCH), strict=True):
            of_images.append(by_image(part).as_subclass(Tensor))
            of_texts.append(by_text(queries).as_subclass(Tensor))
            work.progress(sum(map(len, of_texts)), len(x))
    return torch.cat(of_images), torch.cat(of_texts)
