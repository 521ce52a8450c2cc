r"""Retrieval across modalities: which depth map belongs to this picture? Asked of a model that was not made for it.

From the picture alone, and from the depth map alone, the model predicts the tokens of a feature map; decoded and averaged over
its places, each is one vector, and the nearest by cosine is the answer.

.. math:: \text{R@}k = \frac1N \sum_i \big[\, |\{j : \cos(a_i, b_j) > \cos(a_i, b_i)\}| < k \,\big]

Departure: the paper does not say how tokens are decoded; here all at once, the likeliest of each place.

Reference: Singh, Garjani et al., Multimodality as Supervision, table 2 (features: those of CLIP).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from testtime.space.generate import predicted
from testtime.space.model import FourM
from testtime.space.tokenizers import Tokenizer

__all__ = ["expected_vectors", "recalls"]


def expected_vectors(
    model: FourM,
    features: Tokenizer,
    pixels: Tensor,
    given: tuple[str, Tensor] | None = None,
    batch: int = 64,
) -> Tensor:
    """One vector for each frame, (N, channels): the mean over places of the features that the model expects.

    Args:
        model: pre-trained with the features' stream.
        features: their tokenizer.
        pixels: the pictures (N, 3, H, W) in [0, 1].
        given: a stream and its ids (N, places), shown instead of the pictures.
        batch: frames at once.

    Raises:
        ValueError: the model has not these streams.
    """
    found = []
    for i in range(0, len(pixels), batch):
        here = None if given is None else (given[0], given[1][i : i + batch])
        ids = predicted(model, f"tok_{features.modality.name}", pixels[i : i + batch], given=here)
        found.append(features.decode(ids).flatten(2).mean(2))
    return torch.cat(found)


def recalls(queries: Tensor, answers: Tensor, ranks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """R@k in percent, for each k: how often the own answer is among the k nearest, ties counted against it.

    Args:
        queries, answers: vectors (N, C), those of a row belonging together.
        ranks: the k.

    >>> recalls(torch.eye(4), torch.eye(4)[[0, 1, 3, 2]], (1, 2, 4))
    {1: 50.0, 2: 50.0, 4: 100.0}
    """
    near = F.normalize(queries.double(), dim=1) @ F.normalize(answers.double(), dim=1).T
    rank = (near >= near.diagonal()[:, None]).sum(1)
    return {k: 100 * float((rank <= k).double().mean()) for k in ranks}
