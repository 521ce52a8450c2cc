"""Replay of a session: the answers that its audit log records, computed again; and the check of the log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import time
from typing import Any

from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.errors import DataError
from testtime.files import damaged
from testtime.gate import check_batch
from testtime.serve.audit import Head, Verified, records, verify
from testtime.serve.directory import Directory, ranges_read
from testtime.serve.engine import Engine
from testtime.serve.gate import GateOptions, InputGate
from testtime.serve.keeping import state_of, stream_of
from testtime.serve.recording import digest_of
from testtime.serve.snapshots import Retention, Snapshot, SnapshotStore
from testtime.serve.streams import Late, Stream, check_stream
from testtime.serve.swapping import Ranges

__all__ = ["Replayed", "replay", "verify_session"]

Inputs = Callable[[str, int, int], Tensor] | Mapping[str, Tensor]
Classes = Iterable[type[Adapter]] | Mapping[str, type[Adapter]]
Functions = Iterable[Callable[..., Any]] | Mapping[str, Callable[..., Any]]
ADVICE = "verify_session(directory) says what was changed"


def verify_session(directory: str | Path) -> Verified:
    """Check the audit log of a session against itself and against the heads that its snapshots hold.

    Args:
        directory: directory of the session.
    """
    files = Directory(directory, make=False)
    store = SnapshotStore(files.streams, Retention(), time)
    heads: dict[str, Head] = {}
    for stream in store.streams():
        for number in store.numbers(stream):
            try:
                head = store.read(stream, number).facts.get("head")
            except (DataError, FileNotFoundError):
                continue
            if isinstance(head, dict) and isinstance(head.get("seq"), int):
                heads[f"snapshot {number} of stream {stream!r}"] = Head(head["seq"], str(head.get("hash")))
    return verify(files.audit, heads)


@dataclass
class Replayed:
    """What a replay found.

    Attributes:
        answers: number of answers that were computed again, and are the recorded ones, bit for bit.
        samples: number of samples in them.
        differences: the first difference of each stream, with the record; empty if there is none.
        left_out: number of records by the reason why they could not be replayed.
    """

    answers: int = 0
    samples: int = 0
    differences: list[str] = field(default_factory=list)
    left_out: dict[str, int] = field(default_factory=dict)


def replay(
    directory: str | Path,
    model: nn.Module,
    inputs: Inputs,
    *,
    start: Mapping[str, int] | None = None,
    classes: Classes = (),
    functions: Functions = (),
) -> Replayed:
    """Compute every recorded answer of a session again.

    A stream is replayed from its beginning, or from a snapshot where the log does not reach back that far. After a
    difference, or a gap in the log, it goes on from its next restore.

    Args:
        directory: directory of the session; nothing is written to it.
        model: the source model.
        inputs: the samples of every stream (N, ...) by its name, or a function (stream, offset, count) that returns the
            ``count`` samples from ``offset`` on.
        start: number of the snapshot from which a stream is replayed, by its name; the others are from the beginning.
        classes, functions: your own, as :func:`testtime.load` takes them.

    Raises:
        DataError: the log or a configuration is damaged.
        TypeError: the samples of a stream are no dense floating-point tensor, or an argument is of another type.
        ValueError: the model is not the one of the session, a snapshot of ``start`` does not exist, or ``inputs`` lack a stream
            or samples. What a function raises is raised as it is.
    """
    if not isinstance(inputs, Mapping) and not callable(inputs):
        raise TypeError(
            f"expected inputs as a dictionary of tensors by the name of the stream, or a function, got {type(inputs).__name__}"
        )
    for stream, x in inputs.items() if isinstance(inputs, Mapping) else ():
        _check_samples(stream, x)
    if not isinstance(start, Mapping | None):
        raise TypeError(
            f"expected start as a dictionary of numbers of snapshots by the name of the stream, got {start!r}"
        )
    for stream, number in (start or {}).items():
        check_stream(stream)
        if type(number) is not int:
            raise TypeError(
                f"expected the number of a snapshot of stream {stream!r} in start, got {number!r}"
            )
    return _Replay(Directory(directory, make=False), model, inputs, start or {}, (classes, functions)).run()


def _check_samples(stream: str, x: Any) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"expected the samples of stream {stream!r} as one tensor (N, ...), got {type(x).__name__}; a session takes no "
            "dictionaries of tensors"
        )
    check_batch(x)


@dataclass
class _Saved:
    """The state of a stream at a moment that the log returns to."""

    state: dict[str, Tensor]
    ranges: Ranges
    recent: list[bytes]
    backlog: tuple[Late, ...] = ()


class _InputsError(Exception):
    """What goes wrong in the caller's inputs, which is no damage of the log."""

    def __init__(self, reason: Exception) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Replay:
    def __init__(
        self,
        files: Directory,
        model: nn.Module,
        inputs: Inputs,
        start: Mapping[str, int],
        own: tuple[Classes, Functions],
    ) -> None:
        self.files, self.model, self.inputs, self.own = files, model, inputs, own
        self.start = dict(start)
        self.store = SnapshotStore(files.streams, Retention(), time)
        self.found = Replayed()
        self.engine: Engine | None = None
        self.without = "the log begins later than the session"  # why there is no engine
        self.gate, self.backlog = InputGate(GateOptions()), 0
        self.streams: dict[str, Stream | None] = {}  # None: its state is not known
        self.saved: dict[tuple[str, int, str], _Saved] = {}
        self.before: dict[str, _Saved] = {}  # the state before the last rollback
        self.taken: dict[tuple[str, int], tuple[int, str]] = {}  # offset and state of every snapshot
        self.places: dict[str, tuple[int, str]] = {}  # where the snapshots of start are
        self.needed: set[tuple[str, int, str]] = set()
        self.met: set[str] = set()
        self.cut: set[str] = set()  # streams whose beginning is not in the log

    def run(self) -> Replayed:
        for record in records(self.files.audit):
            self._scan(record)
        for stream, number in self.start.items():
            info = self.store.read(stream, number).info
            self.taken[stream, number] = info.offset, info.state
        for stream in self.cut - self.start.keys():
            there = [n for n in self.store.numbers(stream) if (stream, n) in self.taken]
            if there:
                self.start[stream] = there[0]
        self.places = {name: self.taken[name, number] for name, number in self.start.items()}
        self.taken.clear()  # a stream that was forgotten counts from 1 again
        for record in records(self.files.audit):
            try:
                with damaged(self.files.audit, ADVICE):
                    self._record(record)
            except _InputsError as error:
                raise error.reason from None
        return self.found

    def _scan(self, record: dict[str, Any]) -> None:
        """Note which states the log returns to."""
        event, stream = record["event"], record.get("stream", "")
        if event in ("learn", "answer") and stream not in self.met:
            self.met.add(stream)
            if record["offset"]:
                self.cut.add(stream)
        if event == "snapshot":
            self.taken[stream, record["snapshot"]] = record["offset"], record["state"]
        elif event == "resume":
            self.needed.add((stream, record["offset"], record["state"]))
        elif event == "rollback" and record["to"] is not None:
            self.needed.add((stream, *self.taken.get((stream, record["to"]), (-1, ""))))

    def _record(self, record: dict[str, Any]) -> None:
        event = record["event"]
        if event == "open" or (event == "continued" and self.engine is None):
            self._open(record)
        elif event == "left out":
            self.streams = dict.fromkeys(self.streams)
        elif event == "configure":
            self._configure(record["after"])
        elif self.engine is None:
            self._leave_out(self.without, record)
        elif event == "forget":
            self.streams.pop(record["stream"], None)
        elif event == "snapshot":
            self._scan(record)
        elif event in ("learn", "answer", "catch up", "resume", "rollback", "rollback failed"):
            self._of_stream(event, record)

    def _open(self, record: dict[str, Any]) -> None:
        self.gate = InputGate(GateOptions.replayed(record["gate"]))
        self.backlog, self.streams = record["backlog"], {}
        self._configure(record["configuration"])

    def _configure(self, configuration: str) -> None:
        if not (self.files.adapters / configuration).is_dir():
            self.engine, self.without = None, "the adapter of its configuration was deleted"
            self.streams = dict.fromkeys(self.streams)
            return
        adapter = self.files.adapter(configuration, self.model, *self.own)
        if self.engine is None:
            self.engine = Engine(adapter, configuration, 1, self.gate.options.repeats)
            return
        self.engine.repeats = self.gate.options.repeats
        self.engine.install(adapter, configuration, [s for s in self.streams.values() if s is not None])

    def _of_stream(self, event: str, record: dict[str, Any]) -> None:
        engine, name = self.engine, record["stream"]
        assert engine is not None
        if event == "resume":
            self._restore(name, record["snapshot"], record["offset"], record["state"])
            return
        if name not in self.streams and record["offset"] == 0 and name not in self.start:
            self.streams[name] = engine.begin(name)
        elif self.streams.get(name) is None and event in ("learn", "answer"):
            self._begin_at(name, record["offset"])
        one = self.streams.get(name)
        if one is None:
            self._leave_out("the state of its stream is not known", record)
        elif event in ("learn", "answer"):
            self._answer(one, record)
        elif event == "catch up":
            self._catch_up(one, record)
        elif event == "rollback":
            self._roll_back(one, record)
        else:
            saved = self.before.pop(name)
            engine.put(one, saved.state, saved.ranges)
            one.backlog.extend(saved.backlog)
        self._keep(self.streams.get(name))

    def _answer(self, one: Stream, record: dict[str, Any]) -> None:
        engine = self.engine
        assert engine is not None
        x = self._samples(one.name, record["offset"], record["samples"])
        engine.activate(one)
        screening = self.gate.screen(x, one.recent, engine.within())
        if screening.digest != record["digest"]:
            self._differs(one, record, "the samples are not those of the session")
            return
        x = self.gate.settled(x)
        engine.try_out(x, screening)
        outcome = engine.process(one, x, screening, record["event"] == "learn")
        if record["skipped"] == "deadline":
            one.postpone(x, screening, self.backlog)
        one.offset += len(x)
        if digest_of(outcome.logits) != record["answer"]:
            self._differs(one, record, "the answer is another")
        elif one.hash != record["state"]:
            self._differs(one, record, f"the state is {one.hash}, recorded as {record['state']}")
        else:
            self.found.answers += 1
            self.found.samples += len(x)

    def _catch_up(self, one: Stream, record: dict[str, Any]) -> None:
        engine = self.engine
        assert engine is not None
        if not one.backlog or one.backlog[0].offset != record["offset"]:
            self._differs(one, record, "these samples do not wait")
            return
        engine.activate(one)
        late = one.backlog.popleft()
        if "repeated" in record:  # until November 2026 copies of what was learned meanwhile were learned too
            late = late.without(one.recent)
        engine.learn(one, late.x, late.digests)
        if one.hash != record["state"]:
            self._differs(one, record, f"the state is {one.hash}, recorded as {record['state']}")

    def _roll_back(self, one: Stream, record: dict[str, Any]) -> None:
        engine = self.engine
        assert engine is not None
        engine.activate(one)
        recent, backlog = list(one.recent), tuple(one.backlog)
        self.before[one.name] = _Saved(engine.state(one), dict(one.ranges), recent, backlog)
        one.backlog.clear()
        if record["to"] is None:
            engine.put(one, None)
            return
        key = (one.name, *self.taken.get((one.name, record["to"]), (-1, "")))
        if key in self.saved:
            engine.put(one, self.saved[key].state, self.saved[key].ranges)
        elif (found := self._snapshot(one.name, record["to"], record["state"])) is not None:
            engine.put(one, state_of(found), ranges_read(found.facts["ranges"]))
        else:
            self._lose(one.name)

    def _restore(self, name: str, number: int, offset: int, state: str) -> None:
        """Begin a stream where the session resumed it."""
        engine = self.engine
        assert engine is not None
        saved = self.saved.get((name, offset, state))
        if saved is not None:
            one = engine.begin(name)
            one.state = {k: v.clone() for k, v in saved.state.items()}
            one.ranges, one.offset, one.hash = saved.ranges, offset, state
            one.recent.extend(saved.recent)
            self.streams[name] = one
        elif (found := self._snapshot(name, number, state)) is not None:
            self.streams[name] = stream_of(found, engine)
        else:
            self._lose(name)

    def _begin_at(self, name: str, offset: int) -> None:
        """Begin a stream at the snapshot that ``start`` names, if this is its place."""
        if name in self.places and self.places[name][0] == offset:
            self._restore(name, self.start[name], *self.places[name])

    def _snapshot(self, name: str, number: int, state: str) -> Snapshot | None:
        if number not in self.store.numbers(name):
            return None
        try:
            found = self.store.read(name, number)
        except (DataError, FileNotFoundError):
            return None
        return found if found.info.state == state else None

    def _keep(self, one: Stream | None) -> None:
        """Hold a copy of the state of a stream where the log returns to it."""
        engine = self.engine
        if one is None or engine is None or (key := (one.name, one.offset, one.hash)) not in self.needed:
            return
        self.saved[key] = _Saved(engine.state(one), dict(one.ranges), list(one.recent))

    def _samples(self, stream: str, offset: int, count: int) -> Tensor:
        try:
            return self._given(stream, offset, count)
        except Exception as error:
            raise _InputsError(error) from error

    def _given(self, stream: str, offset: int, count: int) -> Tensor:
        if isinstance(self.inputs, Mapping):
            if stream not in self.inputs:
                raise ValueError(f"the log records stream {stream!r}, and inputs has none of this name")
            x = self.inputs[stream][offset : offset + count]
        else:
            x = self.inputs(stream, offset, count)
            _check_samples(stream, x)
        if len(x) != count:
            raise ValueError(
                f"the log records samples {offset} to {offset + count} of stream {stream!r}; give them all"
            )
        return x

    def _differs(self, one: Stream, record: dict[str, Any], what: str) -> None:
        self.found.differences.append(
            f"record {record['seq']}, stream {one.name!r}, offset {record['offset']}: {what}"
        )
        self._lose(one.name)

    def _lose(self, name: str) -> None:
        one = self.streams.get(name)
        if one is not None and self.engine is not None:
            self.engine.drop(one)
        self.streams[name] = None

    def _leave_out(self, why: str, record: dict[str, Any]) -> None:
        if record["event"] in ("learn", "answer", "catch up"):
            self.found.left_out[why] = self.found.left_out.get(why, 0) + 1
