"""Admission of inputs to a network: the checks of a batch in a call, and of the source batches in ``prepare``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from testtime.errors import AdapterWarning, RankError

__all__ = [
    "Gate",
    "Screened",
    "admit",
    "check_batch",
    "declared_range",
    "explain",
    "outside",
    "typical_range",
]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
Range = tuple[float, float]


def check_batch(x: Any) -> None:
    """Refuse what is not a batch of floating-point samples.

    Raises:
        TypeError: x is no dense tensor of float16, bfloat16, float32 or float64.
        ValueError: x has no batch dimension, no values in a sample, or no data (a meta tensor).
    """
    if not isinstance(x, Tensor):
        raise TypeError(f"expected a batch of images as a torch.Tensor (N, C, H, W), got {type(x).__name__}")
    if x.layout != torch.strided or x.is_nested:
        raise TypeError(f"expected a dense tensor, got layout {x.layout}; convert it: x.to_dense()")
    if x.dtype not in FLOATS:
        raise TypeError(
            f"expected floating-point images, usually in [0, 1], got {x.dtype}; convert them (uint8: x / 255)"
        )
    if x.dim() < 2:
        raise ValueError(
            f"expected a batch (N, ...), got shape {tuple(x.shape)}; add the batch dimension: x[None]"
        )
    if x.device.type == "meta":
        raise ValueError("expected a batch with data, got a meta tensor; move it to a device first")
    if x[:1].numel() == 0 and len(x):
        raise ValueError(f"expected samples with values, got shape {tuple(x.shape)}")


def admit(x: Tensor, within: Range | None) -> Tensor:
    """Find the samples of a batch that the network may receive.

    Args:
        x: batch (N, ...) that :func:`check_batch` lets pass.
        within: typical range of the inputs; a sample is refused where a value lies outside by more than its width. None: any
            finite value is accepted.

    Returns:
        (N,) bool.
    """
    if not len(x):
        return torch.ones(0, dtype=torch.bool, device=x.device)
    least, most = (float(v) for v in x.aminmax())
    width = 0.0 if within is None else within[1] - within[0]
    inside = within is None or (least >= within[0] - width and most <= within[1] + width)
    if inside and math.isfinite(least) and math.isfinite(most):  # all samples, usually
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    low, high = x.flatten(1).aminmax(dim=1)
    good = torch.isfinite(low) & torch.isfinite(high)
    if within is not None:
        good &= (low >= within[0] - width) & (high <= within[1] + width)
    return good


def typical_range(x: Tensor) -> Range | None:
    """Estimate the range of images from a batch: (0, 1) where that fits the median image, otherwise a generous one.

    Args:
        x: finite batch (N, C, H, W); other inputs than images have no range.

    >>> typical_range(torch.rand(4, 3, 8, 8)), typical_range(torch.rand(4, 3))
    ((0.0, 1.0), None)
    """
    if x.dim() != 4 or not len(x):
        return None
    low, high = (float(v.float().median()) for v in x.flatten(1).aminmax(dim=1))
    if low >= -1 and high <= 2:
        return 0.0, 1.0
    spare = max(high - low, abs(low), abs(high))
    return low - spare, high + spare


def declared_range(model: nn.Module) -> Range | None:
    """The range of inputs that a module of the model declares as ``input_range``, or None."""
    for module in model.modules():
        found = getattr(module, "input_range", None)
        if isinstance(found, tuple):
            return found
    return None


def outside(x: Tensor, within: Range | None) -> str:
    """Say what is wrong with images of which none was accepted."""
    low, high = (float(v) for v in x.aminmax()) if x.numel() else (0.0, 0.0)
    if not (torch.isfinite(torch.tensor([low, high])).all()):
        return "every image holds NaN or infinity"
    assert within is not None
    return (
        f"the images have values from {low:g} to {high:g}, expected [{within[0]:g}, {within[1]:g}]; convert them (0 to 255: "
        "x / 255), or pass input_range=(lowest, highest) if the model takes other values"
    )


class Gate:
    """The check of the batches of one adapter: which samples the network may receive.

    Attributes:
        within: range of the inputs as declared, or as estimated from the first images; None if unknown.
    """

    def __init__(self) -> None:
        self.within: Range | None = None

    def admit(self, x: Tensor, learn: bool) -> Tensor:
        """Find the samples that are finite and in range.

        Args:
            x: batch (N, ...) that :func:`check_batch` lets pass.
            learn: whether a range that was unknown is kept, with a warning where it is not [0, 1].

        Returns:
            (N,) bool.
        """
        good = admit(x, self.within)
        if self.within is None and (found := typical_range(x[good])):
            good &= admit(x, found)
            if learn:
                self.within = found
            if learn and found != (0.0, 1.0):
                warnings.warn(
                    f"the first images lie in about [{found[0]:.3g}, {found[1]:.3g}] and not in [0, 1], where views and "
                    "corruptions are defined; normalise inside the model (testtime.models.normalised(model, mean, "
                    "std)), or pass input_range=(lowest, highest)",
                    AdapterWarning,
                    stacklevel=5,
                )
        return good


class Screened:
    """The source batches of ``prepare``, checked as those of a call, without the samples that are not accepted.

    Iterating yields the batches, or the pairs, with the samples that are finite and in range; batches without any are left
    out.

    Args:
        source: batches (N, C, H, W), or pairs of such a batch and its labels where the method takes labels.
        labelled: whether the method takes labelled batches.
        within: typical range of the inputs; None: that of the first batch, kept as ``within``.

    Raises:
        TypeError: source is no iterable of batches, or a batch is no floating-point tensor.
        ValueError: there is no batch, or no sample in any of them that is accepted.
    """

    def __init__(self, source: Iterable[Any], labelled: bool, within: Range | None) -> None:
        if isinstance(source, Tensor | str) or not isinstance(source, Iterable):
            raise TypeError(
                f"expected an iterable of source batches (N, C, H, W), got {type(source).__name__}; pass a loader or a "
                "list: [x]"
            )
        self.source, self.labelled, self.within = source, labelled, within
        self.last: Tensor | None = None  # the images that were yielded last

    def __iter__(self) -> Iterator[Any]:
        batches = kept = 0
        for batch in self.source:
            x, labels = self._parted(batch)
            batches += 1
            x = x.clone() if x.is_inference() else x.detach()
            if self.within is None:
                self.within = typical_range(x[admit(x, None)])
            good = admit(x, self.within)
            if not bool(good.any()):
                continue
            kept += int(good.sum())
            x = x if bool(good.all()) else x[good]
            self.last = x
            yield x if labels is None else (x, labels[good])
        if not batches:
            raise ValueError("expected batches of source images (N, C, H, W) to learn from, got none")
        if not kept:
            raise ValueError(
                "expected finite source images in the range of the model's inputs, got none: all of them hold NaN, "
                f"infinity or values outside of {self.within or 'any range'}"
            )

    def _parted(self, batch: Any) -> tuple[Tensor, Tensor | None]:
        x, labels = batch, None
        if self.labelled and isinstance(batch, tuple | list) and len(batch) == 2:
            x, labels = batch
        if not isinstance(x, Tensor):
            got, many = type(x).__name__, f" of {len(x)}" if isinstance(x, tuple | list) else ""
            raise TypeError(
                f"expected batches (N, C, H, W) as tensors, or pairs (images, labels) of tensors, got {got}{many}"
                if self.labelled
                else f"expected unlabelled batches (N, C, H, W) as tensors, got {got}; give the images alone: "
                "(x for x, _ in loader)"
            )
        check_batch(x)
        if labels is not None and (not isinstance(labels, Tensor) or labels.shape != x.shape[:1]):
            got = f"shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise ValueError(
                f"expected one label for each of {len(x)} images, as an integer tensor (N,), got {got}"
            )
        return x, labels


def explain(model: nn.Module, x: Tensor, error: BaseException) -> ValueError | None:
    """Find out whether a call failed because the model itself does not take the batch.

    Args:
        model: the network.
        x: the batch.
        error: exception of the call; a TypeError, a ValueError, a lack of memory and a lost process are passed on as they are.

    Returns:
        the error to raise instead, or None where the model takes the batch, and a batch of one sample of it.
    """
    if not isinstance(error, Exception) or isinstance(
        error, TypeError | ValueError | RankError | torch.OutOfMemoryError
    ):
        return None
    return _refusal(model, x) or (_refusal(model, x[:1]) if len(x) > 1 else None)


def _refusal(model: nn.Module, x: Tensor) -> ValueError | None:
    with torch.no_grad():
        try:
            model(x)
        except torch.OutOfMemoryError:
            return None
        except (TypeError, ValueError) as error:
            return ValueError(str(error)) if isinstance(error, ValueError) else None
        except Exception as error:  # noqa: BLE001 - whatever the caller's model raises is named in the message
            return ValueError(
                f"the model does not take a batch of shape {tuple(x.shape)}, {x.dtype}, on {x.device}: "
                f"{type(error).__name__}: {error}. {_hint(model, x)}"
            )
    return None


def _hint(model: nn.Module, x: Tensor) -> str:
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is not None and parameter.device != x.device:
        return f"The model is on {parameter.device}; move the batch: x.to({str(parameter.device)!r})"
    if parameter is not None and parameter.dtype != x.dtype:
        return f"The model's weights are {parameter.dtype}; convert the batch: x.to({parameter.dtype})"
    first = next((m for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)), None)
    if first is None:
        return "Expected a batch as the model was trained on, usually (N, C, H, W)"
    sides = {nn.Conv1d: "L", nn.Conv2d: "H, W", nn.Conv3d: "D, H, W"}
    form = next(text for kind, text in sides.items() if isinstance(first, kind))
    missing = x.dim() == len(form.split(", ")) + 1
    batch = "; add the batch dimension: x[None]" if missing else ""
    channels = first.in_channels
    return (
        f"Expected a batch (N, {channels}, {form}), for its first convolution has {channels} channels{batch}"
    )
