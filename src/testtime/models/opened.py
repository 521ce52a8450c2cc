"""A source model by one word: a name of this library, a file of weights, an own function, a model of timm or Hugging Face."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from testtime.data import ImageSet, sha256_of
from testtime.errors import DataError, WeightsError, need_packages
from testtime.intake.fingerprint import fingerprint
from testtime.intake.views import Views, views_of
from testtime.models.preprocessed import Preprocessed
from testtime.models.weights import classifier_name, load_weights, read_weights, strip_prefixes
from testtime.models.zoo import MODELS, ModelCard, load_model, model_card
from testtime.plugins import located, resolve

__all__ = ["OpenedModel", "find_weights", "open_model"]

KINDS = "a name of this library, a file of weights, timm:NAME, hf:NAME, or package.module:function"


@dataclass(frozen=True)
class OpenedModel:
    """A source model in evaluation mode, and what an experiment needs to know of it.

    Attributes:
        model: network that takes images (N, 3, H, W) in [0, 1] and returns logits.
        name: short name.
        classes: number of classes.
        side: height and width of its images in pixels; None where it takes any.
        digest: identity of its weights: SHA-256 of the file, "packaged", or a fingerprint of the values.
    """

    model: nn.Module
    name: str
    classes: int
    side: int | None
    digest: str

    @property
    def views(self) -> Views:
        """The changes of an image that keep its class; all, where the model declares nothing."""
        return views_of(self.model) or Views()

    def check_classes(self, images: ImageSet) -> int:
        """Return the number of classes of an image set, which is that of the model's outputs.

        Raises:
            DataError: it is not.
        """
        if len(images.classes) != self.classes:
            raise DataError(
                f"expected {self.classes:,} classes of {images.name}, as many as {self.name} has outputs, found "
                f"{len(images.classes):,} ({', '.join(images.classes[:3])}, ...): their numbers would not be those of the "
                "outputs; name the class folders of ImageNet by wnids, bring the folders of all classes, or give a --model of "
                "these classes"
            )
        return self.classes


def open_model(name: str, folder: str | Path = ".") -> OpenedModel:
    """Open a source model.

    Args:
        name: key of :data:`testtime.models.MODELS`; path of a ``.safetensors`` or ``.npz`` file, whose architecture is the one
            of this library with tensors of the same names and shapes, of any number of classes; ``timm:NAME``; ``hf:NAME``, a
            name or folder of Hugging Face's transformers; or ``package.module:function``, a function without arguments that
            returns a network for images in [0, 1], which may declare its ``image_size``.
        folder: folder in which the weights of a named model are searched.

    Raises:
        ValueError: there is no such model.
        ImportError: timm, transformers or the own package is not installed; the message says how to install it.
        DataError: the weights of a named model are not there.
        WeightsError: the file cannot be read, or fits no architecture.
    """
    kind, colon, rest = name.partition(":")
    path = Path(name)
    if path.is_file() or path.suffix.lower() in (".safetensors", ".npz", ".pt", ".pth", ".ckpt", ".bin"):
        return _from_file(path)
    if kind == "timm" and colon:
        return _from_timm(rest)
    if kind == "hf" and colon:
        return _from_transformers(rest)
    if colon:
        return _from_function(kind, rest)
    try:
        card = model_card(name)
    except ValueError as error:
        raise ValueError(f"{error}; expected {KINDS}") from None
    weights = find_weights(name, folder)
    digest = "packaged" if weights is None else sha256_of(weights)
    return OpenedModel(load_model(name, weights), name, card.classes, card.size, digest)


def find_weights(model: str, folder: str | Path) -> Path | None:
    """Return the file of weights of a named model, in ``weights/`` of a folder or in it; None where they come with the package.

    Raises:
        ValueError: there is no such model.
        DataError: they are not there.
    """
    card = model_card(model)
    if card.packaged:
        return None
    stem = model.replace("-", "_")
    for place in (Path(folder) / "weights", Path(folder)):
        for path in sorted(place.glob("*.safetensors")):
            if path.stem.replace("-", "_") in (stem, card.published):
                return path
    wanted = Path(folder) / "weights" / f"{stem}.safetensors"
    raise DataError(
        f"{wanted}: no weights of {model} there; they are published at {card.origin} ({card.licence}); "
        "convert them with: python -m testtime.models.convert in.pth out.safetensors"
    )


def _from_file(path: Path) -> OpenedModel:
    state = {
        name: value
        for name, value in read_weights(path).items()
        if name.split(".")[-1] not in ("mu", "sigma")
    }
    first = sorted(
        MODELS.values(), key=lambda card: card.name.replace("-", "_") != path.stem.replace("-", "_")
    )
    for card in first:
        classes = _classes_of(card, state)
        if classes is not None:
            inner = card.build()
            if classes != card.classes:
                _set_classes(inner, classes)
            model = load_weights(Preprocessed(inner, card.mean, card.std, card.views), path)
            return OpenedModel(model, path.stem, classes, card.size, sha256_of(path))
    raise WeightsError(
        f"{path}: its tensors are those of no architecture of this library ({', '.join(MODELS)}); write a function that builds "
        "the network and loads them, and name it as package.module:function"
    )


def _classes_of(card: ModelCard, state: Mapping[str, Tensor]) -> int | None:
    """The number of classes with which an architecture has the tensors of a file; None if it has others."""
    with torch.device("meta"):
        inner = card.build()
    own, last = inner.state_dict(), classifier_name(inner)
    try:
        found = strip_prefixes(state, own)
    except WeightsError:
        return None
    needed = {name for name in own if not name.endswith("num_batches_tracked")}
    if not needed <= found.keys() <= own.keys():
        return None
    for name in needed:
        skip = 1 if name in (f"{last}.weight", f"{last}.bias") else 0
        if found[name].shape[skip:] != own[name].shape[skip:]:
            return None
    return len(found[f"{last}.weight"])


def _set_classes(model: nn.Module, classes: int) -> None:
    """Give the last linear layer another number of classes."""
    name = classifier_name(model)
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear)
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, nn.Linear(layer.in_features, classes, layer.bias is not None))


def _from_timm(name: str) -> OpenedModel:
    if find_spec("timm") is None:
        raise ImportError(f"timm:{name} needs the package timm: pip install timm torchvision")
    import timm

    model = timm.create_model(name, pretrained=True)
    facts = timm.data.resolve_model_data_config(model)
    wrapped = Preprocessed(model, facts["mean"], facts["std"]).eval()
    return OpenedModel(
        wrapped, name, model.num_classes, facts["input_size"][-1], fingerprint(wrapped).weights
    )


class _Logits(nn.Module):
    """Returns the logits of a model of transformers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x).logits
        return logits


def _from_transformers(name: str) -> OpenedModel:
    need_packages(transformers="interop")
    import transformers

    model = transformers.AutoModelForImageClassification.from_pretrained(name, use_safetensors=True)
    facts = transformers.AutoImageProcessor.from_pretrained(name).to_dict()
    size = facts.get("crop_size") or facts["size"]
    side = size.get("height") or size.get("shortest_edge")
    wrapped = Preprocessed(_Logits(model), facts["image_mean"], facts["image_std"]).eval()
    short = name.rstrip("/").rpartition("/")[2]
    return OpenedModel(wrapped, short, model.config.num_labels, side, fingerprint(wrapped).weights)


def _from_function(module: str, name: str) -> OpenedModel:
    try:
        build: Callable[[], Any] = resolve(f"{module}:{name}")
    except ImportError as error:
        raise ImportError(f"{module}:{name} cannot be imported ({error}); expected {KINDS}") from error
    try:
        model = build()
    except Exception as error:  # the user's own code may raise anything
        raise ValueError(f"{module}:{name}() fails with {located(error)}") from error
    if not isinstance(model, nn.Module):
        raise ValueError(f"{module}:{name}() returned {type(model).__name__}, expected a torch.nn.Module")
    found = fingerprint(model.eval())
    return OpenedModel(model, name, found.outputs, getattr(model, "image_size", None), found.weights)
