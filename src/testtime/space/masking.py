r"""Multimodal masking: a few tokens of a frame are shown, a few others asked for, both drawn over all modalities.

For every sample one component of a mixture is drawn; it gives a symmetric or lopsided Dirichlet over the streams of tokens, and
that divides the budget of shown tokens among them, another one the budget of asked tokens:

.. math:: b = \lfloor p B \rfloor, \quad p \sim \operatorname{Dir}(\alpha_{in}), \qquad
          b' = \lfloor p' B' \rfloor, \quad p' \sim \operatorname{Dir}(\alpha_{out})

What rounding leaves goes one by one to the largest share of fresh draws; then no stream gives more than it has. On a grid the
shown places are random, the asked ones random among the rest. A stream whose alpha is 0 is never drawn.

Reference: Mizrahi et al., 4M: Massively Multimodal Masked Modeling, NeurIPS 2023; Bachmann et al., 4M-21, NeurIPS 2024, whose
mixture :func:`mixture` has but for the components made for captions, which test-space training lacks.
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
"""The largest alpha; shares are equal long before, and near the largest float they are no numbers."""
Kind = Literal["pixels", "grid", "sequence"]
Flags = NDArray[np.bool_]
Ints = NDArray[np.int64]


@final
@dataclass(frozen=True)
class Stream:
    """Tokens of one modality.

    Attributes:
        name: everything is keyed by it.
        kind: "pixels" (patches of the picture, shown and never asked for), "grid" (a token for each place of the picture) or
            "sequence".
        length: tokens at most.
        vocabulary: ids are below it; 0 for pixels.

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
    """One way to divide the budgets.

    Attributes:
        inputs, targets: alpha of the Dirichlet by stream; a stream that is not named, or has 0, is never drawn.
        weight: how often the component is drawn, relative to the others.

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
    """The paper's "Mixture": all to all with four concentrations, and pixels to all, equally often.

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
    """4M-7: half pixels to all, half all to all with alpha 0.5."""
    asked = dict.fromkeys((s.name for s in streams if s.kind != "pixels"), 0.5)
    pixels = dict.fromkeys((s.name for s in streams if s.kind == "pixels"), 1000.0)
    return Component(pixels, asked), Component(dict.fromkeys((s.name for s in streams), 0.5), asked)


@final
@dataclass(frozen=True)
class Mask:
    """What a batch shows and asks for, as slots that hold a place: the places of all streams, one stream after another.

    Attributes:
        shown: (N, inputs) int64, -1 for a slot that stays empty.
        asked: (N, targets) int64, likewise.
        shown_of, asked_of: (N, streams) int64, the tokens of each stream. Of a sequence they are a budget only, and no slot
            is taken: what it shows is decided by :func:`testtime.space.sequences.span_masked`.
    """

    shown: Ints
    asked: Ints
    shown_of: Ints
    asked_of: Ints


@final
class Masking:
    """Draws masks for batches.

    Args:
        streams: of tokens; each has its own stretch of places, in this order.
        components: the mixture; None is :func:`mixture`.
        inputs, targets: the budgets of tokens shown and asked for, per sample.

    Raises:
        ValueError: two streams have one name, there is no component, no stream can be asked for, a component names an unknown
            stream or asks for pixels, or a budget is below 1.

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
            raise ValueError(f"the budgets are whole numbers of tokens from 1, got {inputs} and {targets}")
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
                raise ValueError(
                    f"{', '.join(asked)}: pixels are shown and never asked for; ask for their tokens"
                )
            if not any(component.targets.values()) or not any(component.inputs.values()):
                raise ValueError(
                    "every component needs a stream to show and one to ask for, of alpha above 0"
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
        """Masks for a batch.

        Args:
            lengths: (N, streams), the tokens that each sample has of each stream; 0 where it lacks the modality.
            rng: all randomness comes from it.

        Raises:
            ValueError: the lengths have another form, or are longer than the streams.
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
        """The budget divided among the streams that have tokens and an alpha."""
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
        """(N, places): the place of every token in a random order of its stream; those that are not there come last."""
        keys = rng.random((len(lengths), self.offsets[-1]))
        place = np.arange(self.offsets[-1]) - self.offsets[self.stream_of]
        keys = np.where(place < lengths[:, self.stream_of], keys, 2.0)
        ranks = np.empty(keys.shape, np.int64)
        for begin, end in zip(self.offsets, self.offsets[1:], strict=False):
            order = keys[:, begin:end].argsort(1)
            np.put_along_axis(ranks[:, begin:end], order, np.arange(end - begin)[None], 1)
        return ranks


def _slots(flags: Flags, count: int) -> Ints:
    """The places of the flags that are set, in count slots; -1 in those that are left."""
    order = (~flags).argsort(1, kind="stable")[:, :count]
    places = np.where(np.take_along_axis(flags, order, 1), order, -1)
    if places.shape[1] < count:
        places = np.pad(places, ((0, 0), (0, count - places.shape[1])), constant_values=-1)
    return places
