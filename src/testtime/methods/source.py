r"""Source: the model as it was shipped; the baseline that adaptation must not fall below.

.. math:: z = f_{\theta_0}(x)

A step:
    1. predict the batch with the source weights and the source statistics.

Departures: none.

Cost: one forward.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import final

from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.norm import source_statistics

__all__ = ["Source"]


@final
class Source(Adapter):
    """The model as it was shipped: it adapts nothing.

    Args:
        model: any classifier.
        norm: the policy of the BatchNorm layers.

    >>> import torch
    >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 2)).eval()
    >>> x = torch.rand(5, 3, 2, 2)
    >>> bool((Source(net)(x) == net(x)).all())
    True
    """

    name, label = "source", "Source"
    needs = ()
    cost = (1, 0)

    def __init__(self, model: nn.Module, norm: Callable[[nn.Module], nn.Module] = source_statistics) -> None:
        super().__init__(norm(model))
        self.norm = norm

    def step(self, x: Tensor) -> Tensor:
        return self.model(x)
