"""The prequential run: every batch is predicted, scored and learned from, once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from testtime.adapter import Adapter
from testtime.metrics.calibration import brier, nll
from testtime.metrics.cost import milliseconds
from testtime.metrics.summary import Samples
from testtime.prediction import Prediction
from testtime.streams import Batch

__all__ = ["Metric", "Record", "prequential"]


class Metric(Protocol):
    """Takes every record."""

    def update(self, record: Record) -> None: ...


@dataclass(frozen=True, eq=False)
class Record:
    """The predictions on one batch.

    Attributes:
        index, visit, domain: place of the batch in the stream.
        samples: predictions, image by image.
        milliseconds: duration of the call.
        updated: whether the adapter moved its parameters.
        failed: part of the step that was not finite, see :class:`testtime.prediction.Prediction`; empty where it counts.
    """

    index: int
    visit: int
    domain: str
    samples: Samples
    milliseconds: float
    updated: bool
    failed: str = ""


def prequential(
    adapter: Adapter,
    stream: Iterable[Batch],
    metrics: Sequence[Metric] = (),
    device: torch.device | str = "cpu",
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Iterator[Record]:
    """Give the adapter each batch of a stream once, and pass on what it predicted.

    The adapter gets images and nothing else: labels stay here.

    Args:
        adapter: adapter on ``device``.
        stream: batches.
        metrics: metrics that take every record.
        device: device of the images.
        memory_format: memory format of the images; ``torch.channels_last`` suits convolutions.
    """
    for batch in stream:
        x = batch.x.to(device, memory_format=memory_format)
        taken, answer = milliseconds(lambda x=x: adapter(x), device)  # type: ignore[misc]
        samples, place = _samples(batch, answer), (batch.index, batch.visit, batch.domain)
        record = Record(*place, samples, taken, bool(answer.updated), answer.failed)
        for metric in metrics:
            metric.update(record)
        yield record


def _samples(batch: Batch, answer: Prediction) -> Samples:
    logits = answer.logits.float().cpu().numpy()
    valid, label = answer.valid.cpu().numpy(), batch.y.numpy()
    rows = np.flatnonzero(valid & (label >= 0))
    n = len(label)
    confidence, likelihood, squares = np.full((3, n), np.nan, np.float32)
    confidence[valid] = _highest(answer.logits.cpu()[torch.from_numpy(valid)])
    likelihood[rows], squares[rows] = nll(logits[rows], label[rows]), brier(logits[rows], label[rows])
    return Samples(
        batch=np.full(n, batch.index, np.int32),
        visit=np.full(n, batch.visit, np.int32),
        label=label.astype(np.int32),
        predicted=np.where(valid, np.nan_to_num(logits, nan=-np.inf).argmax(1), -1).astype(np.int32),
        score=answer.score.float().cpu().numpy().astype(np.float32),
        confidence=confidence,
        nll=likelihood,
        brier=squares,
        selected={name: mask.cpu().numpy().astype(bool) for name, mask in answer.selected.items()},
    )


def _highest(logits: Tensor) -> np.ndarray:
    return logits.float().softmax(1).amax(1).numpy() if len(logits) else np.empty(0, np.float32)
