"""Bodies of requests: received within limits of size and time, then parsed and validated outside of the event loop."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from pydantic_core import from_json
from starlette.requests import ClientDisconnect

from testtime.serve.server.problems import Refusal

__all__ = ["content_type", "parsed", "received", "validated"]

M = TypeVar("M", bound=BaseModel)


async def received(request: Request, *kinds: str) -> bytes:
    """Return the body of a request.

    Args:
        request: the request; the layer around the application bounds its size and time.
        kinds: content types that are read here; a request without one is taken as the first.

    Raises:
        Refusal: 415: another content type; 400: the client went away.
    """
    kind = content_type(request) or kinds[0]
    if kind not in kinds:
        raise Refusal(
            415,
            "content-type",
            f"the content type is {kind[:100]!r}, expected {' or '.join(kinds)}",
            f"set the header Content-Type: {kinds[-1]}",
        )
    coding = request.headers.get("content-encoding", "identity").lower()
    if coding != "identity":
        raise Refusal(
            415,
            "content-encoding",
            f"the body is encoded as {coding[:100]!r}",
            "send it as it is, not compressed",
        )
    try:
        return await request.body()
    except ClientDisconnect:
        raise Refusal(
            400, "disconnected", "the client went away before its request was complete", "send it again"
        ) from None


def content_type(request: Request) -> str:
    """Return the content type of a request without its parameters, in lower case; empty if there is none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def parsed(body: bytes) -> Any:
    """Parse strict JSON.

    Raises:
        Refusal: 400: it is none.
    """
    if not body:
        raise Refusal(
            400, "bad-json", "expected JSON, found an empty body", "/openapi.json describes the request"
        )
    try:
        return from_json(body, allow_inf_nan=False, cache_strings="none")
    except ValueError as error:
        raise Refusal(
            400,
            "bad-json",
            f"expected JSON in UTF-8, found otherwise ({error})",
            "NaN and Infinity are no JSON; such values travel with the binary tensor extension",
        ) from None


def validated(body: bytes, model: type[M], status: int = 400) -> M:
    """Parse a body as JSON and validate it.

    Args:
        body: body of the request.
        model: schema of the content.
        status: status of the refusal.

    Raises:
        Refusal: it is no JSON, or holds something else; the first fault is named.
    """
    try:
        return model.model_validate(parsed(body))
    except ValidationError as error:
        first, many = error.errors(include_url=False, include_input=False)[0], error.error_count()
        place = ".".join(map(str, first["loc"]))[:200] or "the body"
        more = f" (and {many - 1} more)" if many > 1 else ""
        raise Refusal(
            status,
            "bad-values",
            f"{place}: {first['msg'][:500]}{more}",
            "/openapi.json describes the request",
        ) from None
