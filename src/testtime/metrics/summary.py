"""From the answers to single images to the figures of a table: per domain, over time, and over domains."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from testtime.adapter import Adapter
from testtime.labels import class_labels
from testtime.metrics.calibration import calibration_error
from testtime.metrics.open_set import accuracy, auroc, fpr_at, h_score, oscr

__all__ = ["Samples", "forgetting", "summarise"]

MEASURES = ("accuracy", "error", "auroc", "h_score", "fpr95", "oscr", "ece", "nll", "brier")


@dataclass(eq=False)
class Samples:
    """What is known of every image that arrived, one entry each, in the order of arrival.

    Attributes:
        batch: number of the batch.
        visit: number of the stretch in one domain.
        label: the class, -1 where unknown.
        predicted: the class answered, -1 where the image was refused.
        score: open-set score, higher for the unknown; NaN where refused.
        confidence: highest probability.
        nll: nats, and ``brier``, both NaN for the unknown.
        selected: by name, the masks of what the method did with whom.
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
        """(N,) whether the image is of a known class."""
        return self.label >= 0

    @property
    def correct(self) -> NDArray[np.bool_]:
        """(N,) whether the known image got its class."""
        return self.known & (self.label == self.predicted)

    def __len__(self) -> int:
        return len(self.label)

    def at(self, rows: NDArray[np.bool_]) -> Samples:
        """Some of the images, by a mask."""
        columns = {f.name: getattr(self, f.name)[rows] for f in fields(self) if f.name != "selected"}
        return Samples(**columns, selected={name: mask[rows] for name, mask in self.selected.items()})

    @classmethod
    def join(cls, parts: Iterable[Samples]) -> Samples:
        """The images of several batches; a mask that some batches lack is False there."""
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
    """Every measure of a set of images: percent, except NLL (nats) and Brier (0 to 2)."""
    known, correct = samples.known, samples.correct
    seen, other = samples.score[known], samples.score[~known]
    # An image that the method refused is as unknown as can be.
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
    """What the method's filters did, in percent: by mask, the share of known and of unknown images it took.

    ``known_maximised`` is the figure 1 of PAF-KIP: known images that were wrongly pushed towards uncertainty.
    """
    known = samples.known
    shares = {}
    for name, mask in samples.selected.items():
        shares[f"known_{name}"] = accuracy(mask[known])
        shares[f"unknown_{name}"] = accuracy(mask[~known])
    return shares


def summarise(samples: Samples, domains: list[str]) -> dict[str, object]:
    """The figures of a run.

    Args:
        samples: all images.
        domains: the name of each visit.

    Returns:
        ``average``: every measure averaged over the visits, each weighing the same, as the published tables
            do; the
        H-score is the harmonic mean of the averages. ``domains``: the measures of each visit. ``time``: those
        of each batch. ``filters``: what the filters did, in all and by visit.
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
def forgetting(adapter: Adapter, batches: Iterable[tuple[Tensor, Tensor]]) -> float:
    """Accuracy in percent that the adapter has on its source domain now; it looks only, and learns nothing.

    Args:
        adapter: after its run; compare with the same of a fresh one.
        batches: clean images and labels of the source's test set; images with the label -1, unknown, do not count.

    Raises:
        ValueError: if labels are not the numbers of classes, one for each image.
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
