"""A graph source: what the neighbours of a series have observed takes part in its forecast."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from testtime.forecasting.forecaster import checked_counts

__all__ = ["GraphNetwork", "normalised_graph"]


def normalised_graph(graph: Tensor) -> Tensor:
    r"""Return :math:`D^{-1/2} (A + I) D^{-1/2}` with the degrees D of :math:`A + I` (Kipf and Welling, ICLR 2017, eq. 2).

    Args:
        graph: (D, D) weights of edges, none negative; it is made symmetric by its mean with its transpose.

    Raises:
        ValueError: it is not square, or a weight is negative or not finite.

    >>> normalised_graph(torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
    tensor([[0.5000, 0.5000],
            [0.5000, 0.5000]])
    """
    if graph.dim() != 2 or graph.shape[0] != graph.shape[1]:
        raise ValueError(f"expected the weights of edges (D, D), got shape {tuple(graph.shape)}")
    if not bool(torch.isfinite(graph).all()) or bool((graph < 0).any()):
        raise ValueError("expected finite weights of edges from 0, got a negative one, NaN or infinity")
    whole = (graph + graph.T) / 2 + torch.eye(len(graph), dtype=graph.dtype)
    scale = whole.sum(1).rsqrt()
    return scale[:, None] * whole * scale[None, :]


@final
class GraphNetwork(nn.Module):
    """Features of each series' past, mixed twice along a graph, with BatchNorm over series and windows.

    Args:
        graph: (D, D) weights of edges between the series.
        length: L, number of observations.
        horizon: H, number of steps.
        width: number of features of a series.

    Raises:
        TypeError, ValueError: the graph is refused by :func:`normalised_graph`, or a number is no whole one from 1; when
            called, there are other series than in the graph.

    Reference: Kipf and Welling, Semi-Supervised Classification with Graph Convolutional Networks, ICLR 2017 (the mixing).
    """

    mixing: Tensor

    def __init__(self, graph: Tensor, length: int, horizon: int, width: int = 32) -> None:
        super().__init__()
        checked_counts(length=length, horizon=horizon, width=width)
        self.register_buffer("mixing", normalised_graph(graph))
        self.read = nn.Linear(length, width)
        self.own = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.others = nn.ModuleList(nn.Linear(width, width, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(2))
        self.head = nn.Linear(width, horizon)

    def forward(self, x: Tensor) -> Tensor:
        """Return the forecast (N, H, D) of windows (N, L, D)."""
        if x.shape[2] != len(self.mixing):
            raise ValueError(
                f"the graph has {len(self.mixing)} series, and the windows {x.shape[2]}; expected a graph (D, D) of the series"
            )
        h = self.read(x.transpose(1, 2))  # (N, D, width)
        for own, others, norm in zip(self.own, self.others, self.norms, strict=True):
            mixed = own(h) + others(self.mixing @ h)
            h = h + norm(mixed.transpose(1, 2)).transpose(1, 2).relu()
        return self.head(h).transpose(1, 2)
