"""What a guard changes in samples: a disturbance that keeps their class, and the generic drifts of a calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import zip_longest
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.corruptions import EXTRA, corrupt
from testtime.gate import batch_of, explain
from testtime.intake.named import MASK, SEQUENCES, Inputs, NamedTensors, form, joined, layout
from testtime.parts.randomness import generator
from testtime.selection import disturbance

__all__ = ["Disturbance", "drifts", "source_samples"]

LINES = ((0.5, 0.0), (0.25, 0.0), (0.5, 0.5), (0.25, 0.7), (0.75, 0.25), (0.4, 0.2), (0.2, 0.4), (1.0, 0.25))
NOISES, BLURS, SEVERITY = (0.05, 0.15, 0.3), (3, 5), 5
REPLACED = (0.1, 0.2, 0.3, 0.4, 0.5)  # share of the words of a text that are replaced, so that most stay
IDS = SEQUENCES[0]
Range = tuple[float, float]


@final
class Disturbance:
    """A change of samples that keeps their class.

    Images are changed as the model declares that it keeps their class; other floating-point tensors get a little noise, also
    those of a dictionary that are no masks. Nothing is known that keeps the class of token ids.

    Args:
        network: shipped model.
        own: function of the user's own from a batch to a disturbed batch, which is used instead; it gets a copy.

    Raises:
        TypeError: ``own`` is no function, or returns no batch, as one does that changes its argument in place without return.
        ValueError: ``own`` returns another number of samples, other entries or types, or values that are not finite.
    """

    def __init__(self, network: nn.Module, own: Callable[[Any], Any] | None = None) -> None:
        if own is not None and not callable(own):
            raise TypeError(f"disturb= is a function that changes a batch and keeps its classes, got {own!r}")
        self.own, self._of_images = own, disturbance(network)

    def check(self, x: Inputs) -> None:
        """Refuse a batch whose classes may be in what is not disturbed.

        Raises:
            ValueError: without ``own``, a batch with token ids or other integers (N, T, ...) that are no mask, or without
                floating-point tensors but masks.
        """
        if self.own is not None or (isinstance(x, Tensor) and x.is_floating_point()):
            return
        ids = [n for n, v in _entries(x).items() if not v.is_floating_point() and v.dim() > 1]
        if ids or not _numbers(x):
            named = ", ".join(repr(n) for n in ids if n)
            found = f"integers {named}".strip() if ids else "none"
            raise ValueError(
                "Guarded compares the predictions of a batch with those of a disturbed one, and by default it disturbs "
                f"floating-point tensors alone, got {found} in a batch {form(x)}; give Guarded(adapter, disturb=...) a "
                "function that changes a batch and keeps its classes, such as one that masks a few tokens"
            )

    def __call__(self, x: Any) -> Any:
        if self.own is not None:
            return _checked(self.own(x.clone()), x)
        if isinstance(x, Tensor):
            return self._disturbed(x)
        return NamedTensors({**x.entries, **{n: self._disturbed(v, n) for n, v in _numbers(x).items()}})

    def refused(self, network: nn.Module, x: Any, error: BaseException) -> ValueError | None:
        """Find out whether a call failed because the network does not take what ``own`` made of a batch.

        Args:
            network: shipped model.
            x: batch of the call.
            error: exception of the call.

        Returns:
            the error to raise instead, or None where the network takes the disturbed batch, or does not take x itself.
        """
        if self.own is None or not isinstance(error, Exception) or explain(network, x, RuntimeError()):
            return None
        try:
            cause = explain(network, self(x), RuntimeError())
        except Exception:  # noqa: BLE001 - the function itself raises, which is the error of the call
            return None
        return cause and ValueError(f"disturb= returned a batch that the model does not take: {cause}")

    def _disturbed(self, x: Tensor, name: str = "") -> Tensor:
        if x.dim() == 4 and min(x.shape[2:]) > 1:
            return self._of_images(x)
        rng = generator(0, x.numel(), "disturbance" + name)
        return x + 0.05 * x.float().std() * torch.randn(x.shape, generator=rng).to(x)


def _checked(found: Any, x: Inputs) -> Inputs:
    """What a function of the user's own made of a batch, or an error that names it."""
    try:
        other = batch_of(found)
    except (TypeError, ValueError) as error:
        raise type(error)(f"disturb= is a function that returns the changed batch; {error}") from None
    if len(other) != len(x):
        raise ValueError(
            f"disturb= returned {form(other)} for a batch {form(x)}; expected as many samples, in the same order"
        )
    (made, given) = ({n: v.dtype for n, v in _all(b).items()} for b in (other, x))
    if made != given:
        kinds = (", ".join(f"{n} {t}".strip() for n, t in k.items()) for k in (made, given))
        raise ValueError(
            "disturb= returned {} for a batch of {}; expected the same entries and types".format(*kinds)
        )
    if not all(v.isfinite().all() for v in _all(other).values() if v.is_floating_point()):
        raise ValueError(
            "disturb= returned values that are not finite for a batch that is; expected samples of the same classes"
        )
    return other


def _all(x: Inputs) -> dict[str, Tensor]:
    return {"": x} if isinstance(x, Tensor) else x.entries


def _entries(x: Inputs) -> dict[str, Tensor]:
    """The tensors of a batch that are no masks, by name; a batch of one tensor has no name."""
    return {n: v for n, v in _all(x).items() if not n.endswith("mask")}


def _numbers(x: Inputs) -> dict[str, Tensor]:
    return {n: v for n, v in _entries(x).items() if v.is_floating_point()}


def drifts(x: Any, within: Range | None, seed: int) -> Iterator[Any]:
    """Yield the samples as they are and under generic drifts: of floating-point tensors, then of token ids.

    Floating-point tensors get a gain and an offset, noise, blur and four corruptions, those of a dictionary all at once. Of
    token ids, up to half are replaced, each by that of another sample in the same place, where neither is masked.

    Args:
        x: samples (N, ...); blur and corruptions are of images (N, C, H, W) alone, the corruptions of three channels in [0, 1];
            token ids are (N, T), and in a dictionary "input_ids".
        within: lowest and highest value of the samples, in a dictionary of its images; None: that of the values.
        seed: random seed of the noise, and of which words are replaced.

    >>> len(list(drifts(torch.rand(2, 3, 8, 8), (0.0, 1.0), 0))), len(list(drifts(torch.rand(2, 5), (0.0, 1.0), 0)))
    (18, 12)
    >>> [d["input_ids"].shape for d in drifts(NamedTensors({"input_ids": torch.ones(2, 3, dtype=torch.int64)}), None, 0)][:1]
    [torch.Size([2, 3])]
    """
    yield x
    if isinstance(x, Tensor):
        changed = _of_numbers(x, within, seed) if x.is_floating_point() else _of_words(x, None, seed)
        yield from changed
        return
    numbers = _numbers(x)
    each = [_of_numbers(v, within if v.dim() == 4 else None, seed) for v in numbers.values()]
    for found in zip_longest(*each):
        new = {n: v if o is None else o for (n, v), o in zip(numbers.items(), found, strict=True)}
        yield NamedTensors({**x.entries, **new})
    words = {n: v for n, v in x.entries.items() if n.endswith(IDS) and v.dim() == 2}
    masks = [x.entries.get(n.replace(IDS, MASK)) for n in words]
    for replaced in zip(
        *(_of_words(v, m, seed) for v, m in zip(words.values(), masks, strict=True)), strict=True
    ):
        yield NamedTensors({**x.entries, **dict(zip(words, replaced, strict=True))})


def _of_numbers(x: Tensor, within: Range | None, seed: int) -> Iterator[Tensor]:
    low, high = within or tuple(map(float, x.aminmax()))
    for gain, offset in LINES:
        yield (low + (high - low) * offset + gain * (x - low)).clamp(low, high)
    for i, sigma in enumerate(NOISES):
        noise = torch.randn(x.shape, generator=generator(seed, i, "drift"), dtype=torch.float32).to(x)
        yield (x + sigma * (high - low) * noise).clamp(low, high)
    if x.dim() != 4:
        return
    for side in BLURS:
        pad = (side // 2,) * 4
        yield F.avg_pool2d(F.pad(x, pad, mode="replicate"), side, 1)
    if x.shape[1] == 3 and (low, high) == (0.0, 1.0) and min(x.shape[2:]) >= 8:
        for name in EXTRA:
            yield corrupt(x.clamp(0, 1), name, SEVERITY)


def _of_words(ids: Tensor, mask: Tensor | None, seed: int) -> Iterator[Tensor]:
    shown = torch.ones_like(ids, dtype=torch.bool)
    shown = mask.bool() if mask is not None and mask.shape == ids.shape else shown
    for i, share in enumerate(REPLACED):
        rng = generator(seed, i, "words")
        rows = torch.randint(len(ids), ids.shape, generator=rng).to(ids.device)
        chosen = (torch.rand(ids.shape, generator=rng) < share).to(ids.device)
        yield torch.where(chosen & shown & shown.gather(0, rows), ids.gather(0, rows), ids)


def source_samples(batches: Sequence[Any]) -> Any:
    """Return the samples of several source batches as one batch.

    Raises:
        ValueError: their samples differ in form, as sentences of several lengths do.
    """
    forms = {layout(x) if isinstance(x, NamedTensors) else str(tuple(x.shape[1:])) for x in batches}
    if len(forms) > 1:
        raise ValueError(
            "prepare of Guarded joins the source batches, and their samples have several forms: "
            f'{" and ".join(sorted(forms)[:2])}; resize the images, or pad token ids to one length (padding="max_length")'
        )
    return joined(batches)
