"""A model that takes images in [0, 1]: its normalisation, and which changes keep a class, travel with it."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from testtime.intake.views import Views, checked


class Preprocessed(nn.Module):
    """Normalise images, then call the model.

    Args:
        model: the network, kept as ``.model``.
        mean: one value for each channel, in units of images in [0, 1].
        std: one positive value for each channel.
        views: the changes of an image that keep its class; None if unknown.

    Takes (N, C, H, W) images in [0, 1] and returns what the model returns for ``(x - mean) / std``. The mean
    and the standard deviation are buffers (they follow ``.to(device)``) but not part of the state dict.

    Raises:
        TypeError: views is neither Views nor None.
        ValueError: if mean and std differ in length or a std is not positive.

    >>> Preprocessed(nn.Identity(), [0.5], [0.25])(torch.ones(1, 1, 1, 1)).item()
    2.0
    """

    mean: Tensor
    std: Tensor
    input_range = (0.0, 1.0)
    wrapped = "model"  # name of the attribute whose output it returns

    def __init__(
        self,
        model: nn.Module,
        mean: Sequence[float] | Tensor,
        std: Sequence[float] | Tensor,
        views: Views | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != len(std) or not all(s > 0 for s in std):
            raise ValueError(f"mean {tuple(mean)} and std {tuple(std)} need one length and positive std")
        self.model, self.views = model, checked(views, "views")
        for name, values in (("mean", mean), ("std", std)):
            numbers = [float(value) for value in values]
            by_channel = torch.tensor(numbers, dtype=torch.float32).view(1, -1, 1, 1)
            self.register_buffer(name, by_channel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.model((x - self.mean) / self.std)


def normalised(
    model: nn.Module, mean: Sequence[float], std: Sequence[float], views: Views | None = None
) -> Preprocessed:
    """Return the model as one that takes images in [0, 1]; see `Preprocessed`."""
    return Preprocessed(model, mean, std, views)
