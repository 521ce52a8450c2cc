"""The streams and adapters of the family, from the parameters and places of a unit."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from testtime import streams
from testtime.adapter import Adapter
from testtime.build import argument, build_method
from testtime.corruptions import CORRUPTIONS
from testtime.data import ImageSet, from_arrays
from testtime.data.places import Places, image_size, images_of, source_batches
from testtime.experiments.online.stream import difficulty, source_model
from testtime.files import read_array, write_array
from testtime.methods import Source
from testtime.norm import advance, batch_statistics, observing
from testtime.streams import Batch, Domain, Stream, clean, continual, open_set
from testtime.streams.cache import cached
from testtime.streams.domain import derive_seed
from testtime.streams.named import corrupted_domains
from testtime.wrap import Wrapper

__all__ = ["ATTACKS", "STREAMS", "attacked", "make_adapter", "make_stream"]

CHANGES = ("gaussian_noise", "defocus_blur", "fog", "jpeg_compression")  # between a clean beginning and end
ROUNDS, SHARE = 20, 0.05  # repetitions; share of malicious images
PAIRS, TARGET = 60, 0.6  # pairs of severities and accuracy of mini-CCC
STREAMS = {
    "continual": "15 corruptions of severity 5, one after the other",
    "repeated": f"the 15 corruptions, {ROUNDS} times (fewer where a visit were less than a batch)",
    "mini-ccc": f"blends of two corruptions on which the shipped model has {TARGET:.0%}",
    "mixed": "the 15 corruptions in one random order",
    "class-sorted": "one class after the other",
    "dirichlet": "correlated classes, Dirichlet 0.1",
    "imbalance": "one class 100 times as likely as each other",
    "small batches": "batches of 4, then 2, then 1; a quarter of the samples",
    "open set": "one unknown image for each known one",
    "noise": "one image of pure noise for each known one",
    "stuck": "the camera stands still in 8 of 40 batches, copies in 8",
    "poisoned": f"{SHARE:.0%} malicious images of high entropy, made with the shipped model",
}
"""The failure zoo. From "class-sorted" on, the images are clean at first, then under four corruptions, then clean again."""
ATTACKS = {
    "none": "ordinary images in place of the malicious ones",
    "flip": "DIA: benign images of the batch become another class",
    "entropy": "TePA: the entropy of the malicious images is as high as can be",
    "duplicates": "copies of one image that the shipped model confidently gets wrong",
}
"""Kinds of poisoning; "flip" and "entropy" know the adapter's model at the moment of the attack."""
ORDERS: dict[str, Callable[..., Stream]] = {
    "mixed": streams.mixed,
    "class-sorted": partial(streams.label_shift, imbalance=math.inf),
    "dirichlet": partial(streams.correlated, delta=0.1),
    "imbalance": partial(streams.label_shift, imbalance=100.0),
}
Logits = Callable[[Tensor], Tensor]


def make_adapter(p: Mapping[str, Any], places: Places) -> Adapter:
    """Build the adapter of a unit, in its guard if it has one, and let it see its source."""
    found, device = source_model(p["model"], places), torch.device(p["device"])
    adapter = build_method(p, found.model.to(device), found.classes, p["seed"])
    if p["guard"]:
        adapter = argument(p["guard"])(adapter)
    adapter.to(device)
    if adapter.source != "none" or p["guard"]:
        size = image_size(p["closed"], p["side"])
        batches = source_batches(p["closed"], places, p["batch_size"], p["seed"], size)
        adapter.prepare([x.to(device) for x in batches])
    return adapter


def make_stream(p: Mapping[str, Any], places: Places, cache: Path) -> Stream:
    """Build the stream of a unit: ``p["length"]`` samples, to a whole number of batches in each domain.

    A domain whose images are too few for its share comes several times in succession, each time in another order.
    """
    name, length, batch = p["stream"], p["length"], p["batch_size"]
    images, size = images_of(p["closed"], places), image_size(p["closed"], p["side"])
    order = np.random.default_rng(0).permutation(len(images))[: max(length, batch)]
    images = images.subset(np.sort(order))
    if name == "mini-ccc":
        measured, pace = difficulty(p["closed"], p["model"], places, cache), max(batch, length // PAIRS)
        ccc = streams.CCCStream(images, measured, TARGET, pace, batch, CORRUPTIONS, 2, p["seed"])
        return cached(ccc.first(-(-length // batch)), cache)
    domains, limit = _visits(p, images, places, size, cache)
    stream = ORDERS.get(name, continual)(None, domains, batch_size=batch, limit=limit, seed=p["seed"])
    if name == "small batches":
        return streams.rebatched(stream, (4, 2, 1))
    if name == "stuck":
        return streams.stuck(stream)
    if name == "open set":
        return cached(open_set(stream, images_of(p["open_set"], places)), cache)
    if name == "noise":
        return open_set(stream, clean(streams.noise_images(1000, domains[0].shape[0])))
    if name == "poisoned" or name in ATTACKS:
        return open_set(stream, clean(_malicious(p, images, places, size, cache)), SHARE / (1 - SHARE))
    return stream


def _visits(
    p: Mapping[str, Any], images: ImageSet, places: Places, size: Any, cache: Path
) -> tuple[list[Domain], int]:
    """The domains of a stream in their order, rendered, and the images of each visit."""
    name, batch = p["stream"], p["batch_size"]
    whole = name in ("continual", "repeated", "mixed")
    names = CORRUPTIONS if whole else CHANGES
    made = corrupted_domains(p["closed"], places, names, 5, size)[0]
    if len(images) < len(made[0]):  # the stream is shorter than the set
        made = [replace(domain, images=images) for domain in made if not domain.ready] or made
    ends = [] if whole else [clean(images, size)]
    rendered = cached(continual(None, [*ends, *made], batch_size=batch), cache).domains
    rounds = min(ROUNDS, max(2, p["length"] // (len(made) * batch))) if name == "repeated" else 1
    visited = [*rendered, *rendered[: len(ends)]] * rounds
    known = {"open set": 0.5, "noise": 0.5, "poisoned": 1 - SHARE}.get(name, 1 - SHARE * (name in ATTACKS))
    share = known * p["length"] / len(visited) / (4 if name == "small batches" else 1)
    times = math.ceil(share / len(images))
    limit = max(1, round(share / times / (known * batch))) * round(known * batch)
    return [domain for domain in visited for _ in range(times)], min(limit, len(images))


def _malicious(p: Mapping[str, Any], images: ImageSet, places: Places, size: Any, cache: Path) -> ImageSet:
    """The images in the places of the malicious ones: fixed before the stream, as far as they can be."""
    facts = (p["facts"]["weights"], images.digest(), p["stream"], p["steps"])
    path = cache / f"malicious-{derive_seed(*facts):016x}.npy"
    if not path.is_file():
        write_array(path, _made_malicious(p, images, places, size).mul(255).round().to(torch.uint8).numpy())
    pixels = read_array(path, "delete it: it is made again")
    return from_arrays(f"malicious-{p['stream']}", pixels, channels=pixels.shape[1])


def _made_malicious(p: Mapping[str, Any], images: ImageSet, places: Places, size: Any) -> Tensor:
    model = source_model(p["model"], places).model.cpu()
    chosen = np.random.default_rng(1).permutation(len(images))[:200]
    x, y = images.batch(chosen, size), images.targets(chosen)
    if p["stream"] == "duplicates":
        with torch.no_grad():
            answer = model(x).softmax(dim=1)
        wrong = answer.amax(dim=1) * (answer.argmax(dim=1) != y)
        return x[wrong.argmax()][None]
    if p["stream"] == "poisoned":
        logits = differentiable(Source(batch_statistics(model)))
        parts = (streams.poisoned(logits, x[:60], part, "entropy", p["steps"]) for part in x[60:].split(20))
        return torch.cat([*parts])
    return x


def differentiable(adapter: Adapter) -> Logits:
    """Return the logits of an adapter's network on a batch as a function with gradients; the adapter does not change."""
    while isinstance(adapter, Wrapper):
        adapter = adapter.adapter
    model = adapter.model

    def logits(x: Tensor) -> Tensor:
        with observing(model):
            z: Tensor = model(x)
        advance(model, accept=False)
        return z

    return logits


def attacked(adapter: Adapter, batches: Iterator[Batch], kind: str, steps: int) -> Iterator[Batch]:
    """Pass on batches in which the images without a class are optimised against the adapter as it is at that moment."""
    for batch in batches:
        benign = batch.y >= 0
        if kind in ("flip", "entropy") and not bool(benign.all()):
            x = batch.x.clone()
            logits = differentiable(adapter)
            x[~benign] = streams.poisoned(logits, x[benign], x[~benign], kind, steps)  # type: ignore[arg-type]
            batch = replace(batch, x=x)
        yield batch
