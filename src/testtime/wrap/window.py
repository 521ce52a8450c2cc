"""A wrapper for single images: they are predicted with the last ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor

from testtime.adapter import Adapter
from testtime.intake.named import Inputs, NamedTensors, layout, packed, unpacked
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
        ValueError: size or every is below 1, or an image has another form than those in the window. Token ids and the tensors
            of a dictionary are of one length: pad them to it.

    Cost: the adapter's on up to max(size, N) images per step of N.

    >>> from torch import nn
    >>> from testtime.methods import Tent
    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 2))
    >>> tent = Window(Tent(net), size=3)
    >>> [tent(torch.rand(1, 3, 8, 8)).updated for _ in range(4)]
    [False, False, True, False]
    """

    answers_with = "what it makes of an image together with the last ones"
    window: Tensor
    layout: Tensor
    arrived: Tensor

    def __init__(self, adapter: Adapter, size: int, every: int | None = None) -> None:
        super().__init__(adapter)
        if size < 1 or (every is not None and every < 1):
            raise ValueError(
                f"size and every count images and are at least 1, got size={size}, every={every}"
            )
        self.size, self.every = size, size if every is None else every
        self.register_buffer("window", torch.zeros(0))  # the form of an image is not known before the first
        self.register_buffer("layout", torch.zeros(0, dtype=torch.uint8))  # text of a packed window
        self.register_buffer("arrived", torch.zeros((), dtype=torch.int64))

    def present(self, saved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """A saved state in the present form; earlier ones hold one tensor, and no layout."""
        return {"layout": torch.zeros(0, dtype=torch.uint8), **saved}

    def _company(self, x: Any) -> Any:
        """The new images (N, ...) behind those of the window, at most ``size`` in all unless N is more."""
        if self.window.numel() == 0:
            return x
        held, given = bytes(self.layout.tolist()).decode(), layout(x) if isinstance(x, NamedTensors) else ""
        if held != given or (not given and self.window.shape[1:] != x.shape[1:]):
            old, new = held or tuple(self.window.shape[1:]), given or tuple(x.shape[1:])
            raise ValueError(
                f"the window holds {'samples' if held or given else 'images'} of shape {old}, got {new}; resize the images, "
                "pad token ids to one length, or call reset() to begin a new window"
            )
        rows = packed(x) if given else x
        rows = torch.cat([self.window.to(rows), rows])[-max(self.size, len(x)) :]
        return unpacked(rows, x) if given else rows

    def _predict_batch(self, x: Any) -> Any:
        company = self._company(x)
        return self.adapter.predict(company).at(_last(len(x), company))

    def step(self, x: Any) -> Any:
        company = self._company(x)
        kept = company[-self.size :]
        self.window = packed(kept) if isinstance(kept, NamedTensors) else kept.clone()
        text = layout(kept).encode() if isinstance(kept, NamedTensors) else b""
        self.layout = torch.tensor(list(text), dtype=torch.uint8, device=kept.device)
        self.arrived += len(x)
        if int(self.arrived) < self.every:
            return self.adapter.predict(company).at(_last(len(x), company))
        self.arrived.zero_()
        return self.adapter(company).at(_last(len(x), company))


def _last(n: int, batch: Inputs) -> Tensor:
    return torch.arange(len(batch) - n, len(batch), device=batch.device)
