"""The layer around the application: identity, size, time and rate of every request, its log line and its metrics."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from testtime.serve.server.logs import LOGGER, log
from testtime.serve.server.metrics import Metrics
from testtime.serve.server.options import Limits
from testtime.serve.server.problems import Refusal, problem_response
from testtime.serve.server.rates import RateLimit

__all__ = ["Front"]

FREE = ("/v2/health/",)  # paths without a limit of their rate
UNKNOWN = "(none)"  # route of a request that no route takes


class Front:
    """ASGI application around another one, which gets requests that are small, complete in time and not too frequent.

    Args:
        app: application inside.
        limits: limits of requests.
        metrics: metrics that count requests.
    """

    def __init__(self, app: ASGIApp, limits: Limits, metrics: Metrics) -> None:
        self.app, self.limits, self.metrics = app, limits, metrics
        self._rates = RateLimit(limits.rate, limits.burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Take a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        if scope["method"] == "HEAD":  # the server sends no body, and the routes are those of GET
            scope = {**scope, "method": "GET"}
        identity, began, status, sent = secrets.token_hex(8), time.monotonic(), 500, False
        scope.setdefault("state", {})["request"] = identity

        async def answer(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status, sent = message["status"], True
                extra = [(b"x-request-id", identity.encode()), (b"x-content-type-options", b"nosniff")]
                message["headers"] = [*message.get("headers", ()), *extra]
            await send(message)

        try:
            self._admit(scope)
            await self.app(scope, self._bounded(scope, receive), answer)
        except Refusal as refusal:
            self.metrics.refused(refusal.code)
            await problem_response(refusal, identity)(scope, receive, answer)
        except Exception:  # the server answers, and the error is in its log
            LOGGER.exception("error", extra={"request": identity, "path": scope["path"][:200]})
            if sent:
                raise
            await problem_response(fault(identity), identity)(scope, receive, answer)
        finally:
            self._note(scope, status, time.monotonic() - began, identity)

    def _admit(self, scope: Scope) -> None:
        """Refuse a request that is too large by its header, or too frequent."""
        if not scope["path"].startswith(FREE):
            client = (scope.get("client") or ("", 0))[0]
            delay = self._rates.delay(str(client))
            if delay:
                raise Refusal(
                    429,
                    "rate",
                    f"more than {self.limits.rate:g} requests per second of this client",
                    "wait as long as Retry-After says; send larger batches",
                    retry_after=delay,
                    close=True,
                )
        names = {name for name, _ in scope["headers"]}
        if {
            b"content-length",
            b"transfer-encoding",
        } <= names:  # two servers may read two different requests from that
            raise Refusal(
                400,
                "two-lengths",
                "the request has Content-Length and Transfer-Encoding",
                "send one of them",
                close=True,
            )
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if lengths and (not lengths[0].isdigit() or int(lengths[0]) > self.limits.body):
            raise self._too_large(lengths[0].decode("latin-1")[:20])

    def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Receive that counts the bytes of the body, and the time that they take."""
        left, end = self.limits.body, time.monotonic() + self.limits.receive
        complete = False

        async def bounded() -> Message:
            nonlocal left, complete
            if complete:  # what follows is the end of the connection
                return await receive()
            try:
                message = await asyncio.wait_for(receive(), max(0.001, end - time.monotonic()))
            except TimeoutError:
                raise Refusal(
                    408,
                    "slow",
                    f"the body did not arrive within {self.limits.receive:g} seconds",
                    "send it at once",
                    close=True,
                ) from None
            left -= len(message.get("body", b""))
            if left < 0:
                raise self._too_large(f"more than {self.limits.body}")
            complete = not message.get("more_body", False)
            return message

        return bounded

    def _too_large(self, found: str) -> Refusal:
        return Refusal(
            413,
            "body-too-large",
            f"the body has {found} bytes, expected at most {self.limits.body}",
            "send smaller batches or images, or bytes in place of JSON",
            close=True,
        )

    def _note(self, scope: Scope, status: int, seconds: float, identity: str) -> None:
        route = getattr(scope.get("route"), "path", UNKNOWN)
        self.metrics.answered(route, scope["method"], status, seconds)
        facts: dict[str, Any] = {
            "request": identity,
            "method": scope["method"][:20],
            "path": scope["path"][:200],
            "route": route,
            "status": status,
            "seconds": round(seconds, 6),
            "client": str((scope.get("client") or ("",))[0]),
        }
        quiet = scope["path"].startswith(FREE)
        log(logging.DEBUG if quiet else logging.INFO, "request", **facts)


def fault(identity: str) -> Refusal:
    """The answer to a request that met an error of the server."""
    return Refusal(
        500,
        "internal",
        "an error of the server, which is in its log",
        f"report it with the identity of the request, {identity}",
    )
