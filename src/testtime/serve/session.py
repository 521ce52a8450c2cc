"""A session: an adapter that serves streams, with snapshots, rollback, an input gate and an audit log."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.errors import DataError
from testtime.serve.audit import Audit, Head
from testtime.serve.directory import Directory, DirectoryLock, ranges_read
from testtime.serve.engine import Answer, Engine, check_adapter
from testtime.serve.gate import Held, InputGate, Quarantine, Screening
from testtime.serve.idle import Idle
from testtime.serve.keeping import Captured, Keeper, state_of
from testtime.serve.mirror import Mirror
from testtime.serve.options import SessionOptions
from testtime.serve.pacing import Pacer, check_deadline, cost_of, due
from testtime.serve.recording import Recorder, check_note
from testtime.serve.snapshots import SnapshotInfo, SnapshotStore
from testtime.serve.streams import Stream, StreamStatus
from testtime.serve.turns import Turns

__all__ = ["Session"]

DEFAULT = SessionOptions()


class Session:
    """An adapter that serves streams from a directory.

    Every stream has a state of its own, which begins as that of the adapter when it was given; the frozen weights are there
    once. Requests of several threads are safe; those of one stream are answered in their order.

    Args:
        adapter: adapter that serves; the session owns it until it is closed.
        directory: directory of snapshots, audit log and description. An existing one is resumed if it belongs to an adapter of
            this class, these arguments and this model: every stream continues from its last good snapshot.
        options: settings.

    Attributes:
        mirror: the mirror of the snapshots; None without (``SessionOptions.mirror``).

    Raises:
        TypeError: this is no adapter.
        ValueError: an argument of the adapter cannot be written to a file, another session serves with it, or the directory
            or the mirror belongs to another configuration or session.
        RuntimeError: another session holds the directory.
        DataError: the description of the directory is damaged.
        OSError: the directory cannot be written to.
    """

    _turns: Turns

    def __init__(self, adapter: Adapter, directory: str | Path, *, options: SessionOptions = DEFAULT) -> None:
        check_adapter(adapter)
        files = Directory(directory)
        self._start(files, options, lambda: files.given(adapter))

    @classmethod
    def resume(
        cls,
        model: nn.Module | None,
        directory: str | Path,
        *,
        options: SessionOptions = DEFAULT,
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
            ValueError: the model is not that of the session, or none is named; or the mirror holds another session.
            RuntimeError: another session holds the directory.
            DataError: the description of the directory is damaged.
        """
        if not (Path(directory) / "session.json").exists():
            raise FileNotFoundError(f"{directory} holds no session; begin one by Session(adapter, directory)")
        self = cls.__new__(cls)
        files = Directory(directory)
        self._start(files, options, lambda: files.serving(model, classes, functions))
        return self

    # Requests ---------------------------------------------------------------------------------------------------------

    def submit(
        self, x: Tensor, stream: str = "default", *, deadline: float | None = None, learn: bool = True
    ) -> Answer:
        """Answer the next samples of a stream, and learn from them.

        Args:
            x: samples (N, ...), floating point.
            stream: name of the stream; an unknown one begins.
            deadline: seconds from now; where a step would take longer, the last state answers, and nothing is learned, or
                later (:meth:`catch_up`).
            learn: whether the stream may learn from them.

        Raises:
            TypeError, ValueError: bad input, refused before any work; the message says what was expected.
            DataError: the stream has snapshots, and none can be used.
            RuntimeError: the session is closed, or has as many streams as it may have.
        """
        began = self.options.clock()
        check_deadline(deadline)
        self._gate.check(x)
        with self._turns.of(stream) as one:
            self._engine.activate(one)
            screening = self._gate.screen(x, one.recent, self._engine.within())
            x = self._gate.settled(x)
            left = None if deadline is None else deadline - (self.options.clock() - began)
            skipped = self._skipped(one, len(screening.admitted), left, learn)
            answer, moved = self._answered(one, x, screening, skipped)
            if skipped == "deadline":
                one.postpone(x, screening, self.options.backlog)
            more = {"moved": moved, "distance": self._engine.distance()} if answer.adapted else {}
            self._recorder.note(one, x, screening, answer, self._engine.adapter, **more)
            due = [self._keeper.capture(one, self._engine)] if self._due(one) else []
            leaving = self._idle.captured()
        self._write(due)
        self._idle.write(leaving)
        return answer

    def predict(self, x: Tensor, stream: str = "default") -> Answer:
        """Answer samples without learning and without counting them: the stream stays as it is.

        Args, raises: those of :meth:`submit`.
        """
        self._gate.check(x)
        with self._turns.of(stream) as one:
            self._engine.activate(one)
            screening = self._gate.screen(x, (), self._engine.within())
            return self._answered(one, self._gate.settled(x), screening, "asked")[0]

    def catch_up(self, stream: str = "default", *, budget: float | None = None) -> int:
        """Learn from samples that were answered without learning because of a deadline (``SessionOptions.backlog``).

        Args:
            stream: name of a known stream.
            budget: seconds; a step that is expected to take longer than what is left is not begun. None: without a limit.

        Returns:
            number of samples that were learned; 0 where none waits, learning is off or the time does not suffice.

        Raises:
            ValueError: there is no such stream.
        """
        check_deadline(budget, "budget")
        began, done = self.options.clock(), 0
        while True:
            left = None if budget is None else budget - (self.options.clock() - began)
            with self._turns.of(stream, known=True) as one:
                size = one.backlog[0].admitted if one.backlog else 0
                if not size or self._skipped(one, size, left, True):
                    return done
                self._engine.activate(one)
                late, started = one.backlog[0].without(one.recent), self.options.clock()
                learned, moved = self._engine.learn(one, late.x, late.digests)
                one.backlog.popleft()
                if late.admitted:
                    self._pacer.took(late.admitted, self.options.clock() - started, learning=True)
                self._recorder.note_late(one, late, size, learned, moved, self._engine.distance())
                due = [self._keeper.capture(one, self._engine)] if self._due(one) else []
            done += late.admitted if learned else 0
            self._write(due)

    def pause(self, stream: str = "default") -> None:
        """Switch learning of a known stream off; it answers from its last state. A resumed session keeps that."""
        self._pause(stream, True)

    def unpause(self, stream: str = "default") -> None:
        """Switch learning of a stream on again."""
        self._pause(stream, False)

    # Snapshots --------------------------------------------------------------------------------------------------------

    def snapshot(self, stream: str = "default", wait: bool = True) -> SnapshotInfo:
        """Take a snapshot of a stream.

        Args:
            stream: name of a known stream.
            wait: whether the snapshot is durable, and thereby acknowledged, when this returns; otherwise a thread writes it
                (:meth:`settle`).

        Raises:
            ValueError: there is no such stream.
            OSError: the disk is full or read-only; the earlier snapshots are as before.
        """
        with self._turns.of(stream, known=True) as one:
            captured = self._keeper.capture(one, self._engine)
        return self._keeper.write(captured) if wait else self._keeper.later(captured, asked=True)

    def snapshots(self, stream: str = "default") -> tuple[SnapshotInfo, ...]:
        """The acknowledged snapshots of a stream that are kept, oldest first.

        Raises:
            ValueError: there is no such stream.
        """
        return self._turns.infos(stream)

    def settle(self, timeout: float | None = None) -> None:
        """Wait until the snapshots that were taken with ``wait=False``, or while serving, are written.

        Args:
            timeout: seconds; None: without a limit.

        Raises:
            OSError: one could not be written since the last call.
            TimeoutError: the time is over.
        """
        self._keeper.settle(timeout)

    def rollback(self, stream: str = "default", to: int | None = None) -> SnapshotInfo | None:
        """Give a stream the state of a snapshot, or that of the shipped model; the stream goes on from where it is.

        The state is written as a new snapshot, so that a resumed session does not return to the state before. Samples that
        were to be learned later are not.

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
        with self._turns.of(stream, known=True) as one:
            found = None if to is None else self._keeper.store.read(one.name, to)
            if found is not None and found.info.configuration != self._engine.configuration:
                raise ValueError(
                    f"snapshot {to} of stream {stream!r} belongs to configuration {found.info.configuration}, and "
                    f"{self._engine.configuration} serves; configure() that one first"
                )
            self._engine.activate(one)
            state, ranges, before = self._engine.state(one), dict(one.ranges), one.hash
            if found is None:
                self._engine.put(one, None)
            else:
                self._engine.put(one, state_of(found), ranges_read(found.facts["ranges"]))
            facts = {"stream": one.name, "to": to, "offset": one.offset, "before": before, "state": one.hash}
            self._audit.add("rollback", **facts)
            try:
                self._keeper.write(self._keeper.capture(one, self._engine))
            except BaseException:
                self._engine.put(one, state, ranges)
                self._audit.add("rollback failed", stream=one.name, offset=one.offset, state=one.hash)
                raise
            one.backlog.clear()
            return None if found is None else found.info

    # Management -------------------------------------------------------------------------------------------------------

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
        check_adapter(adapter)
        with self._turns.network:
            self._turns.check_open()
            if adapter.fingerprint != self._engine.adapter.fingerprint:
                raise ValueError(
                    "the adapter was built on another source model than this session; expected the same weights, or begin "
                    "a session in another directory"
                )
            if self._gate.shape is not None:
                like = next(self._engine.adapter.parameters(), torch.zeros(()))
                adapter.predict(torch.full((2, *self._gate.shape), 0.5).to(like))
            configuration, before = self._files.keep(adapter), self._engine.configuration
            self._files.describe(configuration, self.options.model)
            if self.mirror is not None:
                self.mirror.describe()
            self._engine.install(adapter, configuration, self._turns.all())
            self._pacer = Pacer(cost_of(adapter), self.options.clock)
            self._audit.preamble["configuration"] = configuration
            self._audit.add("configure", before=before, after=configuration)

    def streams(self) -> tuple[str, ...]:
        """Names of the streams, those that are only on the disk too."""
        return self._turns.names()

    def __contains__(self, stream: str) -> bool:
        """Whether there is a stream of this name; unlike :meth:`streams` at the same cost however many there are."""
        return self._turns.has(stream)

    def status(self, stream: str = "default") -> StreamStatus:
        """What a stream is and has done.

        Raises:
            ValueError: there is no such stream.
        """
        one = self._turns.peek(stream)
        return StreamStatus.of(one, self._turns.infos(stream), self._engine.size(one))

    def history(self, stream: str = "default", last: int | None = None) -> Sequence[dict[str, Any]]:
        """Records of the last requests of a stream, oldest first: those of the audit log, with time and diagnostics.

        Args:
            stream: name of a known stream; one that is on the disk alone has none.
            last: number of records; None: all that are kept. The cost is that of the records returned.

        Raises:
            ValueError: there is no such stream.
        """
        self._turns.check_known(stream)
        one = self._turns.in_memory(stream)
        if one is None:
            return ()
        return tuple(one.history) if last is None else tuple(islice(reversed(one.history), last))[::-1]

    def quarantine(self, stream: str | None = None) -> tuple[Held, ...]:
        """The last samples that were refused, or not learned from, of a stream or of all."""
        return self._quarantine.held(stream)

    def forget(self, stream: str) -> None:
        """Delete a stream and its snapshots; the audit log keeps its records, which hold digests alone.

        Raises:
            ValueError: there is no such stream.
            OSError: its files cannot be deleted.
        """
        self._turns.check_known(stream)
        offset: int | None = None
        with self._turns.network:
            self._turns.check_open()
            there = self._turns.in_memory(stream) is not None
            if not there:  # it is not read, for its snapshots may be damaged
                self._keeper.forget(stream)
        if there:
            with self._turns.of(stream) as one:
                self._keeper.forget(one.name)
                self._turns.drop(one)
                offset = one.offset
        self._quarantine.forget(stream)
        if self.mirror is not None:
            self.mirror.forget(stream)
        self._audit.add("forget", stream=stream, offset=offset)

    @property
    def adapter(self) -> Adapter:
        """The adapter that serves, for reading; it belongs to the session."""
        return self._engine.adapter

    @property
    def configuration(self) -> str:
        """Hash of the configuration that serves, 16 hexadecimal digits."""
        return self._engine.configuration

    @property
    def head(self) -> Head:
        """End of the audit log; kept elsewhere, it shows whether the log was truncated later."""
        return self._audit.head

    def note(self, event: str, **facts: Any) -> None:
        """Add a record to the audit log, of a kind that a replay passes over.

        Raises:
            TypeError, ValueError: the session notes this event itself, or JSON cannot hold the facts.
        """
        check_note(event, facts)
        self._audit.add(event, **facts)

    def close(self) -> None:
        """Write a last snapshot of every stream that moved, and give the directory back.

        Raises:
            OSError, DataError: a snapshot could not be written; the others are, and the directory is given back.
        """
        if not self._turns.close():
            return
        failures, streams = list[OSError | DataError](), self._turns.all()
        try:
            for one in streams:
                try:
                    with one.lock, self._turns.network:
                        captured = None if one.saved or one.gone else self._keeper.capture(one, self._engine)
                    if captured is not None:
                        self._keeper.write(captured)
                except (OSError, DataError) as error:
                    failures.append(error)
            self._keeper.close()
            if self.mirror is not None:
                self.mirror.close()
            self._audit.add("close", streams=len(streams))
        finally:
            self._engine.release()
            self._audit.close()
            self._lock.release()
        if failures:
            raise failures[0]

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # How a session begins ---------------------------------------------------------------------------------------------

    def _start(
        self, files: Directory, options: SessionOptions, find: Callable[[], tuple[Adapter, str]]
    ) -> None:
        self.options, self._files = options, files
        self._lock = DirectoryLock(files.folder)
        try:
            files.sweep()
            found = files.found()
            adapter, configuration = find()
            self._audit = Audit(files.audit, options.now, options.audit_rotate, options.audit_keep)
            if found is None:
                files.describe(configuration, options.model)
            self.mirror = None if options.mirror is None else Mirror(options.mirror, files, self._audit.add)
            self._engine = Engine(adapter, configuration, options.history, options.gate.repeats)
        except BaseException:
            self._lock.release()
            raise
        self._gate, self._quarantine = InputGate(options.gate), Quarantine(options.gate)
        self._pacer = Pacer(cost_of(adapter), options.clock)
        self._recorder = Recorder(self._audit, self._quarantine, options.now)
        self._keeper = Keeper(SnapshotStore(files.streams, options.retention, options.now), self._audit)
        if self.mirror is not None:
            self._keeper.acknowledged = self.mirror.offer
            self.mirror.describe()
        self._turns = Turns(self._engine, self._keeper, options.streams, options.clock)
        self._idle = Idle(self._turns, self._keeper, self._engine, self._audit, options)
        self._audit.preamble = {
            "configuration": configuration,
            "backlog": options.backlog,
            "gate": options.gate.recorded,
        }
        mended = {"repaired": self._audit.repaired, "broken": self._audit.broken}
        self._audit.add("open", **self._audit.preamble, resumed=found is not None, **mended)

    # A request --------------------------------------------------------------------------------------------------------

    def _skipped(self, one: Stream, size: int, left: float | None, learn: bool) -> str:
        """Why the adapter takes no step; empty if it takes one."""
        if not learn or one.paused:
            return "paused" if one.paused else "asked"
        if self._audit.waiting and not self._audit.flush():
            return "audit"
        learning = due(self._engine.adapter, size)
        return "" if self._pacer.fits(size, left, learning=learning) else "deadline"

    def _answered(self, one: Stream, x: Tensor, screening: Screening, skipped: str) -> tuple[Answer, float]:
        """The answer to a request, and how far the adapted parameters moved."""
        size = len(screening.admitted)
        learning = not skipped and due(self._engine.adapter, size)
        self._engine.try_out(x, screening)
        began = self.options.clock()
        outcome = self._engine.process(one, x, screening, not skipped)
        if size:
            self._pacer.took(size, self.options.clock() - began, learning=learning)
        self._gate.answered(x, screening)
        return self._engine.answer(one, outcome, screening, skipped), outcome.moved

    def _write(self, due: list[Captured]) -> None:
        for captured in due:
            self._keeper.later(captured) if self.options.asynchronous else self._keeper.attempt(captured)

    def _due(self, one: Stream) -> bool:
        every = self.options.snapshot_every
        return bool(every) and one.step - one.saved_step >= every

    def _pause(self, stream: str, paused: bool) -> None:
        with self._turns.of(stream, known=True) as one:
            if one.paused == paused:
                return
            one.paused = paused
            self._audit.add("pause" if paused else "unpause", stream=one.name, offset=one.offset)
            captured = self._keeper.capture(one, self._engine)
        self._keeper.attempt(captured)
