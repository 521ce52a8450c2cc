"""What the routes share: the session behind its threads, the configuration, and the metrics of what happens."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel
from torch import Tensor

from testtime.errors import DataError
from testtime.serve.server.bodies import validated
from testtime.serve.server.logs import log
from testtime.serve.server.metrics import Metrics
from testtime.serve.server.options import ServerOptions
from testtime.serve.server.problems import Refusal
from testtime.serve.server.served import Configuration
from testtime.serve.server.worker import Worker
from testtime.serve.turns import SessionClosed, TooManyStreams

if TYPE_CHECKING:
    from testtime.serve import Answer, Session
    from testtime.serve.alarms import AlarmState

__all__ = ["Service"]

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
SMALL = 2**16  # bytes of JSON that are parsed in the event loop
THREADS = 2  # one prepares and packs while the other computes
RECORDS = (
    2 * THREADS
)  # last records of a stream that a request looks at: those of requests beside it are among them
MANAGERS = 2
SHORTEST = 0.001  # seconds: the deadline of a request that waited longer than its own


class Service:
    """The session of a server, asked from the event loop.

    Args:
        session: the session; it is closed by :meth:`close`.
        options: options of the server.

    Attributes:
        configuration: the configuration in use.
        changes: number of its changes.
        ready: whether requests are accepted.
        closed: whether the session was closed with its last snapshots.
    """

    def __init__(self, session: Session, options: ServerOptions) -> None:
        self.session, self.options = session, options
        self.configuration, self.changes = options.configuration, 0
        self.ready, self.closed = True, False
        self.metrics = Metrics(options.labelled_streams)
        limits = options.limits
        self.model = Worker("testtime-model", THREADS, limits.queue, limits.wait)
        self.managers = Worker("testtime-manage", MANAGERS, limits.queue, limits.wait)
        if options.shadow is not None:
            options.shadow.thread.busy = self._busy
        if options.alarms is not None:
            options.alarms.thread.busy, options.alarms.raised = self._busy, self._alarmed
        self._changing = asyncio.Lock()
        self._known = set(session.streams())
        self._beginning: Counter[str] = Counter()

    async def parse(self, body: bytes, model: type[M]) -> M:
        """Parse and validate a body, a large one in a thread.

        Raises:
            Refusal: it is no JSON or holds something else, or the server is busy.
        """
        if len(body) <= SMALL:
            return validated(body, model)
        return await self.model.run(lambda _: validated(body, model))

    async def submit(
        self,
        stream: str,
        read: Callable[[], Tensor],
        pack: Callable[[Answer], T],
        deadline: float | None = None,
        learn: bool = True,
        since: float | None = None,
    ) -> T:
        """Answer a batch of a stream in a thread.

        Args:
            stream: identity of the stream; a new one begins with its first batch.
            read: function that makes the batch; a refusal of it is raised before anything is learned.
            pack: function of the answer, for the response.
            deadline: seconds in which it is to be answered; None: that of the options.
            learn: whether the stream adapts to it.
            since: monotonic time at which the request was complete; None: now.

        Raises:
            Refusal: the batch is not valid, or the server is busy.
        """
        deadline = self.options.deadline if deadline is None else deadline
        began = time.monotonic() if since is None else since

        def job(waited: float) -> tuple[T, Answer, float]:
            x = self.options.model.placed(read())
            spent = time.monotonic() - began
            left = None if deadline is None else max(SHORTEST, deadline - spent)
            with translated():
                answer = self.session.submit(x, stream, deadline=left, learn=learn)
            self.metrics.events(stream, self.session.history(stream, last=RECORDS))
            admitted = [not (r or q) for r, q in zip(answer.refused, answer.quarantined, strict=True)]
            if self.options.shadow is not None:
                self.options.shadow.offer(x[admitted], stream)
            if self.options.alarms is not None:
                self.options.alarms.offer(x[admitted], answer.logits[admitted], stream)
            return pack(answer), answer, waited

        with self._place(stream):
            packed, answer, waited = await self.model.run(job)
            self._known.add(stream)
        self.metrics.samples(stream, answer, waited)
        return packed

    @contextmanager
    def _place(self, stream: str) -> Iterator[None]:
        """Keep a place for a stream that may begin, until its first batch is answered."""
        if stream not in self._known:
            many = len(self._known) + sum(one not in self._known for one in self._beginning if one != stream)
            if many >= self.options.limits.streams:
                raise Refusal(
                    429,
                    "streams",
                    f"there are {many} streams, which is the limit",
                    "use one of them, or delete one: DELETE /streams/{id}",
                    retry_after=60,
                )
        self._beginning[stream] += 1
        try:
            yield
        finally:
            self._beginning[stream] -= 1
            if not self._beginning[stream]:
                del self._beginning[stream]

    async def ask(self, job: Callable[[Session], T]) -> T:
        """Call a function of the session in a thread of management."""

        def work(_: float) -> T:
            with translated():
                return job(self.session)

        return await self.managers.run(work)

    async def act(self, action: str, stream: str, job: Callable[[Session], T]) -> T:
        """Do what changes a stream that is there; it is counted and logged.

        Raises:
            Refusal: 404: there is no such stream.
        """

        def checked(session: Session) -> T:
            self.need(stream)
            return job(session)

        done = await self.ask(checked)
        if self.options.alarms is not None and action in ("delete", "rollback"):
            self.options.alarms.clear(stream)
        if action == "delete":
            self._known.discard(stream)
            self.metrics.forget(stream)
        self.metrics.action(action)
        log(logging.INFO, action, stream=stream)
        return done

    def need(self, stream: str) -> None:
        """Raise a 404 where there is no stream of this name."""
        if stream not in self.session:
            raise Refusal(
                404,
                "no-stream",
                f"there is no stream {stream!r}",
                "GET /streams lists them; the first batch begins one",
            )

    async def configure(self, configuration: Configuration) -> None:
        """Change the configuration while requests are served; one change at a time.

        Raises:
            Refusal: 422: the configuration is not valid; the old one keeps serving.
        """

        kept = self.options.kept

        def job(_: float) -> None:
            try:
                adapter = self.options.model.build(configuration)
                if kept is not None:
                    kept.write(self.session.configuration, self.configuration, configuration)
                self.session.configure(adapter)
                if kept is not None:
                    kept.write(self.session.configuration, configuration)
            except ValueError as error:
                raise Refusal(
                    422,
                    "configuration",
                    str(error)[:2000],
                    "nothing was changed; correct it and send it again",
                ) from error

        async with self._changing:
            try:
                with translated():
                    await self.managers.run(job)
            except Refusal:
                self.metrics.changed("refused")
                raise
            self.configuration, self.changes = configuration, self.changes + 1
            if self.options.shadow is not None:
                self.options.shadow.serving = self.candidate
            if self.options.alarms is not None:
                self.options.alarms.clear()
            self.metrics.changed("accepted")
            log(logging.INFO, "configuration", **asdict(configuration))

    def _busy(self) -> bool:
        return self.model.waiting + self.model.running > 0

    def _alarmed(self, stream: str, state: AlarmState) -> None:
        """Record an alarm on shadow traffic: audit log, metrics and log."""
        assert self.options.alarms is not None
        facts = {"stream": stream, "samples": state.samples, "evidence": state.evidence}
        facts |= asdict(self.options.alarms.options)
        self.session.note("alarm", **facts)
        self.metrics.event(stream, "shadow alarm")
        log(logging.WARNING, "alarm", **facts)

    @property
    def candidate(self) -> str | None:
        """Name of the candidate in shadow whose configuration serves; None if it is another one."""
        names = (name for name, one in self.options.candidates.items() if one == self.configuration)
        return next(names, None)

    async def close(self) -> None:
        """Refuse further requests, wait for those in progress, and close the session with a last snapshot."""
        if not self.ready:
            return
        self.ready = False
        await self.model.close()
        await self.managers.close()
        try:
            await asyncio.get_running_loop().run_in_executor(None, self.session.close)
        except (OSError, DataError) as error:
            log(logging.ERROR, "not saved", error=str(error))
            return
        self.closed = True
        log(logging.INFO, "closed", streams=len(self._known))


class translated:
    """Context in which errors of the session become refusals.

    Bad values are 400, damaged files 409, too many streams 429, a closed session 503 and a full disk 507.
    """

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, DataError):
            raise Refusal(
                409, "damaged", str(error)[:2000], "choose another snapshot, or the shipped model"
            ) from error
        if isinstance(error, TooManyStreams):
            raise Refusal(
                429,
                "streams",
                str(error),
                "use one of its streams, or delete one: DELETE /streams/{id}",
                retry_after=60,
            ) from error
        if isinstance(error, SessionClosed):
            raise Refusal(
                503,
                "closed",
                "the session of this server is closed",
                "send it to another server, or start this one again",
                retry_after=5,
            ) from error
        if isinstance(error, ValueError | TypeError):
            raise Refusal(
                400, "bad-values", str(error)[:2000], "GET /v2/models/{name} describes the input"
            ) from error
        if isinstance(error, OSError):
            log(logging.ERROR, "disk", error=str(error))
            gone = isinstance(error, FileNotFoundError)
            raise Refusal(
                507,
                "disk",
                f"the state could not be {'found' if gone else 'written'} ({error.strerror or 'a file is missing'})",
                "restore the folder of the state" if gone else "free some space for the server",
            ) from error
