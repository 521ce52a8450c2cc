"""A recurrent source: a GRU over groups of observations, with a normalisation layer before its head."""

from __future__ import annotations

from typing import final

from torch import Tensor, nn

from testtime.forecasting.forecaster import checked_counts

__all__ = ["GRUNetwork"]


@final
class GRUNetwork(nn.Module):
    """A GRU that reads some observations of all series at a time, a LayerNorm, and a linear head for all steps.

    Unlike NLinear it forecasts levels and not differences to the last value, so a shift of level is an error.

    Args:
        length: L, number of observations.
        horizon: H, number of steps.
        channels: D, number of series.
        width: number of hidden units.
        together: number of observations that are read at a time; it divides L.

    Raises:
        TypeError, ValueError: a number is no whole one from 1, or ``together`` does not divide ``length``.

    Reference: Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, EMNLP 2014 (the unit).
    """

    def __init__(self, length: int, horizon: int, channels: int, width: int = 64, together: int = 4) -> None:
        super().__init__()
        checked_counts(length=length, horizon=horizon, channels=channels, width=width, together=together)
        if length % together:
            raise ValueError(f"together divides the length {length}, got {together}")
        self.horizon, self.together = horizon, together
        self.gru = nn.GRU(together * channels, width, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, horizon * channels)

    def forward(self, x: Tensor) -> Tensor:
        """Return the forecast (N, H, D) of windows (N, L, D)."""
        n, length, channels = x.shape
        read = x.reshape(n, length // self.together, self.together * channels)
        hidden, _ = self.gru(read)
        return self.head(self.norm(hidden[:, -1])).reshape(n, self.horizon, channels)
