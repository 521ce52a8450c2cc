"""The input gate of a session: which samples of a request are answered, and which of those are learned from.

A *refused* sample (NaN or infinity, out of range) is not shown to the network: its row of the answer is NaN. A *quarantined*
sample (constant, repeated) is predicted, and never learned from. Both are noted with a reason and a digest; pixels are kept
only on demand.
"""

from __future__ import annotations

import hashlib
import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import torch
from torch import Tensor

from testtime.errors import need_pillow
from testtime.gate import check_batch
from testtime.intake.named import NamedTensors
from testtime.serve.checks import need_kinds, need_number, need_whole, refused_field
from testtime.serve.image_files import decode

__all__ = ["GateOptions", "InputGate", "Quarantine", "Screening", "png_bytes", "read_image"]

SHORT = 16  # bytes of a digest
WITHOUT = {
    "repeats": 0,
    "constant": False,
    "contrast": 0,
    "tiny": 0,
}  # settings in a log, and those of no effect


@dataclass(frozen=True)
class GateOptions:
    """Settings of the input gate.

    Attributes:
        shape: shape of a sample without the batch dimension; None: that of the first admitted sample.
        repeats: number of the last admitted samples of the stream that a new sample must differ from; 0: no comparison.
        constant: whether a sample without contrast is quarantined. A step on such samples fails in models with BatchNorm, and a
            failed step costs a prediction more.
        contrast: difference of the largest and the smallest value up to which a sample is without contrast, as a share of the
            width of the range of the inputs or, where that is unknown, of the largest size of a value; 0: one value alone.
        tiny: size below which a value is taken as 0, since many processors are slow with numbers near the smallest; 0: none is.
        most: largest number of samples in a request.
        largest: largest number of values in a sample.
        quarantine: number of refused and quarantined samples whose reason and digest are kept in memory, over all streams.
        pixels: whether their values are kept too, in memory alone; off by default, for privacy.

    Raises:
        ValueError: a value is of another type, or out of range.
    """

    shape: tuple[int, ...] | None = None
    repeats: int = 64
    constant: bool = True
    contrast: float = 1e-6
    tiny: float = 1e-30
    most: int = 4096
    largest: int = 2**26
    quarantine: int = 64
    pixels: bool = False

    def __post_init__(self) -> None:
        need_whole(self, repeats=0, most=1, largest=1, quarantine=0)
        need_number(self, "contrast", "tiny", below=1)
        need_kinds(self, {"constant": bool, "pixels": bool})
        if self.shape is None:
            return
        if not isinstance(self.shape, list | tuple) or not self.shape or not all(map(_is_size, self.shape)):
            raise refused_field(self, "shape", "whole numbers above 0, such as (3, 224, 224), or None")
        object.__setattr__(self, "shape", tuple(self.shape))

    @property
    def recorded(self) -> dict[str, Any]:
        """What decides which samples are learned from, and as what, for the audit log."""
        return {name: getattr(self, name) for name in WITHOUT}

    @classmethod
    def replayed(cls, found: Mapping[str, Any]) -> GateOptions:
        """The settings in a record; those of a log that was written without them had no effect."""
        return cls(**{name: found.get(name, without) for name, without in WITHOUT.items()})


@dataclass(frozen=True)
class Screening:
    """What the gate found of a request of N samples.

    Attributes:
        refused: reason of each sample that must not meet the network, or None.
        quarantined: reason of each sample that may be predicted and not learned from, or None.
        digests: digest of each sample, 16 bytes.
    """

    refused: tuple[str | None, ...]
    quarantined: tuple[str | None, ...]
    digests: tuple[bytes, ...]

    @property
    def admitted(self) -> list[int]:
        """Rows to learn from."""
        return [
            i
            for i, both in enumerate(zip(self.refused, self.quarantined, strict=True))
            if both == (None, None)
        ]

    @property
    def apart(self) -> list[int]:
        """Rows to predict only."""
        return [
            i for i, (r, q) in enumerate(zip(self.refused, self.quarantined, strict=True)) if r is None and q
        ]

    @property
    def digest(self) -> str:
        """Digest of the whole request, 32 hexadecimal digits."""
        return hashlib.blake2b(b"".join(self.digests), digest_size=SHORT).hexdigest()


@dataclass(frozen=True)
class Held:
    """A sample in quarantine.

    Attributes:
        stream: name of its stream.
        offset: place of the sample in its stream.
        reason: why it was refused, or not learned from.
        digest: digest of its values, hexadecimal.
        time: seconds since 1970.
        refused: whether it was refused; otherwise it was answered.
        pixels: its values; None unless the gate keeps them.
    """

    stream: str
    offset: int
    reason: str
    digest: str
    time: float
    refused: bool
    pixels: Tensor | None = field(default=None, compare=False, repr=False)


class Quarantine:
    """The last samples that were refused or not learned from: reason and digest, in memory, bounded.

    Args:
        options: those of the gate.
    """

    def __init__(self, options: GateOptions) -> None:
        self.pixels = options.pixels
        self._held: deque[Held] = deque(maxlen=options.quarantine)

    def note(self, screening: Screening, x: Tensor, stream: str, offset: int, time: float) -> None:
        """Note the samples of a request that were not admitted."""
        for row, (r, q) in enumerate(zip(screening.refused, screening.quarantined, strict=True)):
            if (reason := r or q) is not None:
                pixels = x[row].detach().cpu().clone() if self.pixels else None
                digest = screening.digests[row].hex()
                self._held.append(Held(stream, offset + row, reason, digest, time, r is not None, pixels))

    def held(self, stream: str | None = None) -> tuple[Held, ...]:
        """The samples of a stream, or of all of them, oldest first."""
        return tuple(one for one in tuple(self._held) if stream in (None, one.stream))

    def forget(self, stream: str) -> None:
        """Drop the samples of a stream."""
        kept = [one for one in tuple(self._held) if one.stream != stream]
        self._held.clear()
        self._held.extend(kept)


class InputGate:
    """The checks of a request before the network meets it.

    Args:
        options: settings.

    Attributes:
        shape: shape of a sample without the batch dimension; None before the first admitted sample.

    >>> gate = InputGate(GateOptions())
    >>> x = torch.rand(4, 3, 8, 8); x[1] = x[0]; x[2] = 0.5; x[3, 0, 0, 0] = torch.nan
    >>> found = gate.screen(x, (), (0.0, 1.0))
    >>> found.refused
    (None, None, None, 'not finite')
    >>> found.quarantined, found.admitted
    ((None, 'repeated', 'constant', None), [0])
    """

    def __init__(self, options: GateOptions) -> None:
        self.options, self.shape = options, options.shape

    def check(self, x: Any) -> None:
        """Refuse what is no request for this model.

        Raises:
            TypeError: x is no dense floating-point tensor.
            ValueError: x has no batch dimension or no samples, too many, or samples of another shape than those before.
        """
        if isinstance(x, Mapping | NamedTensors):
            raise TypeError(
                "expected one floating-point tensor (N, ...), got a dictionary with "
                f"{', '.join(map(repr, x.keys())) or 'no entry'}; the gate, the quarantine and the audit log of a session know "
                "samples of one tensor alone: call the adapter itself with a dictionary"
            )
        check_batch(x)
        if not x.is_floating_point():
            raise TypeError(
                f"expected floating-point images, usually in [0, 1], got {x.dtype}; a session takes no token ids: call the "
                "adapter itself with them"
            )
        if not len(x):
            raise ValueError(f"expected at least one sample, got shape {tuple(x.shape)}")
        if len(x) > self.options.most:
            raise ValueError(
                f"expected at most {self.options.most} samples in a request, got {len(x)}; send several requests"
            )
        if x[0].numel() > self.options.largest:
            raise ValueError(
                f"expected at most {self.options.largest} values in a sample, got shape {tuple(x.shape[1:])}"
            )
        if self.shape is not None and tuple(x.shape[1:]) != self.shape:
            raise ValueError(
                f"expected samples of shape {self.shape}, got {tuple(x.shape[1:])}; resize the images, or send one batch "
                f"(N, {', '.join(map(str, self.shape))})"
            )

    def screen(self, x: Tensor, recent: Iterable[bytes], within: tuple[float, float] | None) -> Screening:
        """Sort the samples of a request that :meth:`check` lets pass.

        Args:
            x: samples (N, ...).
            recent: digests of the samples of the stream that were admitted last.
            within: range of the inputs, as :func:`testtime.gate.admit` takes it.
        """
        low, high = (v.tolist() for v in x.detach().flatten(1).aminmax(dim=1))
        refused = tuple(_refusal(one, other, within) for one, other in zip(low, high, strict=True))
        digests, single = _digests(x), x[0].numel() == 1
        even = self.options.constant and not single
        flat = [even and self._without_contrast(a, b, within) for a, b in zip(low, high, strict=True)]
        known = set(recent) if self.options.repeats else set()
        held: list[str | None] = []
        for one, reason, same in zip(digests, refused, flat, strict=True):
            why = None if reason else "constant" if same else "repeated" if one in known else None
            if self.options.repeats and reason is None:
                known.add(one)
            held.append(why)
        return Screening(refused, tuple(held), digests)

    def answered(self, x: Tensor, screening: Screening) -> None:
        """Take the shape of a request that the network answered, if a sample of it was admitted and no shape is known."""
        if self.shape is None and screening.admitted:
            self.shape = tuple(x.shape[1:])

    def settled(self, x: Tensor) -> Tensor:
        """The samples as the network gets them: values near the smallest number are 0."""
        tiny = torch.logical_and(x.abs() < self.options.tiny, x != 0) if self.options.tiny else None
        return x if tiny is None or not bool(tiny.any()) else x.masked_fill(tiny, 0)

    def _without_contrast(self, low: float, high: float, within: tuple[float, float] | None) -> bool:
        scale = max(abs(low), abs(high)) if within is None else within[1] - within[0]
        return high - low <= max(self.options.contrast * scale, self.options.tiny)


def _is_size(value: Any) -> bool:
    return type(value) is int and value > 0


def _refusal(low: float, high: float, within: tuple[float, float] | None) -> str | None:
    """Why a sample with these extremes is refused, by the rule of :func:`testtime.gate.admit`."""
    if not (math.isfinite(low) and math.isfinite(high)):
        return "not finite"
    if within is None:
        return None
    width = within[1] - within[0]
    return None if low >= within[0] - width and high <= within[1] + width else "out of range"


def read_image(data: bytes, *, largest: int = 2**24, channels: int = 3) -> Tensor:
    """Decode a PNG or JPEG file; its size is checked before memory is allocated.

    Args:
        data: content of the file; the orientation of EXIF is applied, transparency is dropped.
        largest: largest number of pixels.
        channels: 3 (RGB) or 1 (grey).

    Returns:
        the image (channels, H, W), float32 in [0, 1].

    Raises:
        ValueError: the file is damaged, of another format, of more than 8 bits per channel, or too large.
        ImportError: Pillow is not installed.
    """
    if channels not in (1, 3):
        raise ValueError(f"expected 3 channels (RGB) or 1 (grey), got {channels}")
    return torch.from_numpy(decode(data, channels, largest)).float().div(255)


def png_bytes(image: Tensor) -> bytes:
    """Encode an image as a PNG file.

    Args:
        image: image (C, H, W) of 1 or 3 channels in [0, 1]; what is no number is black.

    Raises:
        ImportError: Pillow is not installed.
    """
    pixels = image.nan_to_num().mul(255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous()
    file = BytesIO()
    need_pillow().fromarray(pixels.squeeze(2).numpy()).save(file, "PNG")
    return file.getvalue()


def _digests(x: Tensor) -> tuple[bytes, ...]:
    rows = x.detach().cpu().contiguous().reshape(len(x), -1).view(torch.uint8).numpy()
    return tuple(hashlib.blake2b(row.data, digest_size=SHORT).digest() for row in rows)
