r"""An image encoder whose last layer was learned with labels: local features of a network, mapped to embeddings of texts.

The map is ridge regression in closed form, with weights :math:`w_i` of the samples and centred features and targets,

.. math:: W = \Big( \sum_i w_i \tilde h_i \tilde h_i^\top + \alpha \sum_i w_i I \Big)^{-1} \sum_i w_i \tilde h_i \tilde t_i^\top

Behind it stands the question where information is lost: a pair that is not taught may fail although the features have what is
needed. So it is a ceiling, and no zero-shot model.
"""

from __future__ import annotations

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime.models.mobilenet import MobileNet

__all__ = ["MobileNetFeatures", "Probe", "ridge"]


def ridge(
    features: Tensor, targets: Tensor, strength: float, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return the matrix (C, D) and the bias (D,) of ridge regression, in float64.

    Args:
        features: (n, C).
        targets: (n, D).
        strength: alpha, relative to the sum of the weights.
        weights: weight of each sample, (n,); None for equal ones.

    >>> x = torch.tensor([[0.0], [1.0], [2.0]])
    >>> [v.tolist() for v in ridge(x, 3 * x + 1, 0.0)]
    [[[3.0]], [1.0]]
    """
    h, t = features.double(), targets.double()
    w = torch.ones(len(h), dtype=torch.float64) if weights is None else weights.double()
    total = w.sum()
    mean, centre = (w @ h) / total, (w @ t) / total
    h, t = h - mean, t - centre
    weighted = h * w[:, None]
    eye = torch.eye(h.shape[1], dtype=torch.float64)
    matrix = torch.linalg.solve(weighted.T @ h + strength * total * eye, weighted.T @ t)
    return matrix, centre - mean @ matrix


@final
class MobileNetFeatures(nn.Module):
    """Local features of a MobileNet: the maps of its second and third stage, on the grid of the second.

    Args:
        network: network with ImageNet's normalisation before it, as :func:`testtime.models.load_model` returns it.
        size: side at which the network works, in pixels.
    """

    def __init__(self, network: nn.Module, size: int = 224) -> None:
        super().__init__()
        inner = getattr(network, "model", network)
        if not isinstance(inner, MobileNet):
            raise TypeError(f"expected a MobileNet, got {type(inner).__name__}")
        self.network, self.size = network, size

    def forward(self, x: Tensor) -> Tensor:
        """Return features (N, P, C) of images (N, 3, H, W) in [0, 1]; P = 14 x 14 for a side of 224."""
        if x.shape[2:] != (self.size, self.size):
            x = F.interpolate(x, (self.size, self.size), mode="bilinear", antialias=True)
        inner = getattr(self.network, "model", self.network)
        if inner is not self.network:
            x = (x - self.network.mean) / self.network.std  # type: ignore[operator]
        middle = inner.stage2(inner.stage1(x))  # type: ignore[operator]
        last = inner.stage3(middle)  # type: ignore[operator]
        last = F.interpolate(last, middle.shape[2:], mode="bilinear", align_corners=False)
        return torch.cat([middle, last], 1).flatten(2).transpose(1, 2)


@final
class Probe(nn.Module):
    """Local features and a linear map into the space of texts: an image encoder of :class:`testtime.vision_language.ImageText`.

    Args:
        features: module (N, 3, H, W) -> (N, P, C).
        matrix: (C, D).
        bias: (D,).

    >>> probe = Probe(nn.Flatten(2), torch.eye(4)[:, :2], torch.zeros(2))
    >>> probe.patches(torch.ones(1, 3, 2, 2)).shape, probe(torch.ones(1, 3, 2, 2))
    (torch.Size([1, 3, 2]), tensor([[1., 1.]]))
    """

    def __init__(self, features: nn.Module, matrix: Tensor, bias: Tensor) -> None:
        super().__init__()
        if matrix.dim() != 2 or bias.shape != matrix.shape[1:]:
            raise ValueError(
                f"expected a matrix (C, D) and a bias (D,), got {tuple(matrix.shape)}, {tuple(bias.shape)}"
            )
        self.features = features
        self.register_buffer("matrix", matrix.float(), persistent=False)
        self.register_buffer("bias", bias.float(), persistent=False)

    matrix: Tensor
    bias: Tensor

    def patches(self, x: Tensor) -> Tensor:
        """Return local tokens (N, P, D)."""
        tokens: Tensor = self.features(x) @ self.matrix + self.bias
        return tokens

    def forward(self, x: Tensor) -> Tensor:
        """Return embeddings (N, D): the map of the mean feature."""
        whole: Tensor = self.features(x).mean(1) @ self.matrix + self.bias
        return whole
