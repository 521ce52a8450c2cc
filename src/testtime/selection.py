r"""Selection of a method without labels: candidates run in shadow on the user's stream, and label-free diagnostics rank them.

>>> from testtime.methods import Source, Tent
>>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 36, 3))
>>> stream = [torch.rand(8, 3, 8, 8) for _ in range(4)]
>>> seen = {name: list(monitor(adapter, stream, Source(net))) for name, adapter in
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
from typing import Any, final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.adapter import Adapter
from testtime.gate import batch_of
from testtime.intake.named import form
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
    "Diagnostics",
    "appearance_features",
    "appearance_groups",
    "disturbance",
    "judge",
    "mirrored",
    "monitor",
    "moved",
    "over_time",
    "recommend",
    "turned",
]

__getattr__ = renamed(
    __name__, {"Signs": "Diagnostics", "looks": "testtime.metrics:appearance_features", "watch": "monitor"}
)

NEAR = 1.0  # percent points of estimated accuracy within which a cheaper one is named
NARROWING = 0.1  # of diversity, lost beyond what the median candidate loses
WINDOW = 10  # images of each class, on average, in a stretch that is drawn
COLLAPSE = 0.5  # of the diversity of the answers of the most diverse candidate
ALIKE = 10  # images of each class, on average, in a cluster of similar appearance
GROUPS = 64  # at most


@final
@dataclass(frozen=True)
class Diagnostics:
    """Label-free diagnostics of a candidate on one batch.

    Attributes:
        predicted: (N,) predicted class of each image.
        classes: C.
        agreement: share of the images for which the source model predicts the same class.
        confidence: mean highest probability.
        disagreement: share of predictions that change under dropout before the head; NaN without a linear head.
        spread: entropy of the mean probabilities under dropout, over log C; NaN without a linear head.
        changed: share of predictions that change when the image is disturbed.
        milliseconds: duration of the call.
        updated: whether the adapter moved its parameters.
    """

    predicted: tuple[int, ...]
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
        """Number of images."""
        return len(self.predicted)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Number of images predicted as each class, (C,)."""
        return np.bincount(self.predicted, minlength=self.classes)


def mirrored(x: Tensor) -> Tensor:
    """Mirror images (N, C, H, W) from left to right, which keeps the class of photographs."""
    return x.flip(-1)


def turned(x: Tensor, degrees: float = 10.0) -> Tensor:
    """Rotate images (N, C, H, W) anticlockwise about their centre, borders replicated: for digits, text and signs.

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
    """Shift images to the right by a sixteenth of their width, at least a pixel, borders replicated.

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
            "mirror or turn them; pass a change that keeps their class: monitor(..., disturb=change)"
        )
    return torch.cat([x[..., :1].expand(*x.shape[:-1], by), x[..., :-by]], dim=-1)


def disturbance(model: nn.Module) -> Callable[[Tensor], Tensor]:
    """Return the strongest of :func:`mirrored`, :func:`turned` and :func:`moved` that keeps the class.

    Args:
        model: source model, which may declare the changes that keep the class (:class:`testtime.models.Views`); all do
            otherwise.

    >>> from testtime.models import load_model
    >>> disturbance(load_model("digits-cnn")).__name__
    'turned'
    """
    declared = views_of(model) or Views()
    if declared.mirror or declared.turn:
        return mirrored if declared.mirror else turned
    return partial(moved, shift=declared.shift) if declared.shift < SHIFT else moved


def monitor(
    adapter: Adapter,
    stream: Iterable[Any],
    source: Adapter,
    rate: float = 0.4,
    passes: int = 10,
    disturb: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Diagnostics]:
    """Run a candidate in shadow and yield its diagnostics, batch by batch.

    Args:
        adapter: candidate; prepared, if its method needs that.
        stream: unlabelled batches in their order, images (N, C, H, W) or whatever the adapter takes.
        source: adapter in use now, or the model as it was trained: ``Source(model)``.
        rate, passes: rate and number of passes of the dropout, see `testtime.metrics.dropout_disagreement`.
        disturb: change of the images that keeps their class; by default the :func:`disturbance` that fits the candidate's
            model.

    Raises:
        ValueError: a sample was refused, so that the counts would not be comparable; the samples are no images and ``disturb``
            is not given.
    """
    of_images = disturb is None
    disturb = disturb or disturbance(adapter)
    for number, given in enumerate(stream):
        x: Any = batch_of(given)
        if of_images and not (isinstance(x, Tensor) and x.is_floating_point()):
            raise ValueError(
                f"the default disturbance is of images (N, C, H, W), got a batch {form(x)}; pass disturb= a function that "
                "changes a batch and keeps its classes, such as one that masks a few tokens"
            )
        taken, answer = milliseconds(lambda x=x: adapter(x), x.device)  # type: ignore[misc]
        if not bool(answer.valid.all()):
            raise ValueError(
                f"batch {number} holds {int((~answer.valid).sum())} images that are not finite; take them out of the stream"
            )
        logits = answer.logits.float()
        predicted = logits.argmax(dim=1)
        other, spread = _dropped(adapter, x, generator(0, number, "dropout", x.device), rate, passes)
        yield Diagnostics(
            tuple(predicted.tolist()),
            logits.shape[1],
            float((source.predict(x).argmax(dim=1) == predicted).float().mean()),
            float(logits.softmax(dim=1).amax(dim=1).mean()),
            other,
            spread,
            float((adapter.predict(disturb(x)).argmax(dim=1) != predicted).float().mean()),
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
    """Summary of a candidate's diagnostics over a stream. Accuracy, agreement, confidence and diversity are in percent.

    Attributes:
        name: name of the candidate.
        accuracy: estimate from the consistency of the predictions (:func:`testtime.metrics.consistency`).
        aetta: estimate of AETTA for comparison, mean over the stream; NaN without a linear head.
        agreement: share of the images for which the source model predicts the same class.
        confidence: mean highest probability.
        confidence_drift: change of the confidence from the first third of the stream to the last.
        diversity: least diversity of the predictions in a third of the stream, entropy over log C.
        diversity_drift: change of the diversity from the first third of the stream to the last.
        milliseconds: median duration of a batch.
        alarms: reasons against the candidate; empty without any.
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
    """The recommended candidate with the reasons.

    Attributes:
        name: name of the candidate.
        reasons: sentences for people.
        candidates: all candidates, the best first, those with alarms last.
    """

    name: str
    reasons: tuple[str, ...]
    candidates: tuple[Candidate, ...]


def over_time(diagnostics: Sequence[Diagnostics], appearance: ArrayLike) -> tuple[list[int], list[float]]:
    """Estimate the accuracy of a candidate along a stream.

    Args:
        diagnostics: diagnostics of one candidate.
        appearance: features (M, F) or groups (M,) of the images, see :func:`judge`.

    Returns:
        number of images at the end of each stretch of at least 10 C images (C classes), and the estimate of that stretch in
        percent.
    """
    parts: list[list[Diagnostics]] = [[]]
    for one in diagnostics:
        if sum(s.images for s in parts[-1]) >= WINDOW * one.classes:
            parts.append([])
        parts[-1].append(one)
    if len(parts) > 1 and sum(s.images for s in parts[-1]) < WINDOW * diagnostics[0].classes:
        last = parts.pop()
        parts[-1] += last
    group = _groups(diagnostics, appearance)
    answers = _answers(diagnostics, group)
    seen, guesses, image = [], [], 0
    for part in parts:
        images = slice(image, image := image + sum(s.images for s in part))
        here = np.bincount(group[images], minlength=len(answers)) / answers.sum(axis=1).clip(1)
        seen.append(image)
        guesses.append(consistency(_mean([s.changed for s in part], part), answers * here[:, None]))
    return seen, guesses


def judge(seen: Mapping[str, Sequence[Diagnostics]], appearance: ArrayLike) -> tuple[Candidate, ...]:
    """Summarise the diagnostics of candidates on the same stream.

    A candidate that is wrong in the same way about an image and the disturbed one is consistent; but it predicts one class in
    fog and another in noise, and a dependence of its predictions on the appearance of the images counts against it.

    Alarms are raised against the other candidates, as a stream may hold few classes and they all see the same: where the
    predictions of a third of the stream are spread over classes by less than half of what those of the most diverse
    candidate are in the same third; where they narrow from the first third to the last by 10 points (of entropy over log C)
    more than those of the median candidate; and where disturbed images are predicted alike no more often than by chance.

    Args:
        seen: diagnostics that :func:`monitor` yielded, by name of the candidate.
        appearance: features of the appearance of the stream's images, (M, F), in its order, from
            :func:`testtime.metrics.appearance_features`; or their groups, (M,), from :func:`appearance_groups`.

    Raises:
        ValueError: there is no candidate, one has processed nothing, streams differ in length, or there are not as many
            rows of features as images.

    Reference: for the estimates see `testtime.metrics.label_free`; the alarms are ours.
    """
    if not seen or any(not diagnostics for diagnostics in seen.values()):
        raise ValueError("expected candidates with diagnostics of a stream: run monitor() on one first")
    shown = {name: [one.images for one in diagnostics] for name, diagnostics in seen.items()}
    if len({tuple(images) for images in shown.values()}) > 1:
        lengths = ", ".join(f"{name}: {sum(images)} images" for name, images in shown.items())
        raise ValueError(f"candidates are compared on the same batches, and these were not: {lengths}")
    thirds = {name: [_diversity(part) for part in _thirds(diagnostics)] for name, diagnostics in seen.items()}
    most = [max(parts) for parts in zip(*thirds.values(), strict=True)]
    usual = float(np.median([parts[-1] - parts[0] for parts in thirds.values()]))
    group = _groups(next(iter(seen.values())), appearance)
    return tuple(
        _judged(name, diagnostics, group, thirds[name], most, usual) for name, diagnostics in seen.items()
    )


def recommend(seen: Mapping[str, Sequence[Diagnostics]], appearance: ArrayLike) -> Advice:
    """Recommend the candidate without alarms of the highest estimated accuracy, and name a cheaper one that is near.

    If all have alarms, it is the first that was given: give the model that is in use first.

    Args:
        seen: diagnostics that :func:`monitor` yielded, by name of the candidate.
        appearance: features (M, F) or groups (M,) of the images, see :func:`judge`.

    Raises:
        ValueError: the diagnostics do not fit together, see :func:`judge`.
    """
    found = judge(seen, appearance)
    ranked = sorted((c for c in found if not c.alarms), key=lambda c: -c.accuracy)
    rest = tuple(c for c in found if c.alarms)
    if not ranked:
        why = (f"No diagnostic supports a change to {c.name}: {'; '.join(c.alarms)}." for c in found)
        return Advice(found[0].name, tuple(why), found)
    chosen = ranked[0]
    near = [c for c in ranked if c.accuracy >= chosen.accuracy - NEAR]
    cheapest = min(near, key=lambda c: c.milliseconds)
    reasons = [
        f"{chosen.name} is estimated to be right on {chosen.accuracy:.1f} % of the images, with "
        f"{chosen.milliseconds:.0f} ms a batch; its predictions agree with the source model's on {chosen.agreement:.0f} %."
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
            f"{images} images are too few to tell whether predictions follow the appearance of images: give {enough} or more."
        )
    return Advice(chosen.name, tuple(reasons), (*ranked, *rest))


def _judged(
    name: str,
    diagnostics: Sequence[Diagnostics],
    group: NDArray[np.int64],
    spread: Sequence[float],
    most: Sequence[float],
    usual: float,
) -> Candidate:
    parts = _thirds(diagnostics)
    changed = _mean([s.changed for s in diagnostics], diagnostics)
    dropped = aetta(
        [s.disagreement for s in diagnostics], [s.spread for s in diagnostics], diagnostics[0].classes
    )
    confidence = [_mean([s.confidence for s in part], part) for part in parts]
    alarms = []
    for part, (own, other) in enumerate(zip(spread, most, strict=True), 1):
        if own < COLLAPSE * other:
            alarms.append(
                f"in part {part} of {len(spread)} its predictions collapse to few classes (diversity {round(100 * own)} %, "
                f"another candidate's {round(100 * other)} %)"
            )
    narrowed = spread[-1] - spread[0] - usual
    if narrowed < -NARROWING:
        alarms.append(
            "its predictions narrow and those of others do not "
            f"(diversity {round(100 * spread[0])} %, then {round(100 * spread[-1])} %)"
        )
    if 1 - changed < 1.5 / diagnostics[0].classes:
        alarms.append(
            f"its predictions change for {round(100 * changed)} % of the disturbed images, as random ones would"
        )
    return Candidate(
        name,
        consistency(changed, _answers(diagnostics, group)),
        _mean(dropped, diagnostics),
        100 * _mean([one.agreement for one in diagnostics], diagnostics),
        100 * float(np.mean(confidence)),
        100 * (confidence[-1] - confidence[0]),
        100 * min(spread),
        100 * (spread[-1] - spread[0]),
        float(np.median([one.milliseconds for one in diagnostics])),
        tuple(alarms),
    )


def _groups(diagnostics: Sequence[Diagnostics], appearance: ArrayLike) -> NDArray[np.int64]:
    """Group of each image (M,), by appearance."""
    table, images = np.asarray(appearance), sum(s.images for s in diagnostics)
    if len(table) != images:
        raise ValueError(
            f"expected features of the appearance of {images} images, as many as were predicted, got {len(table)}"
        )
    return table.astype(np.int64) if table.ndim == 1 else appearance_groups(table, diagnostics[0].classes)


def appearance_groups(features: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Group the images of a stream by appearance, some ten of each class in a group.

    Args:
        features: features (M, F) from `testtime.metrics.appearance_features`.
        classes: number of classes.

    Returns:
        group of each image (M,), which `judge`, `recommend` and `over_time` take instead of the features.
    """
    table = np.asarray(features)
    return appearance_clusters(table, min(max(len(table) // (ALIKE * classes), 1), GROUPS))


def _answers(diagnostics: Sequence[Diagnostics], group: NDArray[np.int64]) -> NDArray[np.float64]:
    """Number of images of each group that were predicted as each class, (G, C)."""
    predicted = np.concatenate([np.asarray(s.predicted, dtype=np.int64) for s in diagnostics])
    answers = np.zeros((int(group.max()) + 1, diagnostics[0].classes))
    np.add.at(answers, (group, predicted), 1)
    return answers


def _mean(values: Sequence[float] | NDArray[np.float64], diagnostics: Sequence[Diagnostics]) -> float:
    """Mean over images."""
    return float(np.average(values, weights=[s.images for s in diagnostics]))


def _thirds(diagnostics: Sequence[Diagnostics]) -> list[Sequence[Diagnostics]]:
    """Three parts of the stream, or as many as there are batches."""
    parts = min(3, len(diagnostics))
    ends = [round(i * len(diagnostics) / parts) for i in range(parts + 1)]
    return [diagnostics[a:b] for a, b in pairwise(ends)]


def _diversity(diagnostics: Sequence[Diagnostics]) -> float:
    return diversity(np.sum([one.counts for one in diagnostics], axis=0))
