"""Metrics of a run from its predictions of single images: per domain, over time, and averaged over domains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from itertools import pairwise
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.labels import class_labels
from testtime.metrics.calibration import calibration_error
from testtime.metrics.open_set import accuracy, auroc, fpr_at, h_score, oscr

__all__ = ["Samples", "forgetting", "summarise"]

MEASURES = ("accuracy", "error", "auroc", "h_score", "fpr95", "oscr", "ece", "nll", "brier")


class Predictor(Protocol):
    """A model that predicts without adapting, such as :class:`testtime.Adapter`."""

    def predict(self, x: Tensor) -> Tensor:
        """Return the logits (N, C) of images (N, C, H, W)."""
        ...


@dataclass(eq=False)
class Samples:
    """Results of every image of a stream, one entry each, in the order of the stream.

    Attributes:
        batch: index of the batch, (N,).
        visit: index of the visit, an uninterrupted sequence of batches of one domain, (N,).
        label: class index, (N,), -1 for an unknown class.
        predicted: predicted class, (N,), -1 where the image was rejected.
        score: open-set score, (N,), higher for unknown images; NaN where rejected.
        confidence: highest probability, (N,).
        nll: negative log likelihood in nats, (N,), NaN for an unknown class.
        brier: Brier score, (N,), NaN for an unknown class.
        selected: masks (N,) of the images that each filter of the method selected, by name.
    """

    batch: NDArray[np.int32]
    visit: NDArray[np.int32]
    label: NDArray[np.int32]
    predicted: NDArray[np.int32]
    score: NDArray[np.float32]
    confidence: NDArray[np.float32]
    nll: NDArray[np.float32]
    brier: NDArray[np.float32]
    selected: dict[str, NDArray[np.bool_]] = field(default_factory=dict)

    @property
    def known(self) -> NDArray[np.bool_]:
        """Whether each image is of a known class, (N,)."""
        return self.label >= 0

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether each image is of a known class and was predicted as it, (N,)."""
        return self.known & (self.label == self.predicted)

    def __len__(self) -> int:
        return len(self.label)

    def at(self, rows: NDArray[np.bool_]) -> Samples:
        """Return the images that a mask (N,) selects."""
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "selected"}
        return Samples(**columns, selected={name: mask[rows] for name, mask in self.selected.items()})

    @classmethod
    def join(cls, parts: Iterable[Samples]) -> Samples:
        """Concatenate the images of several parts; a mask that a part lacks is False there."""
        whole = list(parts)
        names = dict.fromkeys(name for part in whole for name in part.selected)
        columns = {
            f.name: np.concatenate([getattr(part, f.name) for part in whole])
            for f in fields(cls)
            if f.name != "selected"
        }
        masks = {
            name: np.concatenate([p.selected.get(name, np.zeros(len(p), dtype=bool)) for p in whole])
            for name in names
        }
        return cls(**columns, selected=masks)


def measures(samples: Samples) -> dict[str, float]:
    """Compute all metrics of a set of images, in percent, except NLL (nats) and Brier score (0 to 2)."""
    known, correct = samples.known, samples.correct
    seen, other = samples.score[known], samples.score[~known]
    # A rejected image has the highest score.
    seen, other = np.nan_to_num(seen, nan=np.inf), np.nan_to_num(other, nan=np.inf)
    right = accuracy(correct[known])
    area = auroc(seen, other)
    return {
        "accuracy": right,
        "error": 100 - right,
        "auroc": area,
        "h_score": h_score(right, area),
        "fpr95": fpr_at(seen, other),
        "oscr": oscr(seen, other, correct[known]),
        "ece": calibration_error(samples.confidence[known], correct[known]),
        "nll": _mean(samples.nll[known]),
        "brier": _mean(samples.brier[known]),
    }


def filters(samples: Samples) -> dict[str, float]:
    """Return the shares of known and of unknown images that each filter of the method selected, in percent.

    ``known_maximised`` is shown in figure 1 of PAF-KIP: known images whose entropy was wrongly maximised.
    """
    known = samples.known
    shares = {}
    for name, mask in samples.selected.items():
        shares[f"known_{name}"] = accuracy(mask[known])
        shares[f"unknown_{name}"] = accuracy(mask[~known])
    return shares


def summarise(samples: Samples, domains: list[str]) -> dict[str, object]:
    """Summarise a run.

    Args:
        samples: results of all images.
        domains: name of the domain of each visit.

    Returns:
        ``average``: every metric averaged over the visits with equal weights, as in the published tables; the H-score is the
        harmonic mean of the averages. ``domains``: the metrics of each visit. ``time``: those of each batch. ``filters``: the
        shares of :func:`filters`, over all images and by batch.
    """
    visits = [samples.at(samples.visit == visit) for visit in range(len(domains))]
    by_domain = [{"domain": name, **measures(part)} for name, part in zip(domains, visits, strict=True)]
    average = {name: _mean(np.array([row[name] for row in by_domain], dtype=float)) for name in MEASURES}
    average["h_score"] = h_score(average["accuracy"], average["auroc"])
    edges = np.flatnonzero(np.diff(samples.batch, prepend=-1, append=-1))
    over_time: dict[str, list[float]] = {name: [] for name in ("accuracy", "auroc", "h_score")}
    filters_over_time: dict[str, list[float]] = {name: [] for name in filters(samples)}
    rows = np.arange(len(samples))
    for start, end in pairwise(edges):
        part = samples.at((rows >= start) & (rows < end))
        found = measures(part)
        for name in over_time:
            over_time[name].append(found[name])
        for name, share in filters(part).items():
            filters_over_time[name].append(share)
    return {
        "average": average,
        "domains": by_domain,
        "time": {**over_time, "visit": samples.visit[edges[:-1]].tolist()},
        "filters": {"all": filters(samples), "time": filters_over_time},
    }


@torch.no_grad()
def forgetting(adapter: Predictor, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Return the accuracy of an adapter on its source domain in percent; the adapter predicts and does not adapt.

    Args:
        adapter: adapter after its run; the difference to the value of a new adapter is what it has forgotten.
        batches: clean images (N, C, H, W) and labels (N,) of the source's test set; images with the label -1, unknown, do
            not count.

    Raises:
        ValueError: the labels are not integers in [0, C) or -1, one for each image.
    """
    right = [np.zeros(0)]
    for x, labels in batches:
        logits = adapter.predict(x)
        y = class_labels(labels, len(x), logits.shape[1], "a batch")
        right.append((logits.argmax(1).cpu().numpy() == y)[y >= 0])
    return accuracy(np.concatenate(right))


def _mean(values: NDArray[np.floating]) -> float:
    seen = values[~np.isnan(values)]
    return float(seen.mean()) if len(seen) else float("nan")
