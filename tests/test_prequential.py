"""The prequential run: predicted first, scored, learned from once; labels stay outside."""

import numpy as np
import pytest
import torch
from torch import nn

from testtime.adapter import Adapter
from testtime.data import from_arrays
from testtime.prediction import Prediction
from testtime.prequential import Record, prequential
from testtime.streams import clean, continual, open_set

RNG = np.random.default_rng(0)
KNOWN = from_arrays("k", RNG.integers(0, 256, (12, 3, 4, 4), dtype=np.uint8), np.arange(12) % 3, tuple("abc"))
UNKNOWN = from_arrays("u", RNG.integers(0, 256, (9, 3, 4, 4), dtype=np.uint8))


class Witness(Adapter):
    """Writes down everything that reaches it."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        super().__init__(nn.Sequential(nn.Flatten(), nn.Linear(48, 3)))
        self.seen: list[torch.Tensor] = []

    def forward(self, *args: torch.Tensor, **kwargs: object) -> Prediction:
        assert not kwargs
        (x,) = args
        self.seen.append(x)
        return super().forward(x)

    def step(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.model(x)
        return Prediction(logits, selected={"odd": torch.arange(len(x)) % 2 == 1})


def test_records_are_what_the_adapter_answered() -> None:
    stream = open_set(continual(None, [clean(KNOWN), clean(KNOWN)], batch_size=8), UNKNOWN)
    adapter, batches = Witness(), list(stream)
    collected: list[Record] = []

    class Collector:
        def update(self, record: Record) -> None:
            collected.append(record)

    records = list(prequential(adapter, stream, [Collector()]))
    assert collected == records
    assert [(r.index, r.visit, r.domain) for r in records] == [(b.index, b.visit, "clean") for b in batches]
    for record, batch in zip(records, batches, strict=True):
        logits = adapter.predict(batch.x).logits
        p = logits.double().softmax(1).numpy()
        y, s = batch.y.numpy(), record.samples
        assert s.label.tolist() == y.tolist()
        assert s.predicted.tolist() == p.argmax(1).tolist()
        assert s.confidence == pytest.approx(p.max(1), rel=1e-5)
        assert s.score == pytest.approx(-logits.logsumexp(1).numpy(), rel=1e-5)
        known = y >= 0
        assert s.nll[known] == pytest.approx(-np.log(p[known, y[known]]), rel=1e-5)
        assert np.isnan(s.nll[~known]).all()
        assert s.brier[known] == pytest.approx(((p - np.eye(3)[y]) ** 2).sum(1)[known], rel=1e-5)
        assert s.selected["odd"].tolist() == [i % 2 == 1 for i in range(len(y))]
        assert not record.updated


def test_labels_never_reach_the_adapter_and_a_batch_reaches_it_once() -> None:
    stream = open_set(continual(None, [clean(KNOWN)], batch_size=8), UNKNOWN)
    adapter = Witness()
    for _ in prequential(adapter, stream):
        pass
    assert len(adapter.seen) == len(stream)
    assert all(torch.equal(x, batch.x) for x, batch in zip(adapter.seen, stream, strict=True))


def test_a_refused_image_is_recorded_as_refused() -> None:
    (batch,) = list(continual(None, [clean(KNOWN)], batch_size=12))
    batch.x[3, 0, 0, 0] = torch.nan
    (record,) = prequential(Witness(), [batch])
    s = record.samples
    assert s.predicted[3] == -1
    assert np.isnan([s.score[3], s.confidence[3], s.nll[3]]).all()
    assert np.isfinite(np.delete(s.score, 3)).all()
