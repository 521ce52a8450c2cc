"""Errors as problem objects (RFC 9457): what was found, what was expected and what to do."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field

__all__ = ["Problem", "Refusal", "problem_response", "responses"]

MEDIA_TYPE = "application/problem+json"


class Problem(BaseModel):
    """An error: what was found and expected, and what to do."""

    type: str = Field(description="kind of the error, a relative reference", examples=["/problems/bad-shape"])
    title: str = Field(description="phrase of the status", examples=["Bad Request"])
    status: int = Field(description="status of the response", examples=[400])
    code: str = Field(description="kind of the error in one word, also the label in the metrics")
    detail: str = Field(description="what was found, and what was expected")
    advice: str = Field(description="what to do")
    error: str = Field(description="detail and advice, where clients of the Open Inference Protocol look")
    request: str = Field(description="identity of the request, also in the logs")


class Refusal(Exception):
    """A request that is not answered.

    Args:
        status: status of the response, 400 or above.
        code: kind of the error: lower-case words with hyphens.
        detail: finding and expectation, as a sentence.
        advice: remedy, as a sentence without its full stop.
        retry_after: seconds after which the same request may be sent again; None: it will not be accepted.
        close: whether the connection is closed, because the request was not read to its end.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        advice: str,
        *,
        retry_after: float | None = None,
        close: bool = False,
    ) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.advice = status, code, detail, advice
        self.headers: dict[str, str] = {}
        if retry_after is not None:
            self.headers["Retry-After"] = str(max(1, int(-(-retry_after // 1))))
        if status == HTTPStatus.UNAUTHORIZED:
            self.headers["WWW-Authenticate"] = "Bearer"
        if close:
            self.headers["Connection"] = "close"


def problem_response(refusal: Refusal, request: str) -> Response:
    """Return the response of a refusal.

    Args:
        refusal: the error.
        request: identity of the request.
    """
    problem = Problem(
        type=f"/problems/{refusal.code}",
        title=HTTPStatus(refusal.status).phrase,
        status=refusal.status,
        code=refusal.code,
        detail=refusal.detail,
        advice=refusal.advice,
        error=f"{refusal.detail}; {refusal.advice}",
        request=request,
    )
    return JSONResponse(
        problem.model_dump(), refusal.status, headers={**refusal.headers}, media_type=MEDIA_TYPE
    )


def identity(request: Request) -> str:
    """Return the identity of a request, which the outermost layer of the server gave it."""
    return str(request.scope.get("state", {}).get("request", ""))


RETRIED = {429, 503}
MEANING = {
    400: "the request is malformed, or its content is none that the model takes",
    401: "a token is missing or wrong",
    403: "the token does not allow this",
    404: "there is no such model, stream or snapshot",
    408: "the request did not arrive in time",
    409: "the state does not allow this",
    411: "the length of the body is missing",
    413: "the body, or an image in it, is too large",
    415: "the content type is none that is read here",
    422: "the values are not valid; nothing was changed",
    429: "too many requests of this client; Retry-After says when to come back",
    503: "the server is busy or shutting down; Retry-After says when to come back",
    507: "the state could not be written to the disk",
}


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the description of the errors of a route, for OpenAPI: those given, and those of every route.

    Args:
        statuses: statuses of the route's own errors.
    """
    found: dict[int | str, dict[str, Any]] = {}
    for status in sorted({*statuses, 400, 401, 403, 408, 413, 429, 503}):
        found[status] = {
            "description": MEANING[status],
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
        if status in RETRIED:
            found[status]["headers"] = {
                "Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 1}}
            }
    return found
