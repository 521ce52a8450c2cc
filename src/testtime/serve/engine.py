"""The part of a session that computes: one network, and the states of many streams that take turns in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from testtime.adapter import Adapter
from testtime.prediction import Prediction
from testtime.serve.gate import Screening
from testtime.serve.streams import Stream
from testtime.serve.swapping import Parked, Ranges, Slots

__all__ = ["Answer", "Engine", "Outcome", "check_adapter"]

OWNED = WeakSet[Adapter]()  # the adapters that serve, with those inside them
HASH = 16  # hexadecimal digits of a state's hash that answers and records hold


@dataclass(frozen=True)
class Answer:
    """The answer to a request of N samples.

    Attributes:
        logits: (N, C), on the CPU; NaN in the rows of refused samples.
        predicted: (N,) int64, the predicted class; -1 for refused samples.
        confidence: (N,) highest probability; NaN for refused samples.
        score: (N,) open-set score, higher for unknown inputs; NaN for refused samples.
        refused: reason of each sample that was not answered, or None.
        learned: whether the adapted parameters moved.
        adapted: whether the adapter took a step; False: the last state answered (deadline, learning off).
        serving: model that answered: "adapter", "bn" or "source".
        offset: number of samples of the stream before this request.
        state: hash of the stream's state after the request, 16 hexadecimal digits.
        quarantined: reason of each sample that was answered and not learned from, or None.
        skipped: why the request was answered without a step: "deadline", "paused", "asked", "audit", or empty.
    """

    logits: Tensor
    predicted: Tensor
    confidence: Tensor
    score: Tensor
    refused: tuple[str | None, ...]
    learned: bool
    adapted: bool
    serving: str
    offset: int
    state: str
    quarantined: tuple[str | None, ...] = ()
    skipped: str = ""


@dataclass(frozen=True)
class Outcome:
    """What the network made of the samples of a request that were not refused."""

    logits: Tensor
    score: Tensor
    valid: Tensor
    learned: bool
    moved: float


class Engine:
    """One adapter, in which the state of one stream is at a time.

    Not safe for threads: its owner holds a lock.

    Args:
        adapter: the adapter; its state when it is given is that in which every stream begins.
        configuration: hash of the configuration.
        history: number of requests of which a record is kept for each stream.
        repeats: number of digests that are kept for each stream.
    """

    slots: Slots
    adapter: Adapter

    def __init__(self, adapter: Adapter, configuration: str, history: int = 256, repeats: int = 64) -> None:
        self.history, self.repeats = history, repeats
        self.install(adapter, configuration)

    def install(self, adapter: Adapter, configuration: str, streams: Iterable[Stream] = ()) -> None:
        """Serve with another adapter.

        Args:
            adapter: the adapter.
            configuration: hash of the configuration.
            streams: streams that were served by the one before.
        """
        if streams:
            self.retire()
        for stream in streams:
            if isinstance(stream.state, Parked):
                stream.state = self.slots.named(stream.state)
        if hasattr(self, "adapter"):
            self.release()
        OWNED.update(_adapters(adapter))
        self.adapter, self.configuration = adapter, configuration
        self.slots = Slots(adapter)
        self.initial, self.initial_ranges = self.slots.copy(), self.slots.ranges()
        self.initial_hash, self.initial_step = self.hash(), int(adapter.clock)
        self.shipped = self._shipped_weights()
        self.active: Stream | None = None
        self.form: tuple[int, ...] | None = None  # shape of the logits of a sample

    def release(self) -> None:
        """Give the adapter back: others may serve with it."""
        OWNED.difference_update(_adapters(self.adapter))

    def _shipped_weights(self) -> Tensor:
        """The adapted parameters of the shipped model; the adapter may have learned before it was given."""
        with torch.inference_mode(False), torch.no_grad():
            if not self.initial_step:
                return self.slots.weights().clone()
            self.adapter.reset()
            shipped = self.slots.weights().clone()
        self.slots.exchange(self.initial.clone())
        self.slots.set_ranges(self.initial_ranges)
        return shipped

    def begin(self, name: str) -> Stream:
        """Begin a stream in the state in which the adapter was given."""
        return Stream(
            name,
            self.configuration,
            self.initial.clone(),
            dict(self.initial_ranges),
            deque(maxlen=self.repeats),
            deque(maxlen=self.history),
            hash=self.initial_hash,
            step=self.initial_step,
        )

    def activate(self, stream: Stream) -> None:
        """Put the state of a stream into the network; that of the stream before is taken out.

        A state of another configuration is kept where it fits; otherwise the stream begins again.

        Raises:
            ValueError: the state is not one of this adapter.
        """
        if self.active is stream:
            return
        assert stream.state is not None
        if isinstance(stream.state, Parked):
            self._leave(self.slots.exchange(stream.state))
            ranges = stream.ranges
        else:
            self.retire()
            ranges = self._load(stream)
        self.slots.set_ranges(ranges)
        if stream.configuration != self.configuration:
            stream.configuration = self.configuration
            stream.hash, stream.step = self.hash(), int(self.adapter.clock)
        stream.state, self.active = None, stream

    def retire(self) -> None:
        """Take the state of the active stream out of the network."""
        self._leave(self.slots.copy() if self.active is not None else None)

    def state(self, stream: Stream) -> dict[str, Tensor]:
        """An independent copy of the state of a stream, without what only ``prepare`` writes."""
        return self.captured(stream)()

    def captured(self, stream: Stream) -> Callable[[], dict[str, Tensor]]:
        """Copy the state of a stream now, and return a function that names its tensors later, in any thread."""
        if self.active is stream:
            stream.ranges = self.slots.ranges()
        state = self.slots.copy() if self.active is stream else stream.state
        assert state is not None
        if isinstance(state, Parked):
            return partial(self.slots.named, state if self.active is stream else state.clone())
        copied = {name: value.clone() for name, value in state.items()}
        return lambda: copied

    def put(self, stream: Stream, state: Mapping[str, Tensor] | None, ranges: Ranges | None = None) -> None:
        """Give a stream another state.

        Args:
            stream: the stream.
            state: the state; None: that of the shipped model.
            ranges: range of the inputs of each adapter in the tree; None: as they are, or as they were with the shipped model.

        Raises:
            ValueError: the state does not fit; the stream is as before.
        """
        self.activate(stream)
        if state is None:
            self.adapter.reset()
            ranges = self.initial_ranges if ranges is None else ranges
        else:
            self.adapter.load_state_dict(self._whole(state))
        if ranges is not None:
            self.slots.set_ranges(ranges)
        stream.ranges = self.slots.ranges()
        stream.hash, stream.step = self.hash(), int(self.adapter.clock)

    def drop(self, stream: Stream) -> None:
        """Forget the state of a stream."""
        if self.active is stream:
            self.active = None
        stream.state = None

    def size(self, stream: Stream) -> int:
        """Bytes of the state of a stream."""
        if isinstance(stream.state, dict):
            return sum(v.nbytes for v in stream.state.values())
        return self.initial.nbytes if stream.state is None else stream.state.nbytes

    def hash(self) -> str:
        """Hash of the state in the network."""
        return self.slots.hash()[:HASH]

    def _leave(self, parked: Parked | None) -> None:
        if self.active is not None:
            self.active.state, self.active.ranges = parked, self.slots.ranges()
            self.active = None

    def _load(self, stream: Stream) -> Ranges:
        """Load the state of a stream that came from elsewhere, and return its ranges."""
        assert isinstance(stream.state, dict)
        try:
            self.adapter.load_state_dict(self._whole(stream.state))
        except ValueError:
            if stream.configuration == self.configuration:
                raise
            self.slots.exchange(self.initial.clone())
            return self.initial_ranges
        return stream.ranges

    def _whole(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {**state, **self.slots.learned()}

    def within(self) -> tuple[float, float] | None:
        """Range of the inputs of the stream whose state is in the network."""
        return self.adapter.input_range

    def try_out(self, x: Tensor, screening: Screening) -> None:
        """Before the first step, which cannot be taken back, check that the model answers with logits.

        Raises:
            ValueError: it does not, or it does not take the samples.
        """
        rows = sorted(screening.admitted + screening.apart)
        if self.form is None and rows:
            self.form = tuple(_classified(self.adapter.predict(_rows(x, rows))).shape[1:])

    def process(self, stream: Stream, x: Tensor, screening: Screening, adapt: bool) -> Outcome:
        """Answer a request, and learn from it.

        Args:
            stream: the stream, active.
            x: samples (N, ...).
            screening: findings of the gate.
            adapt: whether the adapter takes a step on the admitted samples.

        Returns:
            N rows; those of refused samples are NaN and not valid.

        Raises:
            ValueError: the model does not take the samples, or does not return logits; the state is as before.
        """
        admitted, apart = screening.admitted, screening.apart
        if not adapt or not admitted:
            rows = sorted(admitted + apart)
            parts = [(rows, _classified(self.adapter.predict(_rows(x, rows))))] if rows else []
            return self._joined(x, parts, False, 0.0)
        digests = [screening.digests[row] for row in admitted]
        if not apart:
            y, moved = self._step(stream, _rows(x, admitted), digests)
            return self._joined(x, [(admitted, y)], y.updated, moved)
        with self._undone_if_it_fails(stream):
            y, moved = self._step(stream, _rows(x, admitted), digests)
            parts = [(admitted, y), (apart, _classified(self.adapter.predict(_rows(x, apart))))]
            return self._joined(x, parts, y.updated, moved)

    @contextmanager
    def _undone_if_it_fails(self, stream: Stream) -> Iterator[None]:
        """Give the active stream its present state again where the block raises."""
        state, ranges, recent = self.slots.copy(), self.slots.ranges(), tuple(stream.recent)
        step, hashed = stream.step, stream.hash
        try:
            yield
        except BaseException:
            self.slots.exchange(state)
            self.slots.set_ranges(ranges)
            stream.step, stream.hash = step, hashed
            stream.recent.clear()
            stream.recent.extend(recent)
            raise

    def learn(self, stream: Stream, x: Tensor, digests: Sequence[bytes]) -> tuple[bool, float]:
        """Learn from samples that were answered before.

        Args:
            stream: the stream, active.
            x: samples (N, ...).
            digests: digest of each sample.

        Returns:
            whether the state moved, and how far the adapted parameters did.
        """
        if not len(x):
            return False, 0.0
        y, moved = self._step(stream, x, digests)
        return y.updated, moved

    def answer(self, stream: Stream, found: Outcome, screening: Screening, skipped: str) -> Answer:
        """The answer to a request, from what :meth:`process` made of it."""
        if bool(found.valid.all()):
            predicted = found.logits.argmax(dim=1)
        else:
            predicted = found.logits.nan_to_num(-torch.inf).argmax(dim=1)
            predicted[~found.valid] = -1
        refused = tuple(
            reason or (None if ok else "not answered")
            for reason, ok in zip(screening.refused, found.valid.tolist(), strict=True)
        )
        return Answer(
            logits=found.logits,
            predicted=predicted,
            confidence=found.logits.float().softmax(dim=1).amax(dim=1),
            score=found.score,
            refused=refused,
            learned=found.learned,
            adapted=not skipped and bool(screening.admitted),
            serving=str(getattr(self.adapter, "serving", "adapter")),
            offset=stream.offset,
            state=stream.hash,
            quarantined=screening.quarantined,
            skipped=skipped,
        )

    def _step(self, stream: Stream, x: Tensor, digests: Sequence[bytes]) -> tuple[Prediction, float]:
        before = self.slots.weights().clone()
        y = _classified(self.adapter(x))
        stream.step, stream.hash = int(self.adapter.clock), self.hash()
        stream.recent.extend(digests)
        return y, self._distance(before)

    def _joined(
        self, x: Tensor, parts: Sequence[tuple[list[int], Prediction]], learned: bool, moved: float
    ) -> Outcome:
        if parts:
            y = parts[0][1]
            self.form = tuple(y.shape[1:])
            if len(parts[0][0]) == len(x) and bool(y.valid.all()):
                score = y.score.to("cpu", torch.promote_types(y.dtype, torch.float32), copy=True)
                return Outcome(y.logits.to("cpu", copy=True), score, y.valid.cpu(), learned, moved)
            shape, dtype = tuple(y.score.shape[1:]), y.dtype
        else:
            if self.form is None:
                self.form = tuple(_classified(self.adapter.predict(x.new_zeros(1, *x.shape[1:]))).shape[1:])
            shape, dtype = self.form[1:], torch.float32
        logits = torch.full((len(x), *self.form), torch.nan, dtype=dtype)
        score = torch.full((len(x), *shape), torch.nan, dtype=torch.promote_types(dtype, torch.float32))
        valid = torch.zeros(len(x), dtype=torch.bool)
        for rows, y in parts:
            logits[rows], score[rows] = y.logits.cpu(), y.score.cpu().to(score.dtype)
            valid[rows] = y.valid.cpu()
        logits[~valid] = torch.nan
        return Outcome(logits, score, valid, learned, moved)

    def distance(self) -> float:
        """Euclidean distance of the adapted parameters in the network from those of the shipped model."""
        return self._distance(self.shipped)

    def _distance(self, before: Tensor) -> float:
        now = self.slots.weights()
        return float(torch.linalg.vector_norm(now - before, dtype=torch.float64))


def check_adapter(adapter: Any) -> None:
    """Check what a session is to serve with.

    Raises:
        TypeError: it is no adapter.
        ValueError: a session serves with it already, or with an adapter inside it: its state is that of one of the streams.
    """
    if not isinstance(adapter, Adapter):
        raise TypeError(
            f"expected an adapter, as testtime.adapt(model) builds it, got {type(adapter).__name__}"
        )
    if any(one in OWNED for one in _adapters(adapter)):
        raise ValueError("a session serves with this adapter, or with one inside it; build another one")


def _adapters(tree: Adapter) -> list[Adapter]:
    return [one for one in tree.modules() if isinstance(one, Adapter)]


def _classified(y: Any) -> Prediction:
    if not isinstance(y, Prediction):
        raise ValueError(
            "a session serves classifiers, whose answer is logits (N, C) or (N, C, H, W), and this adapter answers "
            f"{type(y).__name__}; use the adapter itself for several tasks"
        )
    return y


def _rows(x: Tensor, rows: list[int]) -> Tensor:
    return x if len(rows) == len(x) else x[rows]
