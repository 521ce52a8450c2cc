"""A session: an adapter that serves streams, with snapshots, rollback, an input gate and an audit log."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.errors import DataError
from testtime.serve.audit import Audit, Head
from testtime.serve.directory import Directory, DirectoryLock, ranges_read
from testtime.serve.engine import Answer, Engine, Outcome
from testtime.serve.gate import GateOptions, Held, InputGate, Quarantine, Screening
from testtime.serve.pacing import Pacer, due
from testtime.serve.snapshots import Retention, Snapshot, SnapshotInfo, SnapshotStore, packed, unpacked
from testtime.serve.streams import Counts, Stream, StreamStatus, check_stream

__all__ = ["Session", "SessionOptions"]

RECENT = "session/recent"
STATE = "state/"


@dataclass(frozen=True)
class SessionOptions:
    """Settings of a session.

    Attributes:
        snapshot_every: steps of a stream between two snapshots; 0: only when asked, and when the session is closed.
        retention: which snapshots are kept.
        gate: settings of the input gate.
        history: number of requests of which a record is kept for each stream.
        streams: largest number of streams.
        audit_rotate: bytes after which a new file of the audit log begins.
        audit_keep: number of files of the audit log that are kept; 0: all.
        model: name for :func:`testtime.models.load_model`, with which :meth:`Session.resume` finds the model by itself.
        clock: monotonic time in seconds, with which deadlines are kept.
        now: time in seconds since 1970.
    """

    snapshot_every: int = 100
    retention: Retention = field(default_factory=Retention)
    gate: GateOptions = field(default_factory=GateOptions)
    history: int = 256
    streams: int = 1024
    audit_rotate: int = 2**24
    audit_keep: int = 0
    model: str | None = None
    clock: Callable[[], float] = field(default=time.monotonic, compare=False)
    now: Callable[[], float] = field(default=time.time, compare=False)

    def __post_init__(self) -> None:
        least = {"snapshot_every": 0, "history": 1, "streams": 1, "audit_rotate": 1, "audit_keep": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} is at least {low}, got {getattr(self, name)}")


class Session:
    """An adapter that serves streams from a directory.

    Every stream has a state of its own, which begins as that of the adapter when it was given; the frozen weights are there
    once. Requests of several threads are safe; those of one stream are answered in their order.

    Args:
        adapter: adapter that serves; the session owns it from now on.
        directory: directory of snapshots, audit log and description. An existing one is resumed if it belongs to an adapter of
            this class, these arguments and this model: every stream continues from its last good snapshot.
        options: settings.

    Raises:
        TypeError: this is no adapter.
        ValueError: an argument of the adapter cannot be written to a file, or the directory belongs to another
            configuration.
        RuntimeError: another session holds the directory.
        DataError: the description of the directory is damaged.
        OSError: the directory cannot be written to.
    """

    _network: threading.RLock
    _registry: threading.Lock
    _engine: Engine
    _gate: InputGate
    _closed: bool

    def __init__(
        self, adapter: Adapter, directory: str | Path, *, options: SessionOptions = SessionOptions()
    ) -> None:
        if not isinstance(adapter, Adapter):
            raise TypeError(
                f"expected an adapter, as testtime.adapt(model) builds it, got {type(adapter).__name__}"
            )
        self._start(Directory(directory), options, lambda found: self._given(adapter, found))

    @classmethod
    def resume(
        cls,
        model: nn.Module | None,
        directory: str | Path,
        *,
        options: SessionOptions = SessionOptions(),
        classes: Iterable[type[Adapter]] | Mapping[str, type[Adapter]] = (),
        functions: Iterable[Callable[..., Any]] | Mapping[str, Callable[..., Any]] = (),
    ) -> Session:
        """Continue the session of a directory.

        Args:
            model: the source model; None: the one that the directory names (``SessionOptions.model``).
            directory: directory of the session.
            options: settings.
            classes, functions: your own, as :func:`testtime.load` takes them.

        Raises:
            FileNotFoundError: there is no session in the directory.
            ValueError: the model is not the one that the session was built on, or none is named.
            RuntimeError: another session holds the directory.
            DataError: the description of the directory is damaged.
        """
        if not (Path(directory) / "session.json").exists():
            raise FileNotFoundError(f"{directory} holds no session; begin one by Session(adapter, directory)")
        self = cls.__new__(cls)
        files = Directory(directory)

        def known(_: str | None) -> tuple[Adapter, str]:
            found = files.found()
            assert found is not None
            source = _model(found.model, directory) if model is None else model
            return files.adapter(found.configuration, source, classes, functions), found.configuration

        self._start(files, options, known)
        return self

    def submit(
        self, x: Tensor, stream: str = "default", *, deadline: float | None = None, learn: bool = True
    ) -> Answer:
        """Answer the next samples of a stream, and learn from them.

        Args:
            x: samples (N, ...), floating point.
            stream: name of the stream; an unknown one begins.
            deadline: seconds from now; where a step would take longer, the last state answers, and nothing is learned.
            learn: whether the stream may learn from them.

        Raises:
            TypeError, ValueError: bad input, refused before any work; the message says what was expected.
            DataError: the stream has snapshots, and all are damaged.
            RuntimeError: the session is closed, or has as many streams as it may have.
        """
        began = self.options.clock()
        _check_deadline(deadline)
        self._gate.check(x)
        with self._turn(stream) as one:
            self._engine.activate(one)
            screening = self._gate.screen(x, one.recent, self._engine.within())
            left = None if deadline is None else deadline - (self.options.clock() - began)
            skipped = self._skipped(one, len(screening.admitted), left, learn)
            outcome = self._timed(one, x, screening, not skipped)
            answer = self._answer(one, outcome, screening, skipped)
            self._note(one, x, screening, answer, outcome)
            if self._due(one):
                self._snapshot_or_note(one)
        return answer

    def predict(self, x: Tensor, stream: str = "default") -> Answer:
        """Answer samples without learning and without counting them: the stream stays as it is.

        Args, raises: as of :meth:`submit`.
        """
        self._gate.check(x)
        with self._turn(stream) as one:
            self._engine.activate(one)
            screening = self._gate.screen(x, (), self._engine.within())
            outcome = self._engine.process(one, x, screening, False)
            return self._answer(one, outcome, screening, "asked")

    def pause(self, stream: str = "default") -> None:
        """Switch learning of a stream off; it goes on answering from its last state."""
        self._pause(stream, True)

    def unpause(self, stream: str = "default") -> None:
        """Switch learning of a stream on again."""
        self._pause(stream, False)

    def snapshot(self, stream: str = "default", wait: bool = True) -> SnapshotInfo:
        """Write a snapshot of a stream.

        Args:
            stream: name of a known stream.
            wait: whether the snapshot is durable, and thereby acknowledged, when this returns.

        Raises:
            ValueError: there is no such stream.
            OSError: the disk is full or read-only; the earlier snapshots are as before.
        """
        with self._turn(stream, known=True) as one:
            return self._snapshot(one)

    def snapshots(self, stream: str = "default") -> tuple[SnapshotInfo, ...]:
        """The acknowledged snapshots of a stream that are kept, oldest first."""
        return self._store.infos(self._known(stream).name)

    def rollback(self, stream: str = "default", to: int | None = None) -> SnapshotInfo | None:
        """Give a stream the state of a snapshot, or that of the shipped model; the stream goes on from where it is.

        The state is written as a new snapshot, so that a resumed session does not return to the state before.

        Args:
            stream: name of a known stream.
            to: number of a snapshot; None: the shipped model.

        Returns:
            the snapshot that was restored; None for the shipped model.

        Raises:
            ValueError: there is no such stream or snapshot, or the snapshot belongs to another configuration.
            DataError: the snapshot is damaged. The stream is as before.
            OSError: the disk is full or read-only. The stream is as before.
        """
        with self._turn(stream, known=True) as one:
            found = None if to is None else self._store.read(one.name, to)
            if found is not None and found.info.configuration != self._engine.configuration:
                raise ValueError(
                    f"snapshot {to} of stream {stream!r} belongs to configuration {found.info.configuration}, and "
                    f"{self._engine.configuration} serves; configure() that one first"
                )
            before = self._engine.state(one), dict(one.ranges), one.hash
            try:
                if found is None:
                    self._engine.put(one, None)
                else:
                    self._engine.put(one, _state_of(found), ranges_read(found.facts["ranges"]))
                self._audit.add(
                    "rollback", stream=one.name, to=to, offset=one.offset, before=before[2], after=one.hash
                )
                self._snapshot(one)
            except OSError:
                self._engine.put(one, before[0], before[1])
                self._audit.add("rollback failed", stream=one.name, to=to, offset=one.offset, state=one.hash)
                raise
            return None if found is None else found.info

    def configure(self, adapter: Adapter) -> None:
        """Serve with another adapter from the next request on.

        A stream keeps its state where it fits the new adapter (the same method with another learning rate); otherwise it
        begins in the state in which the new adapter is given.

        Args:
            adapter: adapter of the same source model.

        Raises:
            TypeError, ValueError: this is no adapter, is of another model, cannot be written to a file, or does not answer
                samples of this session's shape. The old one keeps serving.
            OSError: the disk is full or read-only. The old one keeps serving.
        """
        if not isinstance(adapter, Adapter):
            raise TypeError(
                f"expected an adapter, as testtime.adapt(model) builds it, got {type(adapter).__name__}"
            )
        with self._network:
            self._check_open()
            if adapter.fingerprint != self._engine.adapter.fingerprint:
                raise ValueError(
                    "the adapter was built on another source model than this session; expected the same weights, or begin "
                    "a session in another directory"
                )
            if self._gate.shape is not None:
                like = next(self._engine.adapter.parameters(), torch.zeros(()))
                adapter.predict(torch.full((2, *self._gate.shape), 0.5).to(like))
            configuration = self._files.keep(adapter)
            self._files.describe(configuration, self.options.model)
            before = self._engine.configuration
            self._engine.retire()
            self._engine.install(adapter, configuration)
            self._pacer = Pacer(_cost(adapter), self.options.clock)
            self._audit.add("configure", before=before, after=configuration)

    def streams(self) -> tuple[str, ...]:
        """Names of the streams, those that are only on the disk too."""
        return tuple(sorted({*self._streams, *self._store.streams()}))

    def status(self, stream: str = "default") -> StreamStatus:
        """What a stream is and has done.

        Raises:
            ValueError: there is no such stream.
        """
        one = self._known(stream)
        infos = self._store.infos(one.name)
        last = infos[-1] if infos else None
        state = one.state
        size = sum(v.nbytes for v in (self._engine.initial if state is None else state).values())
        return StreamStatus(
            stream=one.name,
            offset=one.offset,
            step=one.step,
            state=one.hash,
            paused=one.paused,
            serving=one.serving,
            configuration=one.configuration,
            counts=replace(one.counts),
            snapshots=len(infos),
            snapshot=None if last is None else last.number,
            snapshot_offset=None if last is None else last.offset,
            pending=0,
            bytes=size,
            error=one.error,
        )

    def history(self, stream: str = "default") -> Sequence[dict[str, Any]]:
        """Records of the last requests of a stream, oldest first."""
        return tuple(self._known(stream).history)

    def quarantine(self, stream: str | None = None) -> tuple[Held, ...]:
        """The last samples that were refused, or not learned from, of a stream or of all."""
        return self._quarantine.held(stream)

    def forget(self, stream: str) -> None:
        """Delete a stream and its snapshots; the audit log keeps its records, which hold digests alone.

        Raises:
            ValueError: there is no such stream.
        """
        with self._turn(stream, known=True) as one:
            self._store.forget(one.name)
            self._quarantine.forget(one.name)
            self._drop(one)
            self._audit.add("forget", stream=one.name, offset=one.offset)

    @property
    def head(self) -> Head:
        """End of the audit log; kept elsewhere, it shows whether the log was truncated later."""
        return self._audit.head

    @property
    def configuration(self) -> str:
        """Hash of the configuration that serves, 16 hexadecimal digits."""
        return self._engine.configuration

    def close(self) -> None:
        """Write a last snapshot of every stream that moved, and give the directory back.

        Raises:
            OSError: a snapshot could not be written; the directory is given back all the same.
        """
        with self._registry:
            if self._closed:
                return
            self._closed = True
        try:
            for one in list(self._streams.values()):
                if one.saved_offset != one.offset:
                    self._snapshot(one)
            with self._network:
                self._audit.add("close", streams=len(self._streams))
        finally:
            self._audit.close()
            self._lock.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # How a session begins ---------------------------------------------------------------------------------------------

    def _start(
        self,
        files: Directory,
        options: SessionOptions,
        find: Callable[[str | None], tuple[Adapter, str]],
    ) -> None:
        self.options, self._files = options, files
        self._lock = DirectoryLock(files.folder)
        try:
            files.sweep()
            found = files.found()
            adapter, configuration = find(None if found is None else found.configuration)
            self._audit = Audit(files.audit, options.now, options.audit_rotate, options.audit_keep)
            if found is None:
                files.describe(configuration, options.model)
        except BaseException:
            self._lock.release()
            raise
        self._closed = False
        self._network, self._registry = threading.RLock(), threading.Lock()
        self._gate, self._quarantine = InputGate(options.gate), Quarantine(options.gate)
        self._engine = Engine(adapter, configuration, options.history, options.gate.repeats)
        self._pacer = Pacer(_cost(adapter), options.clock)
        self._store = SnapshotStore(files.streams, options.retention, options.now)
        self._streams: dict[str, Stream] = {}
        self._audit.add(
            "open",
            configuration=configuration,
            resumed=found is not None,
            repaired=self._audit.repaired,
            broken=self._audit.broken,
        )

    def _given(self, adapter: Adapter, known: str | None) -> tuple[Adapter, str]:
        configuration = self._files.keep(adapter)
        if known is None or known == configuration:
            return adapter, configuration
        if not self._files.same(known, configuration):
            raise ValueError(
                f"{self._files.folder} holds a session of another configuration; continue it by Session.resume(model, "
                "directory) and change it by configure(adapter), or choose another directory"
            )
        self._files.begin_as(known, adapter)
        return adapter, known

    @contextmanager
    def _turn(self, name: str, *, known: bool = False) -> Iterator[Stream]:
        """The turn of a stream: nobody else uses it, or the network, meanwhile. A new one that got no answer is dropped."""
        check_stream(name)
        while True:
            one = self._known(name) if known else self._stream(name)
            with one.lock, self._network:
                self._check_open()
                if one.gone:
                    continue
                try:
                    yield one
                finally:
                    if not one.counts.requests and one.saved_offset < 0:
                        self._drop(one)
                return

    def _drop(self, one: Stream) -> None:
        self._engine.drop(one)
        one.gone = True
        with self._registry:
            self._streams.pop(one.name, None)

    def _stream(self, name: str) -> Stream:
        """The stream of a name: as it is in memory, from its last good snapshot, or new."""
        with self._registry:
            if name in self._streams:
                return self._streams[name]
        with self._network:
            self._check_open()
            with self._registry:
                if name in self._streams:
                    return self._streams[name]
                if len(self._streams) >= self.options.streams:
                    raise RuntimeError(
                        f"this session has {self.options.streams} streams, as many as it may have; forget() one, or raise "
                        "SessionOptions.streams"
                    )
            one = self._resumed(name) or self._engine.begin(name)
            with self._registry:
                self._streams[name] = one
            return one

    def _known(self, name: str) -> Stream:
        if check_stream(name) not in self._streams and name not in self._store.streams():
            raise ValueError(f"there is no stream {name!r}; there are {', '.join(self.streams()) or 'none'}")
        return self._stream(name)

    def _resumed(self, name: str) -> Stream | None:
        found, errors = self._store.last_good(name)
        for error in errors:
            self._audit.add("damaged", stream=name, error=str(error))
        if found is None:
            if errors:
                raise DataError(
                    f"stream {name!r} has {len(errors)} snapshots, and all are damaged (first: {errors[0]}); forget() the "
                    "stream to begin it anew"
                )
            return None
        one = self._engine.begin(name)
        one.configuration, one.offset, one.step = found.info.configuration, found.info.offset, found.info.step
        one.hash, one.paused = found.info.state, bool(found.facts.get("paused", False))
        one.serving = str(found.facts.get("serving", "adapter"))
        counts = {k: v for k, v in found.facts["counts"].items() if k in Counts.__dataclass_fields__}
        one.counts = Counts(**{k: int(v) for k, v in counts.items()})
        one.recent.extend(unpacked(found.tensors.get(RECENT, torch.zeros(0, 16, dtype=torch.uint8))))
        one.state, one.ranges = _state_of(found), ranges_read(found.facts["ranges"])
        self._engine.activate(one)
        one.saved_step, one.saved_offset = one.step, one.offset
        self._audit.add("resume", stream=name, snapshot=found.info.number, offset=one.offset, state=one.hash)
        return one

    # A request --------------------------------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            raise RuntimeError("this session is closed; continue it by Session.resume(model, directory)")

    def _skipped(self, one: Stream, size: int, left: float | None, learn: bool) -> str:
        """Why the adapter takes no step; empty if it takes one."""
        if not learn or one.paused:
            return "paused" if one.paused else "asked"
        if not self._audit.flush():
            return "audit"
        adapter = self._engine.adapter
        return "" if self._pacer.fits(size, left, learning=due(adapter, size)) else "deadline"

    def _timed(self, one: Stream, x: Tensor, screening: Screening, adapt: bool) -> Outcome:
        size = len(screening.admitted)
        learning = adapt and due(self._engine.adapter, size)
        began = self.options.clock()
        outcome = self._engine.process(one, x, screening, adapt)
        if size:
            self._pacer.took(size, self.options.clock() - began, learning=learning)
        if self._gate.shape is None:
            self._gate.shape = tuple(x.shape[1:])
        return outcome

    def _answer(self, one: Stream, found: Outcome, screening: Screening, skipped: str) -> Answer:
        adapted = not skipped and bool(screening.admitted)
        logits = found.logits
        p = logits.float().softmax(dim=1).amax(dim=1)
        predicted = logits.nan_to_num(-torch.inf).argmax(dim=1)
        predicted[~found.valid] = -1
        refused = tuple(
            reason or (None if ok else "not answered")
            for reason, ok in zip(screening.refused, found.valid.tolist(), strict=True)
        )
        serving = str(getattr(self._engine.adapter, "serving", "adapter"))
        return Answer(
            logits=logits,
            predicted=predicted,
            confidence=p,
            score=found.score,
            refused=refused,
            learned=found.learned,
            adapted=adapted,
            serving=serving,
            offset=one.offset,
            state=one.hash,
            quarantined=screening.quarantined,
            skipped=skipped,
        )

    def _note(self, one: Stream, x: Tensor, screening: Screening, answer: Answer, outcome: Outcome) -> None:
        """Count a request, and write what was learned from it to the audit log."""
        adapter, size, counts = self._engine.adapter, len(screening.admitted), one.counts
        refused = sum(reason is not None for reason in answer.refused)
        quarantined = sum(reason is not None for reason in screening.quarantined)
        now = self.options.now()
        self._quarantine.note(screening, x, one.name, one.offset, now)
        events = [_event(event) for event in getattr(adapter, "events", ())] if answer.adapted else []
        counts.requests += 1
        counts.refused += refused
        counts.quarantined += quarantined
        counts.learned += size if answer.learned else 0
        counts.shed += size if answer.skipped == "deadline" else 0
        counts.unlearned += size if answer.skipped not in ("", "deadline") else 0
        one.offset, one.serving = one.offset + len(x), answer.serving
        one.healthy = one.healthy and not any(e["kind"] in ("alarm", "fallback") for e in events)
        record: dict[str, Any] = {
            "stream": one.name,
            "offset": answer.offset,
            "samples": len(x),
            "digest": screening.digest,
            "admitted": size,
            "refused": refused,
            "quarantined": quarantined,
            "adapted": answer.adapted,
            "learned": answer.learned,
            "skipped": answer.skipped,
            "moved": outcome.moved,
            "serving": answer.serving,
            "answer": digest_of(answer.logits),
            "state": one.hash,
        }
        if events:
            record["events"] = events
        self._audit.add("learn" if answer.adapted else "answer", **record)
        diagnostics = dict(getattr(adapter, "diagnostics", {}))
        one.history.append({"time": now, **record, "events": events, "diagnostics": diagnostics})

    # Snapshots --------------------------------------------------------------------------------------------------------

    def _due(self, one: Stream) -> bool:
        every = self.options.snapshot_every
        return bool(every) and one.step - one.saved_step >= every

    def _snapshot_or_note(self, one: Stream) -> None:
        """Write a snapshot that is due; a failure is noted and tried again, and the request is answered all the same."""
        try:
            self._snapshot(one)
        except OSError as error:
            one.saved_step, one.error = one.step, str(error)
            self._audit.add("snapshot failed", stream=one.name, offset=one.offset, error=str(error))

    def _snapshot(self, one: Stream) -> SnapshotInfo:
        with one.lock, self._network:
            tensors = {STATE + name: value for name, value in self._engine.state(one).items()}
            tensors[RECENT] = packed(one.recent)
            if not self._audit.flush(durable=True):
                raise OSError("the audit log cannot be written; free some space on the disk")
            head = self._audit.head
            facts = {**one.facts(), "paused": one.paused, "head": {"seq": head.seq, "hash": head.hash}}
            number = self._store.next_number(one.name)
            info = self._store.write(one.name, number, tensors, facts)
            one.saved_step, one.saved_offset, one.error, one.healthy = one.step, one.offset, "", True
            self._audit.add("snapshot", stream=one.name, snapshot=number, offset=one.offset, state=one.hash)
            return info

    def _pause(self, stream: str, paused: bool) -> None:
        with self._turn(stream) as one:
            if one.paused == paused:
                return
            one.paused = paused
            try:
                self._snapshot(one)
            except OSError as error:
                one.error = str(error)
            self._audit.add("pause" if paused else "unpause", stream=one.name, offset=one.offset)


def digest_of(logits: Tensor) -> str:
    """Digest of an answer's logits, 16 hexadecimal digits."""
    import hashlib

    plain = logits.contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(plain.data, digest_size=8).hexdigest()


def _state_of(found: Snapshot) -> dict[str, Tensor]:
    return {k.removeprefix(STATE): v for k, v in found.tensors.items() if k.startswith(STATE)}


def _check_deadline(deadline: Any) -> None:
    if deadline is None:
        return
    if isinstance(deadline, bool) or not isinstance(deadline, int | float):
        raise TypeError(f"deadline is a number of seconds or None, got {deadline!r}")
    if math.isnan(deadline):
        raise ValueError("deadline is a number of seconds, got NaN")


def _cost(adapter: Adapter) -> float:
    forwards, backwards = adapter.cost
    return max(1.0, forwards + 2 * backwards)


def _event(event: Any) -> dict[str, Any]:
    return {name: getattr(event, name, None) for name in ("kind", "reason", "step")}


def _model(name: str | None, directory: str | Path) -> nn.Module:
    if name is None:
        raise ValueError(
            f"{directory} does not name its model; pass it: Session.resume(model, directory), or begin sessions with "
            "SessionOptions(model=name)"
        )
    from testtime.models import load_model

    return load_model(name)
