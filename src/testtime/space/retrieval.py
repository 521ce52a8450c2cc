r"""Cross-modal retrieval of the depth map of a picture, by a model that was not trained for it.

The model predicts the tokens of a feature map from the picture alone, and from the depth map alone. Each feature map is decoded
and averaged to one vector, and the nearest vector by cosine similarity is retrieved.

.. math:: \text{R@}k = \frac1N \sum_i \big[\, |\{j : \cos(a_i, b_j) > \cos(a_i, b_i)\}| < k \,\big]

Departure: the paper does not describe how tokens are decoded; here the most probable token of each position, all at once.

Reference: Singh, Garjani et al., Multimodality as Supervision, table 2 (features: those of CLIP).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from testtime.moved import renamed
from testtime.space.generate import predicted
from testtime.space.model import FourM
from testtime.space.tokenizers import Tokenizer

__all__ = ["depth_recalls", "nearest", "paired_vectors", "predicted_vectors", "recalls"]

__getattr__ = renamed(__name__, {"expected_vectors": "predicted_vectors"})


def predicted_vectors(
    model: FourM,
    features: Tokenizer,
    pixels: Tensor,
    given: tuple[str, Tensor] | None = None,
    batch: int = 64,
) -> Tensor:
    """Predict a feature map for each frame, and return its mean over positions, (N, channels).

    Args:
        model: pre-trained model with the stream of the features.
        features: tokenizer of the features.
        pixels: pictures (N, 3, H, W) in [0, 1].
        given: name of a stream and its ids (N, positions), which replace the pictures as input.
        batch: number of frames per forward pass.

    Raises:
        ValueError: the model does not have these streams.
    """
    found = []
    for i in range(0, len(pixels), batch):
        here = None if given is None else (given[0], given[1][i : i + batch])
        ids = predicted(model, f"tok_{features.modality.name}", pixels[i : i + batch], given=here)
        found.append(features.decode(ids).flatten(2).mean(2))
    return torch.cat(found)


def paired_vectors(
    model: FourM, tokenizers: Mapping[str, Tokenizer], pixels: Tensor, depth: Tensor
) -> tuple[Tensor, Tensor]:
    """Predict a vector for every picture and for every depth map, (N, channels) each.

    Args:
        model: pre-trained model with the streams of depth and features.
        tokenizers: tokenizers of "depth" and "features".
        pixels: pictures (N, 3, H, W) in [0, 1].
        depth: their depth maps in the size of the tokenizer, (N, 1, h, w).
    """
    given = "tok_depth", tokenizers["depth"].encode(depth).flatten(1)
    features = tokenizers["features"]
    return predicted_vectors(model, features, pixels), predicted_vectors(model, features, pixels, given)


def depth_recalls(
    model: FourM, tokenizers: Mapping[str, Tokenizer], pixels: Tensor, depth: Tensor
) -> dict[str, dict[int, float]]:
    """Measure the recall of depth maps by pictures, "depth", and of pictures by depth maps, "picture".

    Args:
        model, tokenizers, pixels, depth: see :func:`paired_vectors`.

    Returns:
        R@1, R@5 and R@10 in percent, see :func:`recalls`.
    """
    by_picture, by_depth = paired_vectors(model, tokenizers, pixels, depth)
    return {"depth": recalls(by_picture, by_depth), "picture": recalls(by_depth, by_picture)}


def recalls(queries: Tensor, answers: Tensor, ranks: Sequence[int] = (1, 5, 10)) -> dict[int, float]:
    """Compute R@k in percent: the frequency of the matching vector among the k nearest; ties count as wrong.

    Args:
        queries, answers: vectors (N, C); equal rows match.
        ranks: values of k.

    >>> recalls(torch.eye(4), torch.eye(4)[[0, 1, 3, 2]], (1, 2, 4))
    {1: 50.0, 2: 50.0, 4: 100.0}
    """
    near = _similarity(queries, answers)
    rank = (near >= near.diagonal()[:, None]).sum(1)
    return {k: 100 * float((rank <= k).double().mean()) for k in ranks}


def nearest(queries: Tensor, answers: Tensor) -> Tensor:
    """Return the indices (N, M) of the answers for every query, the most similar first.

    Args:
        queries, answers: vectors (N, C) and (M, C).

    >>> nearest(torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])).tolist()
    [[2, 1, 0], [0, 1, 2]]
    """
    return _similarity(queries, answers).argsort(stable=True, dim=1, descending=True)


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    """Cosine similarity of vectors (N, C) and (M, C), (N, M)."""
    return F.normalize(a.double(), dim=1) @ F.normalize(b.double(), dim=1).T
