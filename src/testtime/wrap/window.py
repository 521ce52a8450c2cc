"""A wrapper for single images: they are predicted with the last ones."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor

from testtime.adapter import Adapter
from testtime.wrap.wrapper import Wrapper

__all__ = ["Window"]


@final
class Window(Wrapper):
    """Window of the last images: each image is predicted together with them, and the adapter learns when enough are new.

    A step:
        1. put the new images behind the last ones; beyond ``size`` the oldest leave (a batch stays whole);
        2. after ``every`` new images, let the adapter predict and learn all these, else predict;
        3. answer the rows of the new images, and remember the last ``size`` images.

    Args:
        adapter: adapter that predicts and learns; batch statistics and losses are those of the window.
        size: number of images in the window.
        every: new images between two adaptations; ``size`` unless given.

    Raises:
        ValueError: size or every is below 1, or an image has another form than those in the window.

    Cost: the adapter's on up to max(size, N) images per step of N.

    >>> from torch import nn
    >>> from testtime.methods import Tent
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> tent = Window(Tent(net), size=3)
    >>> [tent(torch.rand(1, 3, 8, 8)).updated for _ in range(4)]
    [False, False, True, False]
    """

    needs = ("tensor",)
    answers_with = "what it makes of an image together with the last ones"
    window: Tensor
    arrived: Tensor

    def __init__(self, adapter: Adapter, size: int, every: int | None = None) -> None:
        super().__init__(adapter)
        if size < 1 or (every is not None and every < 1):
            raise ValueError(
                f"size and every count images and are at least 1, got size={size}, every={every}"
            )
        self.size, self.every = size, size if every is None else every
        self.register_buffer("window", torch.zeros(0))  # the form of an image is not known before the first
        self.register_buffer("arrived", torch.zeros((), dtype=torch.int64))

    def _company(self, x: Tensor) -> Tensor:
        """The new images (N, ...) behind those of the window, at most ``size`` in all unless N is more."""
        if self.window.numel() == 0:
            return x
        if self.window.shape[1:] != x.shape[1:]:
            raise ValueError(
                f"the window holds images of shape {tuple(self.window.shape[1:])}, got {tuple(x.shape[1:])}; "
                "resize the images, or call reset() to begin a new window"
            )
        return torch.cat([self.window.to(x), x])[-max(self.size, len(x)) :]

    def _predict_batch(self, x: Tensor) -> Tensor:
        company = self._company(x)
        return self.adapter.predict(company).at(_last(len(x), company))

    def step(self, x: Tensor) -> Tensor:
        company = self._company(x)
        self.window = company[-self.size :].clone()
        self.arrived += len(x)
        if int(self.arrived) < self.every:
            return self.adapter.predict(company).at(_last(len(x), company))
        self.arrived.zero_()
        return self.adapter(company).at(_last(len(x), company))


def _last(n: int, batch: Tensor) -> Tensor:
    return torch.arange(len(batch) - n, len(batch), device=batch.device)
