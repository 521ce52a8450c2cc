r"""Multimodal masking: a few tokens of a frame are input, a few others are targets, both drawn over all modalities.

For every sample one component of a mixture is drawn. It has a symmetric or asymmetric Dirichlet distribution over the streams
of tokens, by which the budget of input tokens is divided among them, and another one for the budget of target tokens:

.. math:: b = \lfloor p B \rfloor, \quad p \sim \operatorname{Dir}(\alpha_{in}), \qquad
          b' = \lfloor p' B' \rfloor, \quad p' \sim \operatorname{Dir}(\alpha_{out})

The tokens that remain after rounding are assigned one by one to the largest share of new draws; then each stream is limited to
the tokens it has. On a grid, input positions are random, and target positions are random among the others. A stream whose alpha
is 0 is never drawn.

Reference: Mizrahi et al., 4M: Massively Multimodal Masked Modeling, NeurIPS 2023; Bachmann et al., 4M-21, NeurIPS 2024, whose
mixture is that of :func:`mixture`, without the components for captions, which test-space training does not have.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final, get_args

import numpy as np
from numpy.typing import NDArray

__all__ = ["Component", "Mask", "Masking", "Stream", "mixture", "rgb_to_all"]

LARGEST = 1e9
"""Largest alpha; shares are equal at much smaller values, and NaN near the largest float."""
Kind = Literal["pixels", "grid", "sequence"]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]


@final
@dataclass(frozen=True)
class Stream:
    """Tokens of one modality.

    Attributes:
        name: name of the stream, by which all dictionaries are keyed.
        kind: "pixels" (patches of the picture, input only), "grid" (a token for each patch of the picture) or "sequence".
        length: largest number of tokens.
        vocabulary: number of ids; 0 for pixels.

    Raises:
        ValueError: there is no such kind, or the length or the vocabulary is negative.
    """

    name: str
    kind: Kind
    length: int
    vocabulary: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind) or self.length < 1 or self.vocabulary < 0:
            raise ValueError(
                f"{self.name}: expected a kind of {', '.join(get_args(Kind))}, a length of at least 1 and a vocabulary of at "
                f"least 0, got {self.kind!r}, {self.length} and {self.vocabulary}"
            )


@final
@dataclass(frozen=True)
class Component:
    """Component of the mixture: one way to divide the budgets.

    Attributes:
        inputs, targets: alpha of the Dirichlet distribution by stream; 0 for a stream that is not in it.
        weight: relative frequency of the component.

    Raises:
        ValueError: an alpha is not in [0, 1e9], or the weight is not a number above 0.
    """

    inputs: Mapping[str, float]
    targets: Mapping[str, float]
    weight: float = 1.0

    def __post_init__(self) -> None:
        for name, alpha in (*self.inputs.items(), *self.targets.items()):
            if not 0 <= alpha <= LARGEST:
                raise ValueError(f"{name}: expected an alpha in [0, {LARGEST:g}], got {alpha}")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"expected a weight above 0, got {self.weight}")


def mixture(
    streams: Sequence[Stream], alphas: Sequence[float] = (0.01, 0.1, 1.0, 10.0)
) -> tuple[Component, ...]:
    """Return the paper's "Mixture": all to all with four concentrations, and pixels to all, with equal weights.

    Args:
        streams: streams of the model.
        alphas: concentrations.

    >>> [c.inputs["rgb"] for c in mixture([Stream("rgb", "pixels", 64), Stream("tok_depth", "grid", 64, 240)])]
    [0.01, 0.1, 1.0, 10.0, 1000.0]
    """
    asked = [s.name for s in streams if s.kind != "pixels"]
    every = [
        Component(dict.fromkeys((s.name for s in streams), alpha), dict.fromkeys(asked, alpha))
        for alpha in alphas
    ]
    pixels = [s.name for s in streams if s.kind == "pixels"]
    return (
        (*every, Component(dict.fromkeys(pixels, 1000.0), dict.fromkeys(asked, 0.5)))
        if pixels
        else tuple(every)
    )


def rgb_to_all(streams: Sequence[Stream]) -> tuple[Component, ...]:
    """Return the mixture of 4M-7: half pixels to all, half all to all with alpha 0.5.

    Args:
        streams: streams of the model.
    """
    asked = dict.fromkeys((s.name for s in streams if s.kind != "pixels"), 0.5)
    pixels = dict.fromkeys((s.name for s in streams if s.kind == "pixels"), 1000.0)
    return Component(pixels, asked), Component(dict.fromkeys((s.name for s in streams), 0.5), asked)


@final
@dataclass(frozen=True)
class Mask:
    """Positions of the input and target tokens of a batch; the positions of all streams are numbered consecutively.

    Attributes:
        shown: positions (N, inputs) int64 of input tokens, -1 for an empty slot.
        asked: positions (N, targets) int64 of target tokens, -1 for an empty slot.
        shown_of, asked_of: numbers (N, streams) int64 of tokens of each stream. Those of a sequence are a budget without slots,
            which :func:`testtime.space.sequences.span_masked` fills.
    """

    shown: Ints
    asked: Ints
    shown_of: Ints
    asked_of: Ints


@final
class Masking:
    """Random masks of batches.

    Args:
        streams: streams of tokens, in the order of their positions.
        components: components of the mixture; None is :func:`mixture`.
        inputs, targets: numbers of input and target tokens of a sample.

    Raises:
        ValueError: two streams have one name, there is no component, a component has no input, no target, an unknown stream or
            pixels as target, or a budget is below 1.

    >>> streams = [Stream("rgb", "pixels", 16), Stream("tok_depth", "grid", 16, 240)]
    >>> mask = Masking(streams, inputs=8, targets=4).draw(np.full((3, 2), 16), np.random.default_rng(0))
    >>> mask.shown.shape, int((mask.asked >= 16).sum() + (mask.asked == -1).sum())
    ((3, 8), 12)
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        components: Sequence[Component] | None = None,
        inputs: int = 128,
        targets: int = 128,
    ) -> None:
        self.streams = tuple(streams)
        self.components = tuple(mixture(streams) if components is None else components)
        if min(inputs, targets) < 1 or not all(isinstance(n, int | np.integer) for n in (inputs, targets)):
            raise ValueError(
                f"expected budgets of inputs and targets as whole numbers from 1, got {inputs} and {targets}"
            )
        names = [s.name for s in self.streams]
        if len(set(names)) < len(names) or not self.components:
            raise ValueError(
                f"expected streams of different names and a component at least, got the streams {', '.join(names)} and "
                f"{len(self.components)} components"
            )
        pixels = {s.name for s in self.streams if s.kind == "pixels"}
        for component in self.components:
            unknown = sorted({*component.inputs, *component.targets} - set(names))
            if unknown:
                raise ValueError(f"no stream {', '.join(unknown)}; there are {', '.join(names)}")
            asked = sorted(name for name in pixels if component.targets.get(name, 0) > 0)
            if asked:
                raise ValueError(f"{', '.join(asked)}: pixels cannot be a target; use their tokens")
            if not any(component.targets.values()) or not any(component.inputs.values()):
                raise ValueError(
                    "every component needs an input stream and a target stream with alpha above 0"
                )
        self.inputs, self.targets = inputs, targets
        self.offsets: Ints = np.cumsum([0, *(s.length for s in self.streams)])
        self.stream_of: Ints = np.repeat(np.arange(len(names)), [s.length for s in self.streams])
        self._grid = np.array([s.kind != "sequence" for s in self.streams])
        self._alphas = [
            tuple(np.array([side.get(name, 0.0) for name in names]) for side in (c.inputs, c.targets))
            for c in self.components
        ]
        self._chance = np.array([c.weight for c in self.components], float)
        self._chance /= self._chance.sum()

    def draw(self, lengths: Ints, rng: np.random.Generator) -> Mask:
        """Draw the masks of a batch.

        Args:
            lengths: numbers (N, streams) of tokens of each sample and stream; 0 for a missing modality.
            rng: generator of all random numbers.

        Raises:
            ValueError: the lengths have another shape, or exceed those of the streams.
        """
        most = np.array([s.length for s in self.streams])
        if (
            lengths.ndim != 2
            or lengths.shape[1] != len(most)
            or (lengths < 0).any()
            or (lengths > most).any()
        ):
            raise ValueError(
                f"expected lengths (N, {len(most)}) from 0 to {most.tolist()}, got {lengths.shape}: {lengths.tolist()[:2]}"
            )
        n, streams = lengths.shape
        shown, asked = np.zeros((n, streams), np.int64), np.zeros((n, streams), np.int64)
        chosen = np.asarray(rng.choice(len(self.components), size=n, p=self._chance))
        for i in range(n):
            inputs, targets = self._alphas[chosen[i]]
            shown[i] = self._divided(inputs, self.inputs, lengths[i], rng)
            left = np.where(self._grid, lengths[i] - shown[i], lengths[i])
            asked[i] = self._divided(targets, self.targets, left, rng)
        rank, of = self._ranks(lengths, rng), self.stream_of
        grid = self._grid[of]
        is_shown = grid & (rank < shown[:, of])
        is_asked = grid & (rank >= shown[:, of]) & (rank < (shown + asked)[:, of])
        return Mask(_slots(is_shown, self.inputs), _slots(is_asked, self.targets), shown, asked)

    def _divided(
        self, alphas: NDArray[np.float64], budget: int, there: Ints, rng: np.random.Generator
    ) -> Ints:
        """Divide the budget among the streams that have tokens and an alpha above 0."""
        given = np.zeros(len(self.streams), np.int64)
        able = np.flatnonzero((alphas > 0) & (there > 0))
        if not len(able):
            return given
        alpha = alphas[able]
        part = (rng.dirichlet(alpha) * budget).astype(np.int64)
        for _ in range(budget - int(part.sum())):
            part[rng.dirichlet(alpha).argmax()] += 1
        given[able] = part
        return np.minimum(given, there)

    def _ranks(self, lengths: Ints, rng: np.random.Generator) -> Ints:
        """Return the rank (N, positions) of every token in a random order of its stream; missing tokens are last."""
        keys = rng.random((len(lengths), self.offsets[-1]))
        place = np.arange(self.offsets[-1]) - self.offsets[self.stream_of]
        keys = np.where(place < lengths[:, self.stream_of], keys, 2.0)
        ranks = np.empty(keys.shape, np.int64)
        for begin, end in zip(self.offsets, self.offsets[1:], strict=False):
            order = keys[:, begin:end].argsort(1)
            np.put_along_axis(ranks[:, begin:end], order, np.arange(end - begin)[None], 1)
        return ranks


def _slots(flags: Flags, count: int) -> Ints:
    """Return the positions of the flags that are set, in ``count`` slots; -1 in the remaining slots."""
    order = (~flags).argsort(1, kind="stable")[:, :count]
    places = np.where(np.take_along_axis(flags, order, 1), order, -1)
    if places.shape[1] < count:
        places = np.pad(places, ((0, 0), (0, count - places.shape[1])), constant_values=-1)
    return places
