"""Models that are known to return logits for each pixel before they are run."""

from __future__ import annotations

from typing import Any

from torch import nn

from testtime.intake.outputs import FOR_PIXELS, Logits

__all__ = ["is_dense", "refuse_dense"]

# Layers whose output is never (N, C), and layers whose output has the dimensions of their input.
SPATIAL = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.Upsample,
    nn.UpsamplingNearest2d,
    nn.UpsamplingBilinear2d,
    nn.PixelShuffle,
)
SAME_DIMENSIONS = (nn.Identity, nn.Dropout, nn.Dropout2d)


def is_dense(model: nn.Module, outputs: Any = None) -> bool:
    """Whether the model certainly returns logits (N, C, H, W); False where that is not certain.

    Certain are ``...ForSemanticSegmentation`` of transformers, the segmentation models of torchvision, those of
    segmentation_models_pytorch without a classification head, and an ``nn.Sequential`` that ends in a convolution or an
    upsampling. A class that overrides their forward, a forward hook and a function as ``outputs`` may make anything of it.

    Args:
        model: the network, also inside :class:`testtime.intake.outputs.Logits` and :class:`testtime.models.Preprocessed`.
        outputs: which part of the model's output the logits are, as :class:`testtime.intake.outputs.Logits` takes it.

    >>> pixels = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 5, 1))
    >>> is_dense(pixels), is_dense(nn.Sequential(pixels, nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    (True, False)
    """
    if callable(outputs):
        return False
    last = _last(model)
    return last is not None and (_runs_as(last, SPATIAL) or _of_a_library(last))


def refuse_dense(method: str, model: nn.Module) -> None:
    """Refuse a model that is known to return logits for each pixel, for a method that works on logits (N, C).

    Args:
        method: name of the method, for the message.
        model: the tree that the method adapts.

    Raises:
        ValueError: the model is one of those of :func:`is_dense`.
    """
    gives_features = isinstance(model, Logits) and model.gives_features
    if not gives_features and is_dense(model, getattr(model, "outputs", None)):
        network = model.network if isinstance(model, Logits) else model
        raise ValueError(
            f"{method} works on logits (N, C), and this {type(network).__name__} returns logits for each pixel, "
            f"(N, C, H, W); {FOR_PIXELS}; a classifier ends in a pooling and nn.Flatten(), or outputs= is a function that "
            "makes (N, C) of its output"
        )


def _last(model: nn.Module) -> nn.Module | None:
    """The module that makes the output, but for its dropout; None where that is not certain."""
    if model._forward_hooks or "forward" in vars(model):
        return None
    if _runs_as(model, (Logits,)):
        return _last(model.get_submodule("network"))
    if "wrapped" in vars(type(model)):  # Preprocessed
        return _last(model.get_submodule(vars(type(model))["wrapped"]))
    if _runs_as(model, (nn.Sequential,)):
        for layer in reversed(list(model.children())):
            if layer._forward_hooks or "forward" in vars(layer):
                return None
            if not _runs_as(layer, SAME_DIMENSIONS):
                return _last(layer)
        return None
    return model


def _runs_as(module: nn.Module, kinds: tuple[type[nn.Module], ...]) -> bool:
    """Whether the module runs the forward of one of these classes, as subclasses without a forward of their own do."""
    return any(isinstance(module, kind) and type(module).forward is kind.forward for kind in kinds)


def _of_a_library(model: nn.Module) -> bool:
    """Whether the forward of the model is that of a known class, by names, so that no library need be imported."""
    owner = next(kind for kind in type(model).__mro__ if "forward" in vars(kind))
    library = owner.__module__.split(".")
    if library[0] == "transformers":
        return owner.__name__.endswith("ForSemanticSegmentation")
    if library[0] == "segmentation_models_pytorch":
        return hasattr(model, "segmentation_head") and getattr(model, "classification_head", None) is None
    return library[:3] == ["torchvision", "models", "segmentation"] and owner.__name__ in (
        "_SimpleSegmentationModel",
        "LRASPP",
    )
