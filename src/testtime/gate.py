"""Admission of inputs to a network: the checks of a batch in a call, and of the source batches in ``prepare``."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from testtime.errors import AdapterWarning, RankError
from testtime.facts import Facts
from testtime.intake.named import Inputs, NamedTensors, check_masks, form, wordless
from testtime.parts.views import changes_of

__all__ = [
    "Gate",
    "Screened",
    "admit",
    "batch_of",
    "check_batch",
    "declared_range",
    "explain",
    "is_finite",
    "outside",
    "refuse_unfit",
    "typical_range",
]

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
IDS = (torch.int32, torch.int64)
LABELS = ("labels", "label", "label_ids")
"""Entries of a dictionary that are no inputs."""
ONE_TENSOR = ("images", "views", "branch", "forecaster", "tensor", "floating-point")
"""The needs that a dictionary of tensors does not meet."""
NUMBERS = ("images", "branch", "forecaster", "floating-point")
"""The needs that token ids do not meet."""
TAKE_ANY = (
    "methods without views, gradients and memory of the inputs take them, such as Tent, EATA and T3A, and so do Episodic, "
    "ResetEvery and Repeat"
)
Range = tuple[float, float]


def batch_of(x: Any) -> Inputs:
    """Check that x is a batch, and return it: a tensor, or the tensors of a dictionary.

    Args:
        x: floating-point tensor (N, ...), token ids (N, T), or a dictionary of tensors (N, ...), such as a
            ``transformers.BatchEncoding``.

    Raises:
        TypeError: x is none of these.
        ValueError: there is no batch dimension, samples without values, no data (meta tensors), or the tensors of a dictionary
            do not belong together.
    """
    if isinstance(x, NamedTensors):
        return x
    if not isinstance(x, Mapping):
        check_batch(x)
        return x.detach()
    if not x:
        raise ValueError("expected a dictionary of tensors (N, ...), got an empty one")
    for name, value in x.items():
        _check_entry(name, value)
    sizes = {name: len(value) for name, value in x.items()}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"the tensors of a batch have one first dimension, the number of samples, got {sizes}; pad or stack them to "
            "(N, ...)"
        )
    if len({value.device for value in x.values()}) > 1:
        places = {name: str(value.device) for name, value in x.items()}
        raise ValueError(
            f"expected the tensors of a batch on one device, got {places}; move them: value.to(device)"
        )
    check_masks(x)
    return NamedTensors({name: value.detach() for name, value in x.items()})


def _check_entry(name: Any, value: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"the entries of a batch are named by strings, got the key {name!r}")
    if name in LABELS:
        raise ValueError(
            f"the batch holds {name!r}; an adapter learns without labels: leave the entry out, and give the model the inputs "
            "alone (a method that takes labels of source batches takes pairs (inputs, labels) of tensors)"
        )
    if not isinstance(value, Tensor):
        ask = 'return_tensors="pt" of a tokenizer makes tensors; leave out what is None or no input'
        raise TypeError(
            f"expected tensors (N, ...) in the batch, got {name!r} of type {type(value).__name__}; {ask}"
        )
    where = f"the entry {name!r} of the batch"
    if value.layout != torch.strided or value.is_nested:
        raise TypeError(
            f"{where} has layout {value.layout}; convert it: value.to_dense(), or pad it to one length"
        )
    if value.is_complex() or value.is_quantized or (value.is_floating_point() and value.dtype not in FLOATS):
        raise TypeError(f"{where} has type {value.dtype}; expected floating-point values, integers or bool")
    if value.dtype == torch.uint8 and value.dim() == 4:
        raise TypeError(f"{where} holds images of type uint8; expected floating-point images: x / 255")
    if not value.dim():
        raise ValueError(f"{where} is a single value; expected a tensor (N, ...) with a row for each sample")
    if value.device.type == "meta":
        raise ValueError(f"{where} is a meta tensor, which holds no data; move it to a device first")
    if len(value) and value[:1].numel() == 0:
        raise ValueError(f"{where} holds samples without values, shape {tuple(value.shape)}")


def _of_pair(x: Any) -> str:
    """What to do with the list of tensors that a loader of images and labels makes."""
    pair = isinstance(x, list | tuple) and len(x) > 1 and all(isinstance(part, Tensor) for part in x)
    return (
        f" of {len(x)} tensors; of a loader of inputs and labels pass the inputs alone: x[0]" if pair else ""
    )


def check_batch(x: Any) -> None:
    """Refuse what is not a batch of floating-point samples or of token ids.

    Raises:
        TypeError: x is no dense tensor of float16, bfloat16, float32 or float64, nor token ids (N, T) of int32 or int64.
        ValueError: x has no batch dimension, no values in a sample, or no data (a meta tensor).
    """
    if not isinstance(x, Tensor):
        raise TypeError(
            f"expected a batch of images as a torch.Tensor (N, C, H, W), token ids (N, T) or a dictionary of tensors, got "
            f"{type(x).__name__}{_of_pair(x)}"
        )
    if x.layout != torch.strided or x.is_nested:
        raise TypeError(f"expected a dense tensor, got layout {x.layout}; convert it: x.to_dense()")
    ids = x.dtype in IDS and x.dim() <= 2
    if x.dtype not in FLOATS and not ids:
        raise TypeError(
            f"expected floating-point images, usually in [0, 1], got {x.dtype}; convert them (uint8: x / 255); token ids are "
            "int64 (N, T)"
        )
    if x.dim() < 2:
        raise ValueError(
            f"expected a batch (N, ...), got shape {tuple(x.shape)}; add the batch dimension: x[None]"
        )
    if x.device.type == "meta":
        raise ValueError("expected a batch with data, got a meta tensor; move it to a device first")
    if len(x) and not x.numel():
        raise ValueError(f"expected samples with values, got shape {tuple(x.shape)}")


def _alone(x: NamedTensors) -> str:
    """What to do with a dictionary of nothing but images, which a model such as one of transformers takes by themselves."""
    (name, value), *others = x.entries.items()
    images = not others and value.dim() == 4 and value.is_floating_point()
    return f"pass the images alone: batch[{name!r}]; " if images else ""


def refuse_unfit(adapter: Facts, x: Inputs) -> None:
    """Refuse a batch of another kind than the method works with.

    Raises:
        ValueError: the method needs images or one floating-point tensor (:attr:`testtime.facts.Facts.needs`), and the batch is
            none; the message names the method.
    """
    name, needs = type(adapter).__name__, adapter.needs
    if isinstance(x, NamedTensors):
        if unmet := [need for need in ONE_TENSOR if need in needs]:
            raise ValueError(
                f"{name} takes batches that are one tensor (it needs: {', '.join(unmet)}), got a dictionary of tensors "
                f"{form(x)}; {_alone(x)}{TAKE_ANY}"
            )
        return
    if x.dim() != 4 and ("images" in needs or any(changes_of(v) for v in vars(adapter).values())):
        raise ValueError(
            f"{name} changes images or makes views of them and takes batches (N, C, H, W), got shape "
            f"{tuple(x.shape)}; add the batch dimension of one image: x[None]; for sequences and tables pass augment= a "
            "function of your own where the method has it, or use a method without views, such as Tent or EATA"
        )
    if not x.is_floating_point() and any(need in needs for need in NUMBERS):
        raise ValueError(
            f"{name} takes floating-point inputs, whose gradients or sums it uses, got token ids of {x.dtype}; "
            f"{TAKE_ANY}"
        )


def admit(x: Inputs, within: Range | None) -> Tensor:
    """Find the samples of a batch that the network may receive.

    Args:
        x: batch (N, ...) that :func:`batch_of` lets pass; of a dictionary all floating-point tensors are checked, and that
            the mask of a text is not zero everywhere.
        within: typical range of the inputs; a sample is refused where a value lies outside by more than its width. None: any
            finite value is accepted. In a dictionary it is the range of its images (N, C, H, W).

    Returns:
        (N,) bool.
    """
    if isinstance(x, NamedTensors):
        good = ~wordless(x)
        for value in x.entries.values():
            good &= admit(value, within if value.dim() == 4 else None)
        return good
    if not len(x) or not x.is_floating_point():
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    least, most = (float(v) for v in x.aminmax())
    width = 0.0 if within is None else within[1] - within[0]
    inside = within is None or (least >= within[0] - width and most <= within[1] + width)
    if inside and math.isfinite(least) and math.isfinite(most):  # all samples, usually
        return torch.ones(len(x), dtype=torch.bool, device=x.device)
    low, high = x.reshape(len(x), -1).aminmax(dim=1)
    good = torch.isfinite(low) & torch.isfinite(high)
    if within is not None:
        good &= (low >= within[0] - width) & (high <= within[1] + width)
    return good


def typical_range(x: Inputs) -> Range | None:
    """Estimate the range of images from a batch: (0, 1) where that fits the median image, otherwise a generous one.

    Args:
        x: finite batch (N, C, H, W); other inputs than images have no range, and of a dictionary its first images count.

    >>> typical_range(torch.rand(4, 3, 8, 8)), typical_range(torch.rand(4, 3))
    ((0.0, 1.0), None)
    """
    if isinstance(x, NamedTensors):
        found = (typical_range(value) for value in x.entries.values())
        return next((one for one in found if one is not None), None)
    if x.dim() != 4 or not len(x) or not x.is_floating_point():
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


def is_finite(x: Inputs) -> bool:
    """Whether no value of a batch is NaN or infinite."""
    values = x.entries.values() if isinstance(x, NamedTensors) else [x]
    return all(bool(torch.isfinite(value).all()) for value in values)


def outside(x: Inputs, within: Range | None) -> str:
    """Say what is wrong with images of which none was accepted."""
    if isinstance(x, NamedTensors):
        if not is_finite(x):
            return "every sample holds NaN or infinity in one of its tensors"
        if bool(wordless(x).all()):
            return (
                "the attention_mask of every sample is 0 everywhere, so that none has a word; expected 1 for each word that "
                "counts: pass the mask of the tokenizer, and leave out texts without words"
            )
        x = next(value for value in x.entries.values() if value.dim() == 4 and value.is_floating_point())
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

    def admit(self, x: Inputs, learn: bool) -> Tensor:
        """Find the samples that are finite and in range.

        Args:
            x: batch (N, ...) that :func:`batch_of` lets pass.
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
        fits: function that refuses a batch of a kind that the method does not take.

    Raises:
        TypeError: source is no iterable of batches, or a batch is no floating-point tensor.
        ValueError: there is no batch, or no sample in any of them that is accepted.
    """

    def __init__(
        self,
        source: Iterable[Any],
        labelled: bool,
        within: Range | None,
        fits: Callable[[Inputs], None] = lambda x: None,
    ) -> None:
        if isinstance(source, Tensor | str | Mapping | NamedTensors) or not isinstance(source, Iterable):
            raise TypeError(
                f"expected an iterable of source batches (N, C, H, W), got {type(source).__name__}; pass a loader or a "
                "list: [x]"
            )
        self.source, self.labelled, self.within, self.fits = source, labelled, within, fits
        self.last: Inputs | None = None  # the samples that were yielded last

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
                f"infinity or values outside of {self.within or 'any range'}, or have an attention_mask of zeros"
            )

    def _parted(self, batch: Any) -> tuple[Inputs, Tensor | None]:
        x, labels = batch, None
        if self.labelled and isinstance(batch, tuple | list) and len(batch) == 2:
            x, labels = batch
        if not isinstance(x, Tensor | Mapping | NamedTensors):
            got, many = type(x).__name__, f" of {len(x)}" if isinstance(x, tuple | list) else ""
            raise TypeError(
                f"expected batches (N, C, H, W) as tensors, or pairs (images, labels) of tensors, got {got}{many}"
                if self.labelled
                else f"expected unlabelled batches (N, C, H, W) as tensors, got {got}; give the images alone: "
                "(x for x, _ in loader)"
            )
        x = batch_of(x)
        self.fits(x)
        if labels is not None and (not isinstance(labels, Tensor) or labels.shape != (len(x),)):
            got = f"shape {tuple(labels.shape)}" if isinstance(labels, Tensor) else type(labels).__name__
            raise ValueError(
                f"expected one label for each of {len(x)} images, as an integer tensor (N,), got {got}"
            )
        return x, labels


def explain(model: nn.Module, x: Inputs, error: BaseException) -> ValueError | None:
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


def _refusal(model: nn.Module, x: Inputs) -> ValueError | None:
    with torch.no_grad():
        try:
            model(x)
        except torch.OutOfMemoryError:
            return None
        except (TypeError, ValueError) as error:
            return ValueError(str(error)) if isinstance(error, ValueError) else None
        except Exception as error:  # noqa: BLE001 - whatever the caller's model raises is named in the message
            what = f"shape {form(x)}, {x.dtype}," if isinstance(x, Tensor) else f"tensors {form(x)}"
            return ValueError(
                f"the model does not take a batch of {what} on {x.device}: {type(error).__name__}: {error}. "
                f"{_hint(model, x, error)}"
            )
    return None


def _hint(model: nn.Module, x: Inputs, error: Exception) -> str:
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if parameter is not None and parameter.device != x.device:
        return f"The model is on {parameter.device}; move the batch: x.to({str(parameter.device)!r})"
    entries = x.entries if isinstance(x, NamedTensors) else {"x": x}
    if any(isinstance(m, nn.Embedding) for m in model.modules()) and (
        hint := _hint_of_ids(model, entries, error)
    ):
        return hint
    numbers = {name: value for name, value in entries.items() if value.is_floating_point()}
    wrong = next(
        (n for n, v in numbers.items() if parameter is not None and v.dtype != parameter.dtype), None
    )
    if parameter is not None and (
        wrong is not None or (isinstance(x, Tensor) and x.dtype != parameter.dtype)
    ):
        return f"The model's weights are {parameter.dtype}; convert the batch: {wrong or 'x'}.to({parameter.dtype})"
    if not isinstance(x, Tensor):
        return "Expected the tensors of a batch as the model was trained on"
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


def _hint_of_ids(model: nn.Module, entries: Mapping[str, Tensor], error: Exception) -> str:
    """What to do about ids that an embedding does not take; empty where ids are not what is wrong."""
    rows = sorted({m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)})
    ids = {n: v for n, v in entries.items() if v.dtype in IDS and v.numel() and not n.endswith("mask")}
    if isinstance(error, IndexError) and any(
        int(v.max()) >= rows[0] or int(v.min()) < 0 for v in ids.values()
    ):
        seen = ", ".join(f"{name} from {int(v.min())} to {int(v.max())}" for name, v in ids.items())
        return (
            f"The model's embeddings have {' and '.join(map(str, rows))} rows, so that ids go from 0 to that number less one, "
            f"and the batch has {seen}; use the tokenizer that the model was trained with, and truncate to its "
            "length"
        )
    if "indices" in str(error) and (floats := [n for n, v in entries.items() if v.is_floating_point()]):
        return f"Token ids are integers; convert them: {floats[0]}.long()"
    return ""
