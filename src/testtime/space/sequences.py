r"""Sequences: boxes as words of a small vocabulary, and spans of a sequence hidden behind sentinels.

A box is five words, its corners in bins of the picture and its class:

.. math:: \texttt{v0=}x_{min}\;\texttt{v1=}y_{min}\;\texttt{v2=}x_{max}\;\texttt{v3=}y_{max}\;\text{class}, \qquad
          x \mapsto \operatorname{round}(x\,(\text{bins} - 1))

Boxes come in the order of the distance of their top left corner from the picture's. To hide a part, every token is kept with a
probability drawn from U(0, 1); each run of tokens that are not becomes one sentinel, and the target says what stood there::

    a b c d e  ->  shown: a [0] d [1]    target: [0] b c [1] e [2]

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
"""How often a sequence is drawn at once, before it is looked at whether one fits."""
DECAY = 0.9
"""Of the probability to keep a token, as often as more is shown than may be."""


@final
@dataclass(frozen=True)
class Box:
    """A box in a picture.

    Attributes:
        x0, y0, x1, y1: left, top, right and bottom, as shares of the picture's width and height.
        name: of its class.
        score: how sure the one who found it was.

    Raises:
        ValueError: a side lies outside of the picture, or left of or above the opposite one.
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
                f"sides of a box are shares of the picture, 0 <= x0 <= x1 <= 1 and likewise y, got {self}; divide pixels "
                "by width and height"
            )

    def mirrored(self) -> Box:
        """The box in the mirror image (left is right)."""
        return Box(1 - self.x1, self.y0, 1 - self.x0, self.y1, self.name, self.score)


@final
class BoxVocabulary:
    """The words that boxes are written with, and their ids.

    Ids are, in this order: padding, start, end, the sentinels, "v0=0" to "v3=<bins - 1>", the classes.

    Args:
        classes: names of the classes.
        bins: of each coordinate.
        sentinels: marks of hidden spans; a sequence of n tokens needs n // 2 + 2 at most.
        score: boxes of a lower one are left out.

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
        """How many ids there are."""
        return self._class + len(self.classes)

    def encode(self, boxes: Iterable[Box], length: int | None = None) -> Tensor:
        """The ids (T,) int64 of the boxes and the end.

        Args:
            boxes: of one picture, in any order.
            length: tokens at most; what is over is cut off, the end with it, as 4M does.

        Raises:
            ValueError: a box is of a class that the vocabulary lacks.
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
        """The boxes that ids say, up to the end; whatever is no whole box, as a model may say, is passed over."""
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
        """The ids as words."""
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
    """Hide spans of a sequence: what is shown, and what is asked for.

    As long as more is shown than may be, the probability to keep a token falls by a tenth and all are drawn anew. A target that
    is too long is cut: it begins at a random sentinel, or where that would leave a part of the budget, at the first sentinel
    from which on everything fits.

    Args:
        ids: (T,), without sentinels.
        input_budget: shown tokens at most, sentinels among them; with 0 everything is asked for.
        target_budget: asked tokens at most, sentinels among them.
        vocabulary: where the sentinels come from.
        generator: all randomness comes from it.

    Returns:
        ids shown and ids asked for, (I,) and (J,) int64.

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
        # The last sentinel only says that the sequence ends: no target begins with it if there is another.
        chosen = int(torch.randint(max(1, len(begins) - 1), (), generator=generator))
        begin = begins[chosen]
        if len(target) - begin < target_budget:
            begin = next(i for i in begins if len(target) - i <= target_budget)
        target = target[begin : begin + target_budget]
    return torch.tensor(shown[:input_budget], dtype=torch.long), torch.tensor(target, dtype=torch.long)


def span_joined(
    shown: Tensor | Sequence[int], target: Tensor | Sequence[int], vocabulary: BoxVocabulary
) -> Tensor:
    """The sequence that shown and target tokens say together: each sentinel gives way to what the target says of it.

    Of a sequence that is shown not at all, what is asked for is the sequence. A sentinel of which the target says nothing
    leaves nothing.

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
    """Which tokens are kept: drawn at a falling probability until they and their sentinels fit, many draws at once."""
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
    """Shown and target tokens, given which are kept; the sentinel after the last ends the target."""
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
