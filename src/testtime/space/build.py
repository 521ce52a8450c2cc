"""Models of test-space training from values of JSON, as a checkpoint of them keeps beside its weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from testtime.space import masking
from testtime.space.captioning import Captioner, CaptionVocabulary
from testtime.space.detection import Detector
from testtime.space.dino import SelfDistilled
from testtime.space.foreign import named_encoder
from testtime.space.mae import MaskedAutoencoder, PictureEncoder
from testtime.space.modalities import SENSORY
from testtime.space.model import Encoder, FourM, Size
from testtime.space.segmenter import ConvNeXtHead, PatchEncoder, Segmenter

__all__ = ["encoder_of", "fine_tuned", "initialised"]


def initialised(facts: Mapping[str, Any]) -> Any:
    """Return a model before it has learned anything, the same for the same facts.

    Args:
        facts: "objective": "mm", "mae", "dino", "scratch", or "named" with the "name" of an encoder of another library;
            otherwise "seed", "size" (fields of :class:`~testtime.space.model.Size`), "image" and "patch" in pixels, and by
            objective the "streams" of tokens, the "projection" or the "modalities".
    """
    if facts["objective"] == "named":
        return named_encoder(facts["name"])
    objective, size, seed = facts["objective"], Size(**facts["size"]), facts["seed"]
    image, patch = tuple(facts["image"]), facts["patch"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if objective == "mae":
            return MaskedAutoencoder(size, image, patch, seed=seed)
        if objective == "dino":
            outputs, hidden, bottleneck = facts["projection"]
            return SelfDistilled(size, image, patch, outputs, hidden, bottleneck, crops=4, seed=seed)
        if objective == "mm":
            return FourM([masking.Stream(**stream) for stream in facts["streams"]], size, image, patch)
        if facts["modalities"] == ["rgb"]:
            return PictureEncoder(size, image, patch)
        seen = [SENSORY[name] for name in facts["modalities"]]
        return PatchEncoder(seen, image, patch, size.dim, size.encoder, size.heads)


def encoder_of(model: Any) -> Any:
    """Return the image encoder of a pre-trained model; an encoder is its own."""
    return Encoder(model) if isinstance(model, FourM) else getattr(model, "encoder", model)


def fine_tuned(facts: Mapping[str, Any], encoder: Any) -> nn.Module:
    """Return an encoder with a head, before its training.

    Args:
        facts: "task" ("captions", "boxes", "depth" or "classes"), "seed", arguments of the head under "head", and
            "words" or "classes" where the task has them.
        encoder: image encoder.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(facts["seed"])
        if facts["task"] == "captions":
            return Captioner(encoder, CaptionVocabulary(facts["words"]), *facts["head"])
        if facts["task"] == "boxes":
            return Detector(encoder, facts["classes"], *facts["head"])
        channels = 1 if facts["task"] == "depth" else len(facts["classes"])
        head = ConvNeXtHead(encoder.dim, encoder.grid, channels, *facts["head"])
        return Segmenter(encoder, head)
