"""Fracast: a zero-shot forecaster from the package ``fracast``, as a source; it is imported when it is built."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor, nn

from testtime.errors import DataError

__all__ = ["Fracast"]

ROWS = 32  # series that are forecast at once, which bounds the memory


@final
class Fracast(nn.Module):
    """The median of Fracast-0 (85,001 parameters, Apache-2.0) for each series by itself.

    The network forecasts 48 steps; more are forecast from its own median, as its package does. Every window is scaled to
    [0, 1] by its least and greatest value. It needs ``pip install fracast``; its weights are in the package.

    Args:
        horizon: H, number of steps.

    Raises:
        ImportError: the package is not installed.

    Reference: github.com/ztxtech/fracast-0.
    """

    def __init__(self, horizon: int) -> None:
        super().__init__()
        try:
            from fracast import FracastModel
        except ImportError as error:
            raise ImportError(
                "the source fracast needs its package: pip install fracast (Apache-2.0, 0.4 MB with weights)"
            ) from error
        found: Any = FracastModel.from_pretrained(weights="fp32")
        self.core, self.head = found.core, found.head
        self.context, self.block, self.horizon = found.context_length, found.horizon, horizon
        self.median = min(range(len(found.quantiles)), key=lambda i: abs(found.quantiles[i] - 0.5))

    def forward(self, x: Tensor) -> Tensor:
        """Return the forecast (N, H, D) of windows (N, L, D), L from 8."""
        n, length, channels = x.shape
        if length < 8:
            raise DataError(f"fracast needs 8 observations or more, got {length}")
        rows = x.transpose(1, 2).reshape(n * channels, length)
        done: list[Tensor] = []
        while sum(part.shape[1] for part in done) < self.horizon:
            done.append(torch.cat([self._median(part) for part in rows.split(ROWS)]))
            rows = torch.cat([rows, done[-1]], dim=1)
        forecast = torch.cat(done, dim=1)[:, : self.horizon]
        return forecast.reshape(n, channels, self.horizon).transpose(1, 2)

    def _median(self, rows: Tensor) -> Tensor:
        """The median (R, 48) of the next block of rows (R, T)."""
        tail = rows[:, -self.context :]
        low, high = tail.amin(1, keepdim=True), tail.amax(1, keepdim=True)
        span = (high - low).clamp_min(1e-5)
        values = rows.new_zeros(len(rows), 1, self.context)
        valid = torch.zeros(len(rows), 1, self.context, dtype=torch.bool, device=rows.device)
        values[:, 0, self.context - tail.shape[1] :] = (tail - low) / span
        valid[:, :, self.context - tail.shape[1] :] = True
        hidden = self.core(values, valid, valid.to(values.dtype))
        quantiles = self.head.forward_horizon(
            hidden, last_obs=values[:, 0, -1:], ctx=values[:, 0], ctx_mask=valid[:, 0]
        )
        return quantiles[..., self.median] * span + low
