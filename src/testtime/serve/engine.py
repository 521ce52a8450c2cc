"""The part of a session that computes: one network, and the states of many streams that take turns in it."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter, state_hash
from testtime.prediction import Prediction
from testtime.serve.gate import Screening
from testtime.serve.streams import Ranges, Stream

__all__ = ["Answer", "Engine", "Outcome"]

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
        serving: whose answer it is: "adapter", "bn" or "source".
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

    def __init__(self, adapter: Adapter, configuration: str, history: int = 256, repeats: int = 64) -> None:
        self.history, self.repeats = history, repeats
        self.install(adapter, configuration)

    def install(self, adapter: Adapter, configuration: str) -> None:
        """Serve with another adapter; states of the one before do not belong to it."""
        self.adapter, self.configuration = adapter, configuration
        self.initial: dict[str, Tensor] = adapter.state_dict()
        self.initial_ranges = ranges_of(adapter)
        self.initial_hash, self.initial_step = self.hash(), int(adapter.clock)
        self.active: Stream | None = None
        self.form: tuple[int, ...] | None = None  # shape of the logits of a sample

    def begin(self, name: str) -> Stream:
        """Begin a stream in the state in which the adapter was given."""
        return Stream(
            name,
            self.configuration,
            _copied(self.initial),
            dict(self.initial_ranges),
            deque(maxlen=self.repeats),
            deque(maxlen=self.history),
            hash=self.initial_hash,
            step=self.initial_step,
        )

    def activate(self, stream: Stream) -> None:
        """Put the state of a stream into the network; that of the stream before is taken out.

        A state of another configuration is kept where it fits; otherwise the stream begins again.
        """
        if self.active is stream:
            return
        assert stream.state is not None
        self.retire()
        ranges = stream.ranges
        try:
            self.adapter.load_state_dict(stream.state)
        except ValueError:
            if stream.configuration == self.configuration:
                raise
            self.adapter.load_state_dict(self.initial)
            ranges = self.initial_ranges
        set_ranges(self.adapter, ranges)
        if stream.configuration != self.configuration:
            stream.configuration = self.configuration
            stream.hash, stream.step = self.hash(), int(self.adapter.clock)
        stream.state, self.active = None, stream

    def retire(self) -> None:
        """Take the state of the active stream out of the network."""
        if self.active is not None:
            self.active.state = self.adapter.state_dict()
            self.active.ranges = ranges_of(self.adapter)
            self.active = None

    def state(self, stream: Stream) -> dict[str, Tensor]:
        """An independent copy of the state of a stream."""
        if self.active is stream:
            stream.ranges = ranges_of(self.adapter)
            return self.adapter.state_dict()
        assert stream.state is not None
        return _copied(stream.state)

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
            self.adapter.load_state_dict(state)
        if ranges is not None:
            set_ranges(self.adapter, ranges)
        stream.ranges = ranges_of(self.adapter)
        stream.hash, stream.step = self.hash(), int(self.adapter.clock)

    def drop(self, stream: Stream) -> None:
        """Forget the state of a stream."""
        if self.active is stream:
            self.active = None
        stream.state = None

    def hash(self) -> str:
        """Hash of the state in the network."""
        return state_hash(self.adapter)[:HASH]

    def within(self) -> tuple[float, float] | None:
        """Range of the inputs of the stream whose state is in the network."""
        return self.adapter.input_range

    def process(self, stream: Stream, x: Tensor, screening: Screening, adapt: bool) -> Outcome:
        """Answer a request, and learn from it.

        Args:
            stream: the stream, active.
            x: samples (N, ...).
            screening: what the gate found of them.
            adapt: whether the adapter takes a step on the admitted samples.

        Returns:
            N rows; those of refused samples are NaN and not valid.

        Raises:
            ValueError: the model does not take the samples, or does not return logits; the state is as before.
        """
        admitted, apart = screening.admitted, screening.apart
        if self.form is None and (
            admitted or apart
        ):  # before the first step, for a step cannot be taken back
            self.form = tuple(_classified(self.adapter.predict(_rows(x, sorted(admitted + apart)))).shape[1:])
        parts: list[tuple[list[int], Prediction]] = []
        learned, moved = False, 0.0
        if adapt and admitted:
            before = [p.detach().clone() for p in self._moving()]
            y = _classified(self.adapter(_rows(x, admitted)))
            learned, moved = y.updated, self._moved(before)
            stream.step, stream.hash = int(self.adapter.clock), self.hash()
            stream.recent.extend(screening.digests[row] for row in admitted)
            parts.append((admitted, y))
        elif admitted:
            apart = sorted(admitted + apart)
        if apart:
            parts.append((apart, _classified(self.adapter.predict(_rows(x, apart)))))
        return self._joined(x, parts, learned, moved)

    def _joined(
        self, x: Tensor, parts: Sequence[tuple[list[int], Prediction]], learned: bool, moved: float
    ) -> Outcome:
        if parts:
            y = parts[0][1]
            self.form = tuple(y.shape[1:])
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

    def _moving(self) -> list[nn.Parameter]:
        return [p for p in self.adapter.parameters() if p.requires_grad]

    def _moved(self, before: Sequence[Tensor]) -> float:
        """Euclidean norm of the change of the adapted parameters."""
        if not before:
            return 0.0
        change = torch._foreach_sub([p.detach() for p in self._moving()], list(before))
        return float(torch.stack([n.double() for n in torch._foreach_norm(change)]).norm())


def _classified(y: Any) -> Prediction:
    if not isinstance(y, Prediction):
        raise ValueError(
            "a session serves classifiers, whose answer is logits (N, C) or (N, C, H, W), and this adapter answers "
            f"{type(y).__name__}; use the adapter itself for several tasks"
        )
    return y


def _rows(x: Tensor, rows: list[int]) -> Tensor:
    return x if len(rows) == len(x) else x[rows]


def _copied(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in state.items()}


def ranges_of(adapter: Adapter) -> Ranges:
    return {name: m._gate.within for name, m in adapter.named_modules() if isinstance(m, Adapter)}


def set_ranges(adapter: Adapter, ranges: Ranges) -> None:
    for name, module in adapter.named_modules():
        if isinstance(module, Adapter):
            module._gate.within = ranges.get(name)
