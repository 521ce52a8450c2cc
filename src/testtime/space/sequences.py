r"""Sequences: boxes as words of a small vocabulary, and masking of spans by sentinels.

A box is five words, its quantised corners and its class:

.. math:: \texttt{v0=}x_{min}\;\texttt{v1=}y_{min}\;\texttt{v2=}x_{max}\;\texttt{v3=}y_{max}\;\text{class}, \qquad
          x \mapsto \operatorname{round}(x\,(\text{bins} - 1))

Boxes are sorted by the distance of their top left corner from the picture's. For masking, every token is kept with a
probability drawn from U(0, 1); each span of masked tokens becomes one sentinel, and the target contains the spans::

    a b c d e  ->  input: a [0] d [1]    target: [0] b c [1] e [2]

Departure: 4M has one vocabulary for boxes and English captions, of 30,000 word pieces; there are no captions here.

Reference: Mizrahi et al., 4M: Massively Multimodal Masked Modeling, NeurIPS 2023, whose code this follows in numbers and order;
Chen et al., Pix2seq, ICLR 2022 (boxes as words); Raffel et al., T5, JMLR 2020 (sentinels).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import final

import torch
from torch import Tensor

__all__ = ["Box", "BoxVocabulary", "span_joined", "span_masked"]

DRAWS = 32
"""Number of masks that are drawn at once, before the first that fits the budget is chosen."""
DECAY = 0.9
"""Factor of the probability of keeping a token, for each mask that exceeds the budget."""


@final
@dataclass(frozen=True)
class Box:
    """A box in a picture.

    Attributes:
        x0, y0, x1, y1: left, top, right and bottom, as fractions of the picture's width and height.
        name: name of the class.
        score: confidence of the detector.

    Raises:
        ValueError: a side lies outside of the picture, or x0 > x1, or y0 > y1.
    """

    x0: float
    y0: float
    x1: float
    y1: float
    name: str
    score: float = 1.0

    def __post_init__(self) -> None:
        if not (0 <= self.x0 <= self.x1 <= 1 and 0 <= self.y0 <= self.y1 <= 1):
            raise ValueError(
                f"expected sides of a box as fractions of the picture, 0 <= x0 <= x1 <= 1 and likewise y, got {self}; divide "
                "pixels by width and height"
            )

    def mirrored(self) -> Box:
        """Return the box mirrored left to right."""
        return Box(1 - self.x1, self.y0, 1 - self.x0, self.y1, self.name, self.score)


@final
class BoxVocabulary:
    """Vocabulary of boxes.

    Ids are, in this order: padding, start, end, the sentinels, "v0=0" to "v3=<bins - 1>", the classes.

    Args:
        classes: names of the classes.
        bins: number of bins of each coordinate.
        sentinels: number of sentinels of masked spans; a sequence of n tokens needs at most n // 2 + 2.
        score: smallest confidence of a box that is encoded.

    Raises:
        ValueError: a class is named twice or not at all, or there are too few bins or sentinels.

    >>> vocabulary = BoxVocabulary(["chair", "table"], bins=11, sentinels=9)
    >>> ids = vocabulary.encode([Box(0.5, 0.5, 1, 0.9, "table"), Box(0, 0.2, 0.3, 0.4, "chair")])
    >>> vocabulary.text(ids)
    'v0=0 v1=2 v2=3 v3=4 chair v0=5 v1=5 v2=10 v3=9 table [end]'
    >>> vocabulary.decode(ids)[1]
    Box(x0=0.5, y0=0.5, x1=1.0, y1=0.9, name='table', score=1.0)
    """

    pad, start, end = 0, 1, 2

    def __init__(
        self, classes: Sequence[str], bins: int = 1000, sentinels: int = 200, score: float = 0.6
    ) -> None:
        if not classes or len(set(classes)) < len(classes):
            raise ValueError(f"expected names of classes, each once, got {list(classes)}")
        if bins < 2 or sentinels < 2:
            raise ValueError(f"bins and sentinels are at least 2, got {bins} and {sentinels}")
        self.classes, self.bins, self.score = tuple(classes), bins, score
        self.sentinels = range(3, 3 + sentinels)
        self._corner = self.sentinels.stop
        self._class = self._corner + 4 * bins
        self._number = {name: self._class + i for i, name in enumerate(self.classes)}

    def __len__(self) -> int:
        """Number of ids."""
        return self._class + len(self.classes)

    def encode(self, boxes: Iterable[Box], length: int | None = None) -> Tensor:
        """Return the ids (T,) int64 of the boxes and the end.

        Args:
            boxes: boxes of one picture, in any order.
            length: largest number of tokens; longer sequences are truncated, with their end, as in 4M.

        Raises:
            ValueError: the class of a box is not in the vocabulary.
        """
        ids: list[int] = []
        for box in sorted((b for b in boxes if b.score >= self.score), key=lambda b: b.x0**2 + b.y0**2):
            if box.name not in self._number:
                raise ValueError(f"no class {box.name!r}; there are {', '.join(self.classes)}")
            for axis, share in enumerate((box.x0, box.y0, box.x1, box.y1)):
                ids.append(self._corner + axis * self.bins + round(share * (self.bins - 1)))
            ids.append(self._number[box.name])
        return torch.tensor([*ids, self.end][:length])

    def decode(self, ids: Tensor | Sequence[int]) -> list[Box]:
        """Return the boxes of ids, up to the end; incomplete boxes, which a model may predict, are skipped.

        Args:
            ids: ids of a sequence.
        """
        boxes: list[Box] = []
        corner: list[float] = []
        for i in _until(ids, self.end):
            axis, bin_ = divmod(i - self._corner, self.bins)
            if i >= self._class and len(corner) == 4:
                x0, y0, x1, y1 = corner
                if x0 <= x1 and y0 <= y1:
                    boxes.append(Box(x0, y0, x1, y1, self.classes[i - self._class]))
            elif self._corner <= i < self._class and axis in (0, len(corner)):
                corner = [*(corner if axis else []), bin_ / (self.bins - 1)]
                continue
            corner = []
        return boxes

    def text(self, ids: Tensor | Sequence[int]) -> str:
        """Return the words of ids.

        Args:
            ids: ids of a sequence.
        """
        return " ".join(self._word(int(i)) for i in ids)

    def _word(self, i: int) -> str:
        if i < self.sentinels.start:
            return ("[pad]", "[start]", "[end]")[i]
        if i in self.sentinels:
            return f"[{i - self.sentinels.start}]"
        if i < self._class:
            axis, bin_ = divmod(i - self._corner, self.bins)
            return f"v{axis}={bin_}"
        return self.classes[i - self._class]


def span_masked(
    ids: Tensor | Sequence[int],
    input_budget: int,
    target_budget: int,
    vocabulary: BoxVocabulary,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Mask spans of a sequence, and return input and target tokens.

    While the input exceeds its budget, the probability of keeping a token is reduced by 10 % and the mask is drawn again. A
    target that is too long begins at a random sentinel, or if that would leave a part of the budget, at the first sentinel from
    which on everything fits.

    Args:
        ids: ids (T,), without sentinels.
        input_budget: largest number of input tokens, including sentinels; with 0 all tokens are targets.
        target_budget: largest number of target tokens, including sentinels.
        vocabulary: vocabulary with the sentinels.
        generator: generator of all random numbers.

    Returns:
        input ids (I,) and target ids (J,), int64.

    Raises:
        ValueError: a budget is negative, or the vocabulary has too few sentinels for the sequence.

    >>> vocabulary = BoxVocabulary(["chair"], bins=11, sentinels=9)
    >>> ids = vocabulary.encode([Box(0, 0.2, 0.3, 0.4, "chair")])
    >>> shown, target = span_masked(ids, 4, 9, vocabulary, torch.Generator().manual_seed(1))
    >>> vocabulary.text(shown)
    '[0] v3=4 [1]'
    >>> vocabulary.text(target)
    '[0] v0=0 v1=2 v2=3 [1] chair [end] [2]'
    """
    words = [int(i) for i in ids]
    if min(input_budget, target_budget) < 0:
        raise ValueError(f"budgets are at least 0, got {input_budget} and {target_budget}")
    if (len(words) + 1) // 2 + 1 > len(vocabulary.sentinels):
        raise ValueError(
            f"a sequence of {len(words)} tokens may need {(len(words) + 1) // 2 + 1} sentinels, the vocabulary has "
            f"{len(vocabulary.sentinels)}; give it more, or shorten the sequence"
        )
    keep = float(torch.rand((), generator=generator)) if input_budget else 0.0
    kept = _kept(len(words), keep, input_budget, generator)
    shown, target = _divided(words, kept, vocabulary.sentinels)
    begins = [i for i, word in enumerate(target) if word in vocabulary.sentinels]
    if len(target) > target_budget:
        # The last sentinel only marks the end of the sequence: no target begins with it if there is another.
        chosen = int(torch.randint(max(1, len(begins) - 1), (), generator=generator))
        begin = begins[chosen]
        if len(target) - begin < target_budget:
            begin = next(i for i in begins if len(target) - i <= target_budget)
        target = target[begin : begin + target_budget]
    return torch.tensor(shown[:input_budget], dtype=torch.long), torch.tensor(target, dtype=torch.long)


def span_joined(
    shown: Tensor | Sequence[int], target: Tensor | Sequence[int], vocabulary: BoxVocabulary
) -> Tensor:
    """Join input and target tokens to a sequence: each sentinel is replaced by its span in the target.

    Without input tokens the first span is the sequence. A sentinel without a span is removed.

    Args:
        shown: input tokens.
        target: target tokens.
        vocabulary: vocabulary with the sentinels.

    >>> vocabulary = BoxVocabulary(["chair"], bins=11, sentinels=9)
    >>> span_joined([3, 20, 4], [3, 30, 31, 4, 50], vocabulary).tolist()
    [30, 31, 20, 50]
    """
    spans: dict[int, list[int]] = {}
    span: list[int] = []
    for word in map(int, target):
        if word in vocabulary.sentinels:
            span = spans.setdefault(word, [])
        else:
            span.append(word)
    places = [int(word) for word in shown] or [vocabulary.sentinels.start]
    return torch.tensor(
        [w for p in places for w in (spans.get(p, []) if p in vocabulary.sentinels else [p])],
        dtype=torch.long,
    )


def _kept(length: int, keep: float, budget: int, generator: torch.Generator) -> list[bool]:
    """Draw the tokens that are kept, at a decreasing probability until they and the sentinels fit the budget."""
    while keep:
        chances = keep * DECAY ** torch.arange(DRAWS, dtype=torch.float64)
        kept = torch.rand(DRAWS, length, generator=generator) < chances[:, None]
        before = torch.cat([kept.new_ones(DRAWS, 1), kept[:, :-1]], 1)[:, :length]
        fits = kept.sum(1) + (~kept & before).sum(1) <= budget
        if fits.any():
            return kept[int(fits.int().argmax())].tolist()
        keep = float(chances[-1]) * DECAY
    return [False] * length


def _divided(words: list[int], kept: list[bool], sentinels: range) -> tuple[list[int], list[int]]:
    """Return input and target tokens for the tokens that are kept; an additional sentinel ends the target."""
    shown: list[int] = []
    target: list[int] = []
    marks = iter(sentinels)
    for keep, run in groupby(zip(words, kept, strict=True), key=lambda pair: pair[1]):
        span = [word for word, _ in run]
        if keep:
            shown += span
        else:
            mark = next(marks)
            shown.append(mark)
            target += [mark, *span]
    return shown, [*target, next(marks)]


def _until(ids: Tensor | Sequence[int], end: int) -> Iterator[int]:
    for i in ids:
        if int(i) == end:
            return
        yield int(i)
