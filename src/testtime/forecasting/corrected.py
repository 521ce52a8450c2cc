"""What the adapters of forecasters share: small modules around a frozen forecaster, and the loss on what has arrived."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime.forecasting.forecaster import Forecaster

__all__ = ["Corrected", "forecaster_of", "in_turn", "revealed_loss"]


def forecaster_of(model: nn.Module) -> Forecaster:
    """Return the forecaster in a tree of modules.

    Raises:
        ValueError: there is none.
    """
    for module in model.modules():
        if isinstance(module, Forecaster):
            return module
    raise ValueError(
        f"expected a forecaster, got {type(model).__name__}; wrap the network: testtime.forecasting.Forecaster(network, "
        "length=96, horizon=24, channels=7)"
    )


@final
class Corrected(nn.Module):
    """A forecaster with a small module behind it, and one before it.

    Args:
        network: module that holds a :class:`Forecaster`.
        output: module (N, H, D) -> (N, H, D) on the forecast; None for none.
        inputs: module (N, L, D) -> (N, L, D) on what the forecaster reads; None for none.
    """

    def __init__(
        self, network: nn.Module, output: nn.Module | None = None, inputs: nn.Module | None = None
    ) -> None:
        super().__init__()
        self.length = forecaster_of(network).length
        self.network, self.output, self.inputs = network, output, inputs

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Forecast from the last observations of windows (N, T, D)."""
        forecaster_of(self.network).check(x)  # before a correction, which would be broadcast to other windows
        if self.inputs is not None:
            x = self.inputs(x[:, -self.length :])
        y = self.network(x)["forecast"]
        return {"forecast": y if self.output is None else self.output(y)}


def revealed_loss(model: nn.Module, x: Tensor) -> Tensor:
    r"""Mean squared error of the forecast whose truth has arrived, :math:`\| f(x_{:L}) - x_{L:} \|^2 / (HD)`.

    Args:
        model: module that holds a :class:`Forecaster`.
        x: windows (N, L + H, D).

    Raises:
        ValueError: a window is not as long as that.
    """
    shape = forecaster_of(model)
    expected = shape.length + shape.horizon
    if x.dim() != 3 or x.shape[1] != expected:
        raise ValueError(
            f"an adapter learns from windows of length + horizon = {shape.length} + {shape.horizon} = {expected} "
            f"observations (N, {expected}, {shape.channels}), got shape {tuple(x.shape)}; predict() takes "
            f"{shape.length} or more"
        )
    return F.mse_loss(model(x[:, : shape.length])["forecast"], x[:, shape.length :])


def in_turn(model: nn.Module, x: Tensor, update: Callable[[Tensor], None]) -> dict[str, Tensor]:
    """Learn from each window and then forecast from it, one after the other in the order of time.

    So the forecast of a window does not depend on a later one of its batch, whatever the size of the batch.

    Args:
        model: module that holds a :class:`Forecaster`.
        x: windows (N, L + H, D) in the order of time.
        update: function that takes a step down a scalar loss.

    Returns:
        ``{"forecast": (N, H, D)}``.
    """
    answers = []
    for window in x.split(1):
        update(revealed_loss(model, window))
        with torch.no_grad():
            answers.append(model(window)["forecast"])
    return {"forecast": torch.cat(answers)}
