"""Source models by name: what they are, where their weights come from, and what they scored."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from testtime.errors import unknown_name
from testtime.intake.views import Views
from testtime.models.digits import DigitsCNN
from testtime.models.mobilenet import MobileNet
from testtime.models.preprocessed import Preprocessed
from testtime.models.resnet import ResNet
from testtime.models.resnet_cifar import ResNetCIFAR
from testtime.models.weights import load_weights
from testtime.models.wide_resnet import WideResNet

RGB = tuple[float, float, float]
IMAGENET: tuple[RGB, RGB] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # mean, std
CENTRED: tuple[RGB, RGB] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
AS_IS: tuple[RGB, RGB] = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
PACKAGED = Path(__file__).parent / "packaged"


@dataclass(frozen=True)
class ModelCard:
    """What is known of a source model.

    Args:
        name: the name that `load_model` takes.
        build: makes the network, without weights and without normalisation.
        classes: number of classes.
        size: height and width of the images, in pixels.
        mean: mean of the normalisation, for images in [0, 1].
        std: standard deviation of the normalisation.
        accuracy: accuracy in percent on the clean test set of its training data, as stated by the origin.
        licence: licence of the weights.
        origin: address at which the weights are published.
        packaged: file name of weights that come with the package, if any.
        views: the changes of an image that keep its class.
        published: name of the published file of weights without its ending, where it is not the model's.
    """

    name: str
    build: Callable[[], nn.Module]
    classes: int
    size: int
    mean: RGB
    std: RGB
    accuracy: float
    licence: str
    origin: str
    packaged: str | None = None
    views: Views = Views()  # noqa: RUF009 - a frozen value
    published: str = ""


def _resnet_cifar(depth: int, accuracy: float) -> ModelCard:
    name = f"cifar10-resnet{depth}"
    build = partial(ResNetCIFAR, depth)
    origin = f"github.com/akamaster/pytorch_resnet_cifar10, pretrained_models/resnet{depth}.th"
    return ModelCard(name, build, 10, 32, *IMAGENET, accuracy, "BSD-2-Clause", origin)


def _resnet(depth: int, accuracy: float) -> ModelCard:
    name = f"imagenet-resnet{depth}"
    build = partial(ResNet, depth)
    origin = f"pytorch.org, torchvision resnet{depth} weights IMAGENET1K_V1"
    return ModelCard(name, build, 1000, 224, *IMAGENET, accuracy, "BSD-3-Clause", origin)


def _wide(name: str, depth: int, widen: int, classes: int, accuracy: float, entry: str) -> ModelCard:
    mean, std = AS_IS if entry == "Standard" else CENTRED
    build = partial(WideResNet, depth, widen, classes)
    origin = f"robustbench.github.io, cifar{classes}, corruptions, {entry}"
    return ModelCard(name, build, classes, 32, mean, std, accuracy, "MIT", origin)


_CARDS = [
    _resnet_cifar(20, 91.73),
    ModelCard(
        "cifar10-resnet20-augmix",
        partial(ResNetCIFAR, 20),
        10,
        32,
        *IMAGENET,
        90.56,
        "BSD-2-Clause",
        "cifar10-resnet20, trained on with AugMix: scripts/train_source.py augmix",
        "cifar10_resnet20_augmix.safetensors",
    ),
    _resnet_cifar(32, 92.63),
    _resnet_cifar(44, 93.10),
    _resnet_cifar(56, 93.39),
    _resnet_cifar(110, 93.68),
    _wide("cifar10-wrn40-2-augmix", 40, 2, 10, 95.08, "Hendrycks2020AugMix_WRN"),
    _wide("cifar100-wrn40-2-augmix", 40, 2, 100, 76.28, "Hendrycks2020AugMix_WRN"),
    _wide("cifar10-wrn28-10", 28, 10, 10, 94.78, "Standard"),
    _resnet(18, 69.76),
    _resnet(34, 73.31),
    _resnet(50, 76.13),
    _resnet(101, 77.37),
    _resnet(152, 78.31),
    ModelCard(
        "imagenet-mobilenet-x0.25",
        MobileNet,
        1000,
        224,
        *IMAGENET,
        46.75,
        "MIT",
        "github.com/biubug6/Pytorch_Retinaface, model_best.pth.tar",
        published="imagenet_mobilenetv1_x0.25",
    ),
    ModelCard(
        "digits-cnn",
        DigitsCNN,
        10,
        32,
        *CENTRED,
        98.33,
        "Apache-2.0",
        "scripts/train_source.py digits",
        "digits_cnn.safetensors",
        Views(mirror=False, shift=1 / 16),
    ),
]

MODELS: dict[str, ModelCard] = {card.name: card for card in _CARDS}
"""The models by name."""


def model_card(name: str) -> ModelCard:
    """Return what is known of the model of this name.

    Args:
        name: a key of `MODELS`.

    Raises:
        ValueError: if there is no such model; it lists the names.

    >>> model_card("cifar10-resnet20").accuracy
    91.73
    """
    if name not in MODELS:
        raise unknown_name("model", name, MODELS)
    return MODELS[name]


def build_model(name: str) -> Preprocessed:
    """Return the architecture of this name with its normalisation, its invariances and random weights.

    Args:
        name: a key of `MODELS`.

    Raises:
        ValueError: if there is no such model.
    """
    card = model_card(name)
    return Preprocessed(card.build(), card.mean, card.std, card.views)


def load_model(name: str, path: str | Path | None = None, device: torch.device | str = "cpu") -> Preprocessed:
    """Return a source model in eval mode that takes (N, 3, size, size) images in [0, 1] and returns logits.

    Args:
        name: a key of `MODELS`.
        path: its weights (.safetensors or .npz); may be left out for a model that comes with the package.
        device: device of the model.

    Raises:
        ValueError: if there is no such model, or it needs a path and has none; the message says where to get
            it.
        WeightsError: if the file cannot be read or does not fit.

    >>> logits = load_model("digits-cnn")(torch.zeros(1, 3, 32, 32))
    >>> tuple(logits.shape)
    (1, 10)
    """
    card = model_card(name)
    if path is None and card.packaged is None:
        raise ValueError(
            f"{name} needs the path of its weights; they are published at {card.origin} ({card.licence});"
            " convert a .pth file once with: python -m testtime.models.convert in.pth out.safetensors"
        )
    model = build_model(name)
    load_weights(model, PACKAGED / str(card.packaged) if path is None else path)
    return model.to(device)


def source_digits(device: torch.device | str = "cpu") -> Preprocessed:
    """Return the packaged source model of the embedded default: handwritten digits, 10 classes, 32x32.

    Args:
        device: device of the model.
    """
    return load_model("digits-cnn", device=device)
