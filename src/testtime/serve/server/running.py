"""The process of a server: its socket, its signals and its end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import warnings
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from testtime.serve.server.logs import log
from testtime.serve.server.service import Service

__all__ = ["listening", "run"]

INTERRUPTED = 130
KEEP_ALIVE = 15  # seconds that a connection stays open without a request


def listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens, before a model is loaded.

    Args:
        host: address or name of this machine.
        port: port; 0 takes a free one.

    Raises:
        ValueError: this is no number of a port.
        OSError: the address is not this machine's, or the port is in use.
    """
    if not 0 <= port < 2**16:
        raise ValueError(f"expected a port from 0 to {2**16 - 1}, got {port}")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        try:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            found.bind(address)
            found.listen(2048)
            found.setblocking(False)
        except BaseException:
            found.close()
            raise
    except OSError as error:
        raise OSError(
            error.errno, f"cannot listen on {host}:{port} ({error.strerror}); choose another address or port"
        ) from error
    return found


def run(app: FastAPI, found: socket.socket) -> int:
    """Serve an application until SIGTERM or SIGINT, then answer what is in progress and end the application.

    Args:
        app: application of :func:`testtime.serve.server.create_app`.
        found: socket of :func:`listening`; it is closed.

    Returns:
        exit code: 0 after SIGTERM, 130 after SIGINT; 1 where the last snapshots could not be written.
    """
    service: Service = app.state.service
    limits = service.options.limits
    config = uvicorn.Config(
        app,
        http=_Protocol.within(limits.receive),
        ws="none",
        lifespan="on",
        loop="asyncio",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=KEEP_ALIVE,
        timeout_graceful_shutdown=int(-(-limits.shutdown // 1)),
    )
    server = _Server(config)
    warnings.filterwarnings(
        "ignore", module=r"PIL\."
    )  # remarks on each damaged image, in words of its sender
    try:
        asyncio.run(server.until_stopped(found))
    finally:
        found.close()
    if not service.closed:
        return 1
    return INTERRUPTED if server.stopped_by == signal.SIGINT else 0


class _Server(uvicorn.Server):
    """A server that ends by signals of its own event loop, and leaves the process's handlers alone."""

    stopped_by: int | None = None

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the handlers as they are."""
        yield

    async def until_stopped(self, found: socket.socket) -> None:
        """Serve until a signal, with the process's handlers in place again afterwards."""
        loop = asyncio.get_running_loop()
        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in before:
            try:
                loop.add_signal_handler(number, self._stop, number)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda number, frame: loop.call_soon_threadsafe(self._stop, number))
        try:
            await self.serve(sockets=[found])
        finally:
            for number, handler in before.items():
                with contextlib.suppress(NotImplementedError):
                    loop.remove_signal_handler(number)
                signal.signal(number, handler or signal.SIG_DFL)

    def _stop(self, number: int) -> None:
        if self.should_exit and number == signal.SIGINT:
            self.force_exit = True  # the second one: connections are not waited for
        self.stopped_by = self.stopped_by or number
        self.should_exit = True
        log(logging.INFO, "stopping", signal=signal.Signals(number).name)


class _Protocol(H11Protocol):
    """Closes a connection whose request header does not arrive, or whose response is not read, in time."""

    seconds: float = 15.0
    timer: asyncio.TimerHandle | None = None
    unread: asyncio.TimerHandle | None = None

    @classmethod
    def within(cls, seconds: float) -> type[_Protocol]:
        """The protocol with a time limit."""
        return type("Protocol", (cls,), {"seconds": seconds})

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take data; the time runs from the first byte of a request to the end of its header."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before and self.timer is not None:
            self.timer.cancel()
            self.timer = None
        elif self.timer is None and (self.cycle is None or self.cycle.response_complete):
            self._wait()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Answer a request that is complete, although its client sends no more; then the connection is closed."""
        cycle = self.cycle
        if cycle is None or cycle.more_body or cycle.response_complete:
            return False
        cycle.keep_alive = False
        return True

    def pause_writing(self) -> None:
        """Wait until the client reads."""
        super().pause_writing()
        self.unread = self.loop.call_later(self.seconds, self._not_read)

    def resume_writing(self) -> None:
        """Go on, for the client reads."""
        if self.unread is not None:
            self.unread.cancel()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        for timer in (self.timer, self.unread):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self.timer = self.loop.call_later(self.seconds, self._too_slow)

    def _too_slow(self) -> None:
        self.timer = None
        if self.transport is not None and not self.transport.is_closing():
            log(logging.INFO, "slow connection", client=str((self.client or ("",))[0]))
            self.transport.close()

    def _not_read(self) -> None:
        log(logging.INFO, "response not read", client=str((self.client or ("",))[0]))
        self.transport.abort()
