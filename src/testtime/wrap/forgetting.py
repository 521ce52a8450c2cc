"""Wrappers that reset their adapter: before every batch, or after a fixed number of steps."""

from __future__ import annotations

from typing import final

from torch import Tensor

from testtime.adapter import Adapter
from testtime.wrap.wrapper import Wrapper

__all__ = ["Episodic", "ResetEvery"]


@final
class Episodic(Wrapper):
    r"""Reset the adapter before every batch.

    .. math:: \theta_t = \theta_0 - \eta \nabla L(x_t; \theta_0)

    A step:
        1. reset the adapter;
        2. let it predict and learn the batch.

    ``predict`` uses the state that the last batch left.

    Args:
        adapter: adapter that is reset.

    Cost: the adapter's.

    Reference: the episodic mode of Tent's code (Wang et al., ICLR 2021); MEMO (Zhang et al., NeurIPS 2022).

    >>> import torch
    >>> from torch import nn
    >>> from testtime.methods import Tent
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> tent = Episodic(Tent(net))
    >>> x = torch.rand(8, 3, 8, 8)
    >>> bool((tent(x) == tent(x)).all())
    True
    """

    def step(self, x: Tensor) -> Tensor:
        self.adapter.reset()
        return self.adapter(x)


@final
class ResetEvery(Wrapper):
    r"""Reset the adapter every ``every`` steps: it never drifts further than that.

    .. math:: \theta_t \leftarrow \theta_0 \quad \text{whenever } t \bmod T = 0

    A step:
        1. when ``every`` steps have passed since the beginning or the last reset, reset the adapter;
        2. let it predict and learn the batch.

    Args:
        adapter: adapter that is reset.
        every: T, in steps; the paper's is 1000.

    Raises:
        ValueError: every is below 1.

    Cost: the adapter's.

    Reference: Press, Schneider, Kümmerer and Bethge, RDumb: A simple approach that questions our progress in
    continual test-time adaptation, NeurIPS 2023, section 4 (there around ETA).

    >>> import torch
    >>> from torch import nn
    >>> from testtime.methods import Tent
    >>> ResetEvery(Tent(nn.LayerNorm(3)), 1000).every
    1000
    """

    def __init__(self, adapter: Adapter, every: int = 1000) -> None:
        if every < 1:
            raise ValueError(f"every counts the steps between two resets and is at least 1, got {every}")
        super().__init__(adapter)
        self.every = every

    def step(self, x: Tensor) -> Tensor:
        if int(self.clock) % self.every == 0:
            self.adapter.reset()
        return self.adapter(x)
