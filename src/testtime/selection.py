r"""Which method, when there is no label: candidates run in shadow on one's own stream, and what each gives away about itself.

>>> from testtime.methods import Source, Tent
>>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))
>>> stream = [torch.rand(8, 3, 8, 8) for _ in range(4)]
>>> seen = {name: list(watch(adapter, stream, Source(net))) for name, adapter in
...         {"Source": Source(net), "TENT": Tent(net)}.items()}
>>> recommend(seen, appearance_features(torch.cat(stream))).name in seen
True
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.intake.views import Views, views_of
from testtime.metrics import (
    aetta,
    appearance_clusters,
    appearance_features,
    consistency,
    diversity,
    dropout_disagreement,
    milliseconds,
)
from testtime.moved import renamed
from testtime.parts import generator
from testtime.parts.augment import SHIFT
from testtime.parts.features import headless, linear_head

__all__ = [
    "Advice",
    "Candidate",
    "Signs",
    "appearance_features",
    "disturbance",
    "judge",
    "mirrored",
    "moved",
    "over_time",
    "recommend",
    "turned",
    "watch",
]

__getattr__ = renamed(__name__, {"looks": "appearance_features"})

NEAR = 1.0  # percent points of estimated accuracy within which a cheaper one is named
NARROWING = 0.1  # of diversity, lost beyond what the median candidate loses
WINDOW = 10  # images of each class, on average, in a stretch that is drawn
COLLAPSE = 0.5  # of the diversity of the answers of the most diverse candidate
ALIKE = 10  # images of each class, on average, in a group of those that look alike
GROUPS = 64  # at most


@final
@dataclass(frozen=True)
class Signs:
    """What a candidate gave away on one batch.

    Attributes:
        said: (N,) the class of each image.
        classes: C.
        agreement: share of the images that the source model answers alike.
        confidence: mean highest probability.
        disagreement: share of answers that change under dropout before the head; NaN without a linear head.
        spread: entropy of the mean probabilities under dropout, over log C; NaN without a linear head.
        changed: share of answers that are others for the disturbed image.
        milliseconds: of the call.
        updated: whether the adapter moved its parameters.
    """

    said: tuple[int, ...]
    classes: int
    agreement: float
    confidence: float
    disagreement: float
    spread: float
    changed: float
    milliseconds: float
    updated: bool

    @property
    def images(self) -> int:
        """How many were answered."""
        return len(self.said)

    @property
    def answers(self) -> NDArray[np.int64]:
        """(C,) how many images got each class."""
        return np.bincount(self.said, minlength=self.classes)


def mirrored(x: Tensor) -> Tensor:
    """The images mirrored from left to right: for photographs, which then still show the same."""
    return x.flip(-1)


def turned(x: Tensor, degrees: float = 10.0) -> Tensor:
    """The images turned anticlockwise about their middle, borders continued: for digits, text and signs.

    >>> x = torch.rand(1, 1, 9, 9)
    >>> bool(torch.allclose(turned(x, 90.0), x.rot90(dims=(2, 3)), atol=1e-5))
    True
    """
    h, w = x.shape[2:]
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    where = x.new_tensor([[cos, -sin * h / w, 0.0], [sin * w / h, cos, 0.0]]).expand(len(x), 2, 3)
    grid = F.affine_grid(where, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def moved(x: Tensor, shift: float = 1 / 2) -> Tensor:
    """The images moved to the right by a sixteenth of their width, at least a pixel, borders continued.

    Args:
        x: images (N, C, H, W).
        shift: largest shift that keeps the class, as a share of the side.

    Raises:
        ValueError: that is less than a pixel.
    """
    by = min(max(x.shape[-1] // 16, 1), int(x.shape[-1] * shift))
    if by < 1:
        raise ValueError(
            f"images of {x.shape[-1]} pixels cannot be moved by {shift:g} of their width at most, and the model forbids to "
            "mirror or turn them; pass a change that keeps their class: watch(..., disturb=change)"
        )
    return torch.cat([x[..., :1].expand(*x.shape[:-1], by), x[..., :-by]], dim=-1)


def disturbance(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """The strongest of :func:`mirrored`, :func:`turned` and :func:`moved` that keeps the class.

    Args:
        model: declares which changes do (:class:`testtime.models.Views`); otherwise all are taken to.

    >>> from testtime.models import load_model
    >>> disturbance(load_model("digits-cnn")).__name__
    'turned'
    """
    declared = views_of(model) or Views()
    if declared.mirror or declared.turn:
        return mirrored if declared.mirror else turned
    return partial(moved, shift=declared.shift) if declared.shift < SHIFT else moved


def watch(
    adapter: Adapter,
    stream: Iterable[Tensor],
    source: Adapter,
    rate: float = 0.4,
    passes: int = 10,
    disturb: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Signs]:
    """Let a candidate predict and learn, batch after batch, and note its signs; nobody acts on its answers.

    Args:
        adapter: the candidate; prepared, if it needs to be.
        stream: batches (N, C, H, W) as they arrive, without labels.
        source: what is in use now, or the model as it was trained: ``Source(model)``.
        rate, passes: of the dropout, see `testtime.metrics.dropout_disagreement`.
        disturb: a change of the images that keeps their class; by default the :func:`disturbance` that fits the candidate's
            model.

    Raises:
        ValueError: an image was refused, so that the counts would not be comparable.
    """
    disturb = disturb or disturbance(adapter)
    for number, x in enumerate(stream):
        taken, answer = milliseconds(lambda x=x: adapter(x), x.device)  # type: ignore[misc]
        if not bool(answer.valid.all()):
            raise ValueError(
                f"batch {number} holds {int((~answer.valid).sum())} images that are not finite; take them out of the stream"
            )
        logits = answer.logits.float()
        said = logits.argmax(dim=1)
        other, spread = _dropped(adapter, x, generator(0, number, "dropout", x.device), rate, passes)
        yield Signs(
            tuple(said.tolist()),
            logits.shape[1],
            float((source.predict(x).argmax(dim=1) == said).float().mean()),
            float(logits.softmax(dim=1).amax(dim=1).mean()),
            other,
            spread,
            float((adapter.predict(disturb(x)).argmax(dim=1) != said).float().mean()),
            taken,
            bool(answer.updated),
        )


def _dropped(
    adapter: Adapter, x: Tensor, rng: torch.Generator, rate: float, passes: int
) -> tuple[float, float]:
    """Disagreement and spread of the network that a candidate adapts."""
    network: nn.Module = adapter
    while isinstance(network, Adapter):
        network = network.model
    if not any(isinstance(m, nn.Linear) for m in network.modules()):
        return float("nan"), float("nan")
    with torch.no_grad():
        features = headless(network)(x)
    return dropout_disagreement(features, linear_head(network)[1], rng, rate, passes)


@final
@dataclass(frozen=True)
class Candidate:
    """What a stream's signs say of a candidate. Accuracy, agreement, confidence and diversity are in percent.

    Attributes:
        name: of the candidate.
        accuracy: estimated from how consistent the answers are (:func:`testtime.metrics.consistency`).
        aetta: for comparison the estimate of AETTA, mean over the stream; NaN where there is no linear head.
        agreement: with the source model.
        confidence: and ``confidence_drift``, its change from the first third of the stream to the last.
        diversity: of the answers in a third of the stream, entropy over log C, the least of the three; and
            ``diversity_drift``, its change from the first third to the last.
        milliseconds: of a batch, median.
        alarms: what speaks against it, in words; empty if nothing does.
    """

    name: str
    accuracy: float
    aetta: float
    agreement: float
    confidence: float
    confidence_drift: float
    diversity: float
    diversity_drift: float
    milliseconds: float
    alarms: tuple[str, ...]


@final
@dataclass(frozen=True)
class Advice:
    """Which candidate, and why.

    Attributes:
        name: of the candidate.
        reasons: sentences.
        candidates: all of them, the best first, those with alarms last.
    """

    name: str
    reasons: tuple[str, ...]
    candidates: tuple[Candidate, ...]


def over_time(signs: Sequence[Signs], looks: ArrayLike) -> tuple[list[int], list[float]]:
    """The estimated accuracy along a stream, to be drawn.

    Args:
        signs: of one candidate.
        looks: as for `judge`.

    Returns:
        how many images were seen at the end of each stretch of 10 C images at least (C classes), and the estimate in percent of
        those since the last.
    """
    parts: list[list[Signs]] = [[]]
    for one in signs:
        if sum(s.images for s in parts[-1]) >= WINDOW * one.classes:
            parts.append([])
        parts[-1].append(one)
    if len(parts) > 1 and sum(s.images for s in parts[-1]) < WINDOW * signs[0].classes:
        last = parts.pop()
        parts[-1] += last
    group = _groups(signs, looks)
    answers = _answers(signs, group)
    seen, guesses, image = [], [], 0
    for part in parts:
        images = slice(image, image := image + sum(s.images for s in part))
        here = np.bincount(group[images], minlength=len(answers)) / answers.sum(axis=1).clip(1)
        seen.append(image)
        guesses.append(consistency(_mean([s.changed for s in part], part), answers * here[:, None]))
    return seen, guesses


def judge(seen: Mapping[str, Sequence[Signs]], looks: ArrayLike) -> tuple[Candidate, ...]:
    """Sum up the signs of candidates that were shown the same stream.

    A candidate that is wrong in the same way about an image and the disturbed one looks consistent; but it says one class in
    fog and another in noise, and that its answers follow what images look like counts against it.

    Alarms are raised against the other candidates, as a stream may hold few classes and they all see the same: where the
    answers of a third of the stream are spread over classes by less than half of what those of the most diverse candidate
    are in the same third; where they narrow from the first third to the last by 10 points (of entropy over log C) more than
    those of the median candidate; and where disturbed images are answered alike no more often than by chance.

    Args:
        seen: by name, what `watch` yielded.
        looks: features of the appearance of the stream's images, (M, F), in its order, from
            :func:`testtime.metrics.appearance_features`.

    Raises:
        ValueError: there is no candidate, one has seen nothing, they have seen streams of different lengths, or there are
            not as many looks as images.

    Reference: for the estimates see `testtime.metrics.label_free`; the alarms are ours.
    """
    if not seen or any(not signs for signs in seen.values()):
        raise ValueError("expected candidates that have seen a stream: watch one first")
    shown = {name: [one.images for one in signs] for name, signs in seen.items()}
    if len({tuple(images) for images in shown.values()}) > 1:
        lengths = ", ".join(f"{name}: {sum(images)} images" for name, images in shown.items())
        raise ValueError(f"candidates are compared on the same batches, and these were not: {lengths}")
    thirds = {name: [_diversity(part) for part in _thirds(signs)] for name, signs in seen.items()}
    most = [max(parts) for parts in zip(*thirds.values(), strict=True)]
    usual = float(np.median([parts[-1] - parts[0] for parts in thirds.values()]))
    group = _groups(next(iter(seen.values())), looks)
    return tuple(_judged(name, signs, group, thirds[name], most, usual) for name, signs in seen.items())


def recommend(seen: Mapping[str, Sequence[Signs]], looks: ArrayLike) -> Advice:
    """Choose the candidate of the highest estimated accuracy that no alarm speaks against, and name a cheaper one that is near.

    If alarms speak against all, it is the first that was given: give the model that is in use first.

    Args:
        seen: by name, what `watch` yielded.
        looks: as for `judge`.

    Raises:
        ValueError: as `judge`.
    """
    found = judge(seen, looks)
    ranked = sorted((c for c in found if not c.alarms), key=lambda c: -c.accuracy)
    rest = tuple(c for c in found if c.alarms)
    if not ranked:
        why = (f"Nothing speaks for a change to {c.name}: {'; '.join(c.alarms)}." for c in found)
        return Advice(found[0].name, tuple(why), found)
    chosen = ranked[0]
    near = [c for c in ranked if c.accuracy >= chosen.accuracy - NEAR]
    cheapest = min(near, key=lambda c: c.milliseconds)
    reasons = [
        f"{chosen.name} is estimated to be right on {chosen.accuracy:.1f} % of the images, with "
        f"{chosen.milliseconds:.0f} ms a batch; its answers agree with the source model's on {chosen.agreement:.0f} %."
    ]
    if cheapest.milliseconds < chosen.milliseconds / 2:
        reasons.append(
            f"{cheapest.name} is estimated {chosen.accuracy - cheapest.accuracy:.1f} points lower and takes "
            f"{cheapest.milliseconds:.0f} ms."
        )
    reasons += [f"Not {c.name}: {'; '.join(c.alarms)}." for c in rest]
    one = seen[chosen.name][0]
    images, enough = sum(s.images for s in seen[chosen.name]), 2 * ALIKE * one.classes
    if images < enough:
        reasons.append(
            f"{images} images are too few to tell whether answers follow what images look like: give {enough} or more."
        )
    return Advice(chosen.name, tuple(reasons), (*ranked, *rest))


def _judged(
    name: str,
    signs: Sequence[Signs],
    group: NDArray[np.int64],
    spread: Sequence[float],
    most: Sequence[float],
    usual: float,
) -> Candidate:
    parts = _thirds(signs)
    changed = _mean([s.changed for s in signs], signs)
    dropped = aetta([s.disagreement for s in signs], [s.spread for s in signs], signs[0].classes)
    confidence = [_mean([s.confidence for s in part], part) for part in parts]
    alarms = []
    for part, (own, other) in enumerate(zip(spread, most, strict=True), 1):
        if own < COLLAPSE * other:
            alarms.append(
                f"in part {part} of {len(spread)} its answers collapse to few classes (diversity {100 * own:.0f} %, another "
                f"candidate's {100 * other:.0f} %)"
            )
    narrowed = spread[-1] - spread[0] - usual
    if narrowed < -NARROWING:
        alarms.append(
            f"its answers narrow and those of others do not (diversity {100 * spread[0]:.0f} %, then {100 * spread[-1]:.0f} %)"
        )
    if 1 - changed < 1.5 / signs[0].classes:
        alarms.append(
            f"its answers are others for {100 * changed:.0f} % of the disturbed images, as if drawn"
        )
    return Candidate(
        name,
        consistency(changed, _answers(signs, group)),
        _mean(dropped, signs),
        100 * _mean([one.agreement for one in signs], signs),
        100 * float(np.mean(confidence)),
        100 * (confidence[-1] - confidence[0]),
        100 * min(spread),
        100 * (spread[-1] - spread[0]),
        float(np.median([one.milliseconds for one in signs])),
        tuple(alarms),
    )


def _groups(signs: Sequence[Signs], looks: ArrayLike) -> NDArray[np.int64]:
    """(M,) the group of each image: those that look alike."""
    table, images = np.asarray(looks), sum(s.images for s in signs)
    if len(table) != images:
        raise ValueError(
            f"expected the looks of the {images} images that the candidates have seen, got {len(table)}"
        )
    return appearance_clusters(table, min(max(images // (ALIKE * signs[0].classes), 1), GROUPS))


def _answers(signs: Sequence[Signs], group: NDArray[np.int64]) -> NDArray[np.float64]:
    """(G, C) how many images of each group got each class."""
    said = np.concatenate([np.asarray(s.said, dtype=np.int64) for s in signs])
    answers = np.zeros((int(group.max()) + 1, signs[0].classes))
    np.add.at(answers, (group, said), 1)
    return answers


def _mean(values: Sequence[float] | NDArray[np.float64], signs: Sequence[Signs]) -> float:
    """Over images."""
    return float(np.average(values, weights=[s.images for s in signs]))


def _thirds(signs: Sequence[Signs]) -> list[Sequence[Signs]]:
    """Three parts of the stream, or as many as there are batches."""
    parts = min(3, len(signs))
    ends = [round(i * len(signs) / parts) for i in range(parts + 1)]
    return [signs[a:b] for a, b in pairwise(ends)]


def _diversity(signs: Sequence[Signs]) -> float:
    return diversity(np.sum([one.answers for one in signs], axis=0))
