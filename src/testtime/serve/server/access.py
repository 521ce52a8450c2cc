"""Who may do what: the dependencies of the routes."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

from fastapi import Depends, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from testtime.serve.server.options import is_loopback
from testtime.serve.server.problems import Refusal
from testtime.serve.server.service import Service

__all__ = ["client", "manager", "service_of"]

CLIENT = HTTPBearer(
    auto_error=False, scheme_name="client", description="the client's token, or the manager's"
)
MANAGER = HTTPBearer(auto_error=False, scheme_name="manager", description="the manager's token")


def service_of(request: Request) -> Service:
    """Return the service of the application that got a request."""
    service: Service = request.app.state.service
    return service


async def client(
    request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(CLIENT)] = None
) -> Service:
    """Return the service if the request has a token, or comes from this machine where none is needed.

    Raises:
        Refusal: 401: the token is missing or wrong; 403: a page of another site sent it.
    """
    service = service_of(request)
    if service.options.tokens.use is None:
        _from_this_machine(request)
    elif service.options.tokens.role(request.headers.get("authorization")) is None:
        raise Refusal(
            401, "no-token", "the token is missing or wrong", "send the header Authorization: Bearer TOKEN"
        )
    return service


async def manager(
    request: Request, _: Annotated[HTTPAuthorizationCredentials | None, Depends(MANAGER)] = None
) -> Service:
    """Return the service if the request has the manager's token, or comes from this machine where none is needed.

    Raises:
        Refusal: 401: the token is missing or wrong; 403: it is the client's, or management is off.
    """
    service = await client(request)
    tokens = service.options.tokens
    if tokens.use is not None and tokens.manage is None:
        raise Refusal(
            403, "management-off", "this server has no manager's token", "start it with TESTTIME_MANAGE_TOKEN"
        )
    if tokens.role(request.headers.get("authorization")) != "manage":
        raise Refusal(
            403, "not-manager", "this needs the manager's token", "send it in place of the client's"
        )
    return service


def _from_this_machine(request: Request) -> None:
    """Refuse what the browser of this machine sends for a page of another site (by its name, or from another origin)."""
    try:
        host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
    except ValueError:  # half an address of IPv6
        host = ""
    origin = request.headers.get("origin")
    foreign = origin is not None and origin != f"{request.url.scheme}://{request.headers.get('host', '')}"
    if not is_loopback(host) or foreign:
        raise Refusal(
            403,
            "foreign-origin",
            "a server without tokens answers programs and pages of its own machine",
            "call it as 127.0.0.1, or start it with TESTTIME_TOKEN",
        )
