"""Source models and the loading of public checkpoints; preprocessing and invariances travel with the
weights.

Any ``nn.Module`` works in the library; these are a convenience.
"""

from typing import TYPE_CHECKING

from testtime.lazy import lazily

if TYPE_CHECKING:
    from testtime.intake.views import Views, views_of
    from testtime.models.digits import DigitsCNN
    from testtime.models.mobilenet import MobileNet
    from testtime.models.opened import OpenedModel, open_model
    from testtime.models.preprocessed import Preprocessed, normalised
    from testtime.models.resnet import ResNet
    from testtime.models.resnet_cifar import ResNetCIFAR, resnet20, resnet32, resnet44, resnet56, resnet110
    from testtime.models.weights import load_weights, read_weights
    from testtime.models.wide_resnet import WideResNet
    from testtime.models.zoo import MODELS, ModelCard, build_model, load_model, model_card, source_digits

__all__ = [
    "MODELS",
    "DigitsCNN",
    "MobileNet",
    "ModelCard",
    "OpenedModel",
    "Preprocessed",
    "ResNet",
    "ResNetCIFAR",
    "Views",
    "WideResNet",
    "build_model",
    "load_model",
    "load_weights",
    "model_card",
    "normalised",
    "open_model",
    "read_weights",
    "resnet20",
    "resnet32",
    "resnet44",
    "resnet56",
    "resnet110",
    "source_digits",
    "views_of",
]

__getattr__, __dir__ = lazily(
    __name__,
    {
        "testtime.intake.views": "Views views_of",
        "digits": "DigitsCNN",
        "mobilenet": "MobileNet",
        "opened": "OpenedModel open_model",
        "preprocessed": "Preprocessed normalised",
        "resnet": "ResNet",
        "resnet_cifar": "ResNetCIFAR resnet20 resnet32 resnet44 resnet56 resnet110",
        "weights": "load_weights read_weights",
        "wide_resnet": "WideResNet",
        "zoo": "MODELS ModelCard build_model load_model model_card source_digits",
    },
)
