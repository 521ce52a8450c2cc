"""Measures of a tokenizer: what is lost when frames are encoded and decoded, and how well its codes are used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

from testtime.space.modalities import Modality

__all__ = ["TokenizerReport", "best_constant", "perplexity", "reconstruction_error"]

UNITS = {"image": "mse", "classes": "% wrong", "features": "1 - cosine"}
"""Unit of the reconstruction error by kind of modality."""


@final
@dataclass(frozen=True)
class TokenizerReport:
    """Quality of a tokenizer on some frames.

    Attributes:
        modality: name of the modality.
        kind: kind of quantiser, "vq" or "fsq".
        unit: unit of the errors: "mse" in the normalised range (images), "% wrong" pixels (classes) or "1 - cosine" (features).
        error: error of frames that are encoded and decoded.
        constant: error of the best prediction that is the same for all frames and pixels, for comparison.
        vocabulary: number of codes.
        perplexity: exp(H) of the codes of all tokens; at most ``vocabulary``.
        used: fraction of the codes that occur at all.
    """

    modality: str
    kind: str
    unit: str
    error: float
    constant: float
    vocabulary: int
    perplexity: float
    used: float

    def __str__(self) -> str:
        return (
            f"{self.modality} ({self.kind}): {self.unit} {self.error:.4g} (a constant: {self.constant:.4g}), perplexity "
            f"{self.perplexity:.0f} of {self.vocabulary}, {self.used:.0%} of the codes used"
        )


def perplexity(ids: Tensor, vocabulary: int) -> float:
    r"""Compute :math:`\exp(-\sum_k p_k \log p_k)` of the frequencies of ids.

    Args:
        ids: ids of any shape.
        vocabulary: number of codes.

    >>> perplexity(torch.tensor([0, 1, 1, 0]), 512)
    2.0
    """
    share = torch.bincount(ids.flatten(), minlength=vocabulary).double() / ids.numel()
    return float(torch.special.entr(share).sum().exp())


def reconstruction_error(modality: Modality, prediction: Tensor, target: Tensor) -> float:
    """Compute the error of decoded frames, in the unit of the report.

    Args:
        modality: modality of the frames.
        prediction: decoded frames.
        target: frames.
    """
    if modality.kind == "classes":
        known = target < modality.channels
        return 100 * float((prediction != target)[known].float().mean())
    if modality.kind == "features":
        return 1 - float(F.cosine_similarity(prediction, target).mean())
    return float(F.mse_loss(prediction, target))


def best_constant(modality: Modality, target: Tensor) -> Tensor:
    """Return the constant prediction with the lowest error, in the shape of the frames.

    Args:
        modality: modality of the frames.
        target: frames.
    """
    if modality.kind == "classes":
        counts = target.flatten().bincount(minlength=modality.channels)
        return counts[: modality.channels].argmax().expand_as(target)
    unit = F.normalize(target, dim=1) if modality.kind == "features" else target
    return unit.mean((0, 2, 3), keepdim=True).expand_as(target)
