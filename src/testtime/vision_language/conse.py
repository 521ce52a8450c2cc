r"""ConSE: an image encoder made of a classifier and the embeddings of its class names.

.. math:: f(x) = \frac{1}{Z} \sum_{c \in T} p_c(x) \, g(\text{name}_c), \qquad Z = \sum_{c \in T} p_c(x)

with the T most probable of the classifier's classes. So any classifier with named classes and any text encoder are a pair,
without being trained together: the real stand-in for CLIP where CLIP's weights are not at hand.

Reference: Norouzi et al., Zero-Shot Learning by Convex Combination of Semantic Embeddings, ICLR 2014.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.data.folders import imagenet_names
from testtime.models.minilm import load_minilm
from testtime.models.mobilenet import MobileNet
from testtime.models.zoo import load_model
from testtime.vision_language.pair import ImageText

__all__ = ["ENCODER", "ConSE", "conse_pair"]

ENCODER = "imagenet-mobilenet-x0.25"
"""Name of the classifier, as :func:`testtime.models.load_model` takes it."""
SCALE = 20.0
"""Scale of the cosine of a ConSE pair; its embeddings were not trained with one."""


@final
class ConSE(nn.Module):
    """The image encoder of ConSE.

    Args:
        classifier: module (N, 3, H, W) in [0, 1] -> logits (N, C).
        names: (C, D) embeddings of its class names.
        top: T, number of the most probable classes that take part.
        size: height and width that the classifier takes, in pixels; None for any.

    ``patches(x)`` embeds the logits at each location of the last feature map, where the classifier has a method
    ``local(x)`` -> (N, C, H', W'), or is a MobileNet.

    >>> encoder = ConSE(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), torch.eye(4), top=2)
    >>> [round(total, 4) for total in encoder(torch.rand(3, 3, 2, 2)).sum(1).tolist()]
    [1.0, 1.0, 1.0]
    """

    names: Tensor

    def __init__(self, classifier: nn.Module, names: Tensor, top: int = 10, size: int | None = None) -> None:
        super().__init__()
        if names.dim() != 2 or not 1 <= top <= len(names):
            raise ValueError(
                f"expected the embeddings of the class names (C, D) and top from 1 to C, got {tuple(names.shape)}, {top}"
            )
        self.classifier, self.top, self.size = classifier, top, size
        self.register_buffer("names", names.detach().clone(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings (N, D) of images."""
        return self.embedded(self.logits(x))

    def logits(self, x: Tensor) -> Tensor:
        """Return the logits (N, C) of the classifier."""
        return self.classifier(self._sized(x))

    def patches(self, x: Tensor) -> Tensor:
        """Return the embeddings (N, P, D) of the locations of the last feature map."""
        y = _local(self.classifier, self._sized(x))
        return self.embedded(y.flatten(2).transpose(1, 2))

    def embedded(self, logits: Tensor) -> Tensor:
        """Return the embeddings (..., D) of logits (..., C)."""
        p, chosen = logits.softmax(-1).topk(self.top, dim=-1)
        p = p / p.sum(-1, keepdim=True)
        return (p[..., None] * self.names[chosen]).sum(-2)

    def _sized(self, x: Tensor) -> Tensor:
        if self.size is None or x.shape[-2:] == (self.size, self.size):
            return x
        return F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)


def _local(classifier: nn.Module, x: Tensor) -> Tensor:
    """The logits (N, C, H', W') at each location of the last feature map.

    Raises:
        TypeError: the classifier does not say how.
    """
    network = getattr(classifier, "model", classifier)
    if callable(own := getattr(classifier, "local", None)):
        return own(x)
    if not isinstance(network, MobileNet):
        raise TypeError(
            f"{type(network).__name__} has no method local(x) -> logits (N, C, H', W') of each location; give the classifier "
            "one, or use a MobileNet"
        )
    if network is not classifier:
        x = (x - classifier.mean) / classifier.std  # type: ignore[operator]
    features = network.stage3(network.stage2(network.stage1(x)))
    return F.conv2d(features, network.fc.weight[..., None, None], network.fc.bias)


def conse_pair(
    weights: str | Path,
    text: str | Path | None = None,
    *,
    names: Sequence[str] | None = None,
    template: str = "{}",
    top: int = 10,
    scale: float = SCALE,
) -> ImageText:
    """Return the pair of the small MobileNet of ImageNet and all-MiniLM-L6-v2.

    Args:
        weights: file of the MobileNet's weights, ``imagenet_mobilenetv1_x0.25.safetensors``.
        text: folder of the text encoder; None for the installed package, see :func:`testtime.models.minilm.minilm_folder`.
        names: names of the 1,000 classes; None for their first names in WordNet.
        template: text around a name for its embedding.
        top: number of the most probable classes that an image is made of.
        scale: scale of the cosine.

    Raises:
        ImportError: the text encoder or its tokenizer is not installed.
        WeightsError: a file of weights is missing or damaged.
    """
    texts = load_minilm(text)
    classifier = load_model(ENCODER, weights).requires_grad_(False)
    names = imagenet_names() if names is None else names
    with torch.no_grad():
        ids = texts.tokenize([template.replace("{}", name) for name in names])
        found = [texts(texts.embed(part), part) for part in ids.split(256)]
    embedded = F.normalize(torch.cat(found), dim=1)
    return ImageText(ConSE(classifier, embedded, top, size=224), texts, scale).eval()
