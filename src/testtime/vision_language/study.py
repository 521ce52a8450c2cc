"""The unit of an evaluation: a method on the stand-in pair follows the images of one domain."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, final

import numpy as np
import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.corruptions import CORRUPTIONS, corrupt
from testtime.data import imagenet, imagenet_names, pacs, sha256_of
from testtime.data.folders import PACS_DOMAINS
from testtime.data.imageset import ImageSet
from testtime.errors import check_name
from testtime.intake.arguments import Positive
from testtime.metrics import calibration_error
from testtime.models.minilm import minilm_folder
from testtime.parts import augmix
from testtime.plugins import resolve
from testtime.vision_language.conse import conse_pair
from testtime.vision_language.pair import ImageText
from testtime.vision_language.prompted import embedded_views, logits_of
from testtime.vision_language.views import ViewMaker
from testtime.vision_language.zero_shot import ENSEMBLE, ZeroShot, zero_shot_of

if TYPE_CHECKING:
    from testtime.experiments import Workspace

__all__ = ["WEIGHTS", "MeanOfViews", "augmix_views", "chosen_images", "classify", "facts_of"]

WEIGHTS = "imagenet_mobilenetv1_x0.25.safetensors"
TEMPLATE = "a photo of a {}."
SIDE = 224
TOP, REWARD_TOP = 10, 30  # classes that an image is made of, in the model and in the reward model


@final
class MeanOfViews(Adapter):
    """The mean prediction of the image and all of its views: views without selection and without learning.

    Args:
        model: a :class:`testtime.vision_language.ZeroShot`.
        views: number of views with the image itself.
        share: not used, so that its row has the settings of the others.
        augment: function of (images, number, generator) that yields batches of views.
        seed: random seed of the views.
    """

    name, label = "mean-of-views", "mean of views"
    needs = ("classifier", "image-text", "images")
    stochastic = True
    episodic = True

    def __init__(
        self,
        model: nn.Module,
        views: Positive = 64,
        share: Annotated[float, 0] = 1.0,
        augment: ViewMaker | None = None,
        seed: int = 0,
    ) -> None:
        zero_shot_of(model)
        super().__init__(model, seed)
        self.views, self.share, self.augment, self.cost = views, share, augment, (views, 0)

    def _predict_batch(self, x: Tensor) -> Tensor:
        model = zero_shot_of(self.model)
        features = embedded_views(self.model, x, self.views, self.seed, self.augment)
        with torch.no_grad():
            return logits_of(model, features).softmax(2).mean(1).clamp_min(1e-7).log()

    def step(self, x: Tensor) -> Tensor:
        return self._predict_batch(x)


def augmix_views(x: Tensor, number: int, rng: torch.Generator) -> Iterator[Tensor]:
    """Yield AugMix views of images: the stand-in for the views that a diffusion model makes."""
    for _ in range(number):
        yield augmix(x, rng)


def facts_of(given: Mapping[str, Any], data: str) -> dict[str, str]:
    """Return the digests of the weights of the pair.

    Raises:
        DataError: the weights of the image encoder are not there.
        ImportError: the text encoder is not installed.
    """
    from testtime.data.files import need_file

    weights = need_file(Path(data) / "weights" / WEIGHTS, "the weights of the small MobileNet of ImageNet")
    return {"images": sha256_of(weights), "texts": sha256_of(minilm_folder() / "model.safetensors")}


@cache
def _pair(data: str, top: int) -> ImageText:
    return conse_pair(Path(data) / "weights" / WEIGHTS, template=TEMPLATE, top=top)


@cache
def _classifier(data: str, top: int, names: tuple[str, ...], template: str | tuple[str, ...]) -> ZeroShot:
    """The zero-shot classifier of some names: a thousand texts are encoded once in a process."""
    return ZeroShot(_pair(data, top), names, template)


@cache
def _imageset(name: str, domain: str, data: str) -> ImageSet:
    return pacs(data, domain) if name == "pacs" else imagenet(Path(data) / "imagenet")


APART = {134: "crane bird", 264: "Cardigan Welsh corgi", 517: "construction crane", 639: "tank suit maillot"}
"""Names of the classes of ImageNet that share theirs with another class, but for capitals."""


def chosen_images(p: Mapping[str, Any], data: str) -> tuple[ImageSet, tuple[str, ...]]:
    """Return the images of a unit in random order, and the names of their classes.

    Args:
        p: parameters of the unit: ``data``, ``domain``, ``images``, ``classes``.
        data: folder of data sets.

    Raises:
        ValueError: there is no such data set, domain or corruption.
        DataError: the images are not there.
    """
    check_name("data set", p["data"], ("pacs", "imagenet"))
    known = PACS_DOMAINS if p["data"] == "pacs" else ("clean", *CORRUPTIONS)
    check_name(f"domain of {p['data']}", p["domain"], known)
    found = _imageset(p["data"], p["domain"] if p["data"] == "pacs" else "clean", data)
    names = found.classes if p["data"] == "pacs" else _names_apart()
    labels = np.asarray(found.labels)
    if p["classes"]:  # evenly spaced classes, as far as there are so many
        kept = np.unique(np.linspace(0, len(names) - 1, p["classes"]).round().astype(int))
        found = found.subset(np.flatnonzero(np.isin(labels, kept)))
        names = tuple(names[i] for i in kept)
    order = np.random.default_rng(0).permutation(len(found))[: p["images"]]
    return found.subset(order), names


def _names_apart() -> tuple[str, ...]:
    return tuple(APART.get(i, name) for i, name in enumerate(imagenet_names()))


def classify(work: Workspace) -> dict[str, Any]:
    """Let an adapter predict the images of a domain batch by batch, and score its answers."""
    p, data = work.parameters, work.places["data"]
    images, names = chosen_images(p, data)
    top = REWARD_TOP if p.get("pair") == "reward" else TOP
    model = _classifier(data, top, names, ENSEMBLE if p["templates"] == "ensemble" else TEMPLATE)
    adapter = _adapter(p, model, data)
    counted = _counted(adapter)
    labels = _labels(images, names, p)
    logits = []
    for first in range(0, len(images), p["batch"]):
        index = range(first, min(first + p["batch"], len(images)))
        x = images.batch(index, size=SIDE if p["data"] == "imagenet" else None)
        if p["domain"] in CORRUPTIONS:
            x = corrupt(x, p["domain"], p["severity"], seeds=torch.tensor(list(index)))
        logits.append(adapter(x).detach().as_subclass(Tensor).float())
        work.progress(index.stop, len(images))
    probabilities = torch.cat(logits).softmax(1)
    confidence, predicted = probabilities.max(1)
    right = predicted.numpy() == labels
    return {
        "accuracy": float(100 * right.mean()),
        "ece": calibration_error(confidence.numpy(), right),
        "images": len(labels),
        "forwards": counted["images"] / len(labels),
        "texts": counted["texts"] / len(labels),
    }


def _labels(images: ImageSet, names: tuple[str, ...], p: Mapping[str, Any]) -> np.ndarray:
    labels = np.asarray(images.labels)
    if not p["classes"]:
        return labels
    full = images.classes
    kept = np.unique(np.linspace(0, len(full) - 1, p["classes"]).round().astype(int))
    return np.searchsorted(kept, labels)


def _counted(adapter: Adapter) -> dict[str, int]:
    """Counts of the images and of the prompts that pass through the encoders from now on."""
    counts, pair = {"images": 0, "texts": 0}, zero_shot_of(adapter).pair

    def count(name: str) -> Any:
        def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            counts[name] += len(inputs[0])

        return add

    for name, module in (("images", pair.images), ("texts", pair.texts)):
        module.register_forward_hook(count(name))
    return counts


def _adapter(p: Mapping[str, Any], model: ZeroShot, data: str) -> Adapter:
    """The adapter of a unit."""
    import testtime.methods

    cls = resolve(p["method"]) if ":" in p["method"] else getattr(testtime.methods, p["method"])
    takes = inspect.signature(cls).parameters
    given = {name: p[name] for name in ("views", "share", "seed", "tunes") if name in takes and name in p}
    if p.get("stand_in") == "generate":
        given |= {
            "generate": augmix_views,
            "generated": p["views"] // 2,
            "views": p["views"] - p["views"] // 2,
        }
    if p.get("stand_in") == "reward":
        given["reward"] = _pair(data, REWARD_TOP)
    return cls(model, **given)
