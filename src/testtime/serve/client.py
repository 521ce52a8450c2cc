"""A typed client of the server, for threads (:class:`Client`) and for asyncio (:class:`AsyncClient`), on httpx."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from torch import Tensor

from testtime.serve.calls import (
    Call,
    Calls,
    ConfigurationInfo,
    ForbiddenError,
    Image,
    InvalidRequestError,
    NotFoundError,
    ServerBusyError,
    ServerError,
    ServerFaultError,
    ServerUnreachableError,
    TooLargeError,
    UnauthorisedError,
    connection,
    need_model,
    unreachable,
)
from testtime.serve.engine import Answer
from testtime.serve.snapshots import SnapshotInfo
from testtime.serve.streams import StreamStatus

__all__ = [
    "AsyncClient",
    "Client",
    "ConfigurationInfo",
    "ForbiddenError",
    "InvalidRequestError",
    "NotFoundError",
    "ServerBusyError",
    "ServerError",
    "ServerFaultError",
    "ServerUnreachableError",
    "TooLargeError",
    "UnauthorisedError",
]

T = TypeVar("T")


class Client(Calls):
    """A client of a server. Its methods are those of :class:`testtime.serve.Session`; threads may share it.

    A request that is refused because the server is busy is sent again when ``Retry-After`` says so. A request that may have
    been learned from is never sent twice.

    Args:
        url: address of the server.
        token: the client's token, or the manager's; white space around it is cut.
        model: name of the model; None: asked by :meth:`infer` as given there.
        timeout: longest time of a response, in seconds.
        retries: number of times that a request is sent again.
        transport: transport of httpx, for tests.

    Raises:
        ImportError: httpx is not installed.
        ValueError: an argument is not valid; the message does not hold the token.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        token: str | None = None,
        model: str | None = None,
        timeout: float = 30.0,
        retries: int = 3,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.model, self.retries = model, retries
        self._http = httpx.Client(**connection(url, token, timeout, retries), transport=transport)

    def infer(
        self,
        x: Tensor,
        stream: str = "default",
        *,
        deadline: float | None = None,
        learn: bool = True,
        model: str | None = None,
    ) -> Answer:
        """Predict a batch and let its stream adapt to it.

        Args:
            x: samples (N, ...), floating point; sent as bytes, without loss.
            stream: identity of the stream.
            deadline: seconds in which it is to be answered; adaptation is left out where it would take longer.
            learn: whether the stream adapts to it.
            model: name of the model, if the client has none.

        Raises:
            TypeError: x is no dense floating-point tensor.
            ValueError: x has no batch dimension or no data, or there is no name of a model.
            ServerError: one of its subclasses.
        """
        settings = {"stream": stream, "deadline": deadline, "learn": learn}
        return self._send(self._infer(need_model(model or self.model), x, settings))

    def send_image(
        self,
        image: Image | list[Image],
        stream: str = "default",
        *,
        deadline: float | None = None,
        learn: bool = True,
    ) -> Answer:
        """Send an image, or a list of images, as PNG or JPEG; the server brings it to the size of the model.

        Args:
            image: path or content of a file, or an image of Pillow; or a list of them.
            stream, deadline, learn: those of :meth:`infer`.

        Raises:
            ValueError: this is no PNG or JPEG file.
            ServerError: one of its subclasses.
        """
        return self._send(self._images(image, stream, deadline, learn))

    def streams(self) -> tuple[str, ...]:
        """Names of the streams."""
        return self._send(self._streams())

    def status(self, stream: str = "default") -> StreamStatus:
        """Status of a stream."""
        return self._send(self._status(stream))

    def snapshot(self, stream: str = "default") -> SnapshotInfo:
        """Take a snapshot (manager); it is acknowledged when this returns."""
        return self._send(self._snapshot(stream))

    def snapshots(self, stream: str = "default") -> tuple[SnapshotInfo, ...]:
        """Snapshots of a stream, the oldest first."""
        return self._send(self._snapshots(stream))

    def rollback(self, stream: str = "default", to: int | None = None) -> SnapshotInfo | None:
        """Return to a snapshot, or to the shipped model (manager).

        Args:
            stream: identity of the stream.
            to: number of a snapshot; None: the shipped model.
        """
        return self._send(self._rollback(stream, to))

    def pause(self, stream: str = "default") -> StreamStatus:
        """Switch learning off (manager)."""
        return self._send(self._switch(stream, "pause"))

    def unpause(self, stream: str = "default") -> StreamStatus:
        """Switch learning on again (manager)."""
        return self._send(self._switch(stream, "resume"))

    def forget(self, stream: str) -> None:
        """Delete a stream and its snapshots (manager)."""
        return self._send(self._forget(stream))

    def configuration(self) -> ConfigurationInfo:
        """How the model adapts."""
        return self._send(self._configuration())

    def configure(
        self, method: str, options: Mapping[str, Any] | None = None, *, guarded: bool = True
    ) -> ConfigurationInfo:
        """Change how the model adapts, while it serves (manager).

        Args:
            method: name of the method.
            options: its options, in values of JSON.
            guarded: whether it is guarded.

        Raises:
            InvalidRequestError: the configuration is not valid; the old one keeps serving.
        """
        return self._send(self._configure(method, options, guarded))

    def metrics(self) -> str:
        """Metrics in the text format of Prometheus."""
        return self._send(self._metrics())

    def metadata(self, model: str | None = None) -> dict[str, Any]:
        """Metadata of the model."""
        return self._send(self._metadata(need_model(model or self.model)))

    def ready(self) -> bool:
        """Whether the server accepts requests; False too where there is none."""
        try:
            return self._send(self._ready())
        except (ServerBusyError, ServerUnreachableError):
            return False

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _send(self, call: Call[T]) -> T:
        attempt = 0
        while True:
            try:
                return call.result(self._once(call))
            except ServerError as error:
                wait = self._wait(error, attempt, self.retries, call.safe)
                if wait is None:
                    raise
            time.sleep(wait)
            attempt += 1

    def _once(self, call: Call[T]) -> httpx.Response:
        try:
            return self._http.request(
                call.method, call.path, content=call.content, headers=call.headers, params=call.query
            )
        except httpx.TransportError as error:
            raise unreachable(self._http.base_url, call, error) from error


class AsyncClient(Calls):
    """A client of a server for asyncio; arguments, results and errors are those of :class:`Client`.

    Args:
        url, token, model, timeout, retries, transport: those of :class:`Client`.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        token: str | None = None,
        model: str | None = None,
        timeout: float = 30.0,
        retries: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.model, self.retries = model, retries
        self._http = httpx.AsyncClient(**connection(url, token, timeout, retries), transport=transport)

    async def infer(
        self,
        x: Tensor,
        stream: str = "default",
        *,
        deadline: float | None = None,
        learn: bool = True,
        model: str | None = None,
    ) -> Answer:
        """Predict a batch and let its stream adapt to it; see :meth:`Client.infer`."""
        settings = {"stream": stream, "deadline": deadline, "learn": learn}
        return await self._send(self._infer(need_model(model or self.model), x, settings))

    async def send_image(
        self,
        image: Image | list[Image],
        stream: str = "default",
        *,
        deadline: float | None = None,
        learn: bool = True,
    ) -> Answer:
        """Send an image, or a list of images; see :meth:`Client.send_image`."""
        return await self._send(self._images(image, stream, deadline, learn))

    async def streams(self) -> tuple[str, ...]:
        """Names of the streams."""
        return await self._send(self._streams())

    async def status(self, stream: str = "default") -> StreamStatus:
        """Status of a stream."""
        return await self._send(self._status(stream))

    async def snapshot(self, stream: str = "default") -> SnapshotInfo:
        """Take a snapshot (manager)."""
        return await self._send(self._snapshot(stream))

    async def snapshots(self, stream: str = "default") -> tuple[SnapshotInfo, ...]:
        """Snapshots of a stream, the oldest first."""
        return await self._send(self._snapshots(stream))

    async def rollback(self, stream: str = "default", to: int | None = None) -> SnapshotInfo | None:
        """Return to a snapshot, or to the shipped model (manager)."""
        return await self._send(self._rollback(stream, to))

    async def pause(self, stream: str = "default") -> StreamStatus:
        """Switch learning off (manager)."""
        return await self._send(self._switch(stream, "pause"))

    async def unpause(self, stream: str = "default") -> StreamStatus:
        """Switch learning on again (manager)."""
        return await self._send(self._switch(stream, "resume"))

    async def forget(self, stream: str) -> None:
        """Delete a stream and its snapshots (manager)."""
        return await self._send(self._forget(stream))

    async def configuration(self) -> ConfigurationInfo:
        """How the model adapts."""
        return await self._send(self._configuration())

    async def configure(
        self, method: str, options: Mapping[str, Any] | None = None, *, guarded: bool = True
    ) -> ConfigurationInfo:
        """Change how the model adapts, while it serves (manager); see :meth:`Client.configure`."""
        return await self._send(self._configure(method, options, guarded))

    async def metrics(self) -> str:
        """Metrics in the text format of Prometheus."""
        return await self._send(self._metrics())

    async def metadata(self, model: str | None = None) -> dict[str, Any]:
        """Metadata of the model."""
        return await self._send(self._metadata(need_model(model or self.model)))

    async def ready(self) -> bool:
        """Whether the server accepts requests; False too where there is none."""
        try:
            return await self._send(self._ready())
        except (ServerBusyError, ServerUnreachableError):
            return False

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _send(self, call: Call[T]) -> T:
        attempt = 0
        while True:
            try:
                return call.result(await self._once(call))
            except ServerError as error:
                wait = self._wait(error, attempt, self.retries, call.safe)
                if wait is None:
                    raise
            await asyncio.sleep(wait)
            attempt += 1

    async def _once(self, call: Call[T]) -> httpx.Response:
        try:
            return await self._http.request(
                call.method, call.path, content=call.content, headers=call.headers, params=call.query
            )
        except httpx.TransportError as error:
            raise unreachable(self._http.base_url, call, error) from error
