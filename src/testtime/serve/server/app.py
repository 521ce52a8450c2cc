"""The application: routes, errors, OpenAPI, and the end of the session with the server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from testtime import __version__
from testtime.serve.server import operations, protocol, streams
from testtime.serve.server.front import Front
from testtime.serve.server.options import ServerOptions
from testtime.serve.server.problems import Problem, Refusal, identity, problem_response
from testtime.serve.server.schemas import ConfigurationBody, EncodedImages, InferBody, RollbackBody
from testtime.serve.server.service import Service

if TYPE_CHECKING:
    from testtime.serve import Session

__all__ = ["assembled", "create_app"]

ABOUT = """Serves a model that adapts to its inputs, by the Open Inference Protocol and as images of streams.

Every error is a problem object that says what was found, what was expected and what to do."""
NAMES = {401: "no-token", 404: "no-route", 405: "method"}


def create_app(session: Session, options: ServerOptions, routers: Sequence[APIRouter] = ()) -> FastAPI:
    """Return the application of a session; its end closes the session with a last snapshot.

    Args:
        session: the session; its adapter is the one of ``options.configuration``.
        options: options of the server.
        routers: further routes, such as pages. Their functions find the :class:`~testtime.serve.server.service.Service` as
            ``request.app.state.service``, and demand a token by ``Depends(testtime.serve.server.access.client)`` or
            ``manager``.

    Returns:
        an ASGI application for one event loop; :func:`testtime.serve.server.run` serves it.
    """
    own = (protocol.ROUTER, streams.IMAGES, streams.ROUTER, operations.ROUTER)
    return assembled(Service(session, options), (*own, *routers))


def assembled(service: Any, routers: Sequence[APIRouter]) -> FastAPI:
    """Return the application of a service.

    Args:
        service: a :class:`~testtime.serve.server.service.Service`, or what has those of its parts that the routes ask for.
        routers: the routes.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await app.state.service.close()

    app = FastAPI(
        title="testtime",
        version=__version__,
        description=ABOUT,
        docs_url=None,  # they load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
        exception_handlers={HTTPException: _http_error, RequestValidationError: _path_error},
        redirect_slashes=False,
    )
    app.state.service = service
    app.add_middleware(Front, limits=service.options.limits, metrics=service.metrics)
    for router in routers:
        app.include_router(router)
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    """The answer to a path or method that no route has."""
    assert isinstance(error, HTTPException)
    refusal = Refusal(
        error.status_code,
        NAMES.get(error.status_code, "http"),
        f"{request.method[:20]} {request.url.path[:200]}: {error.detail}",
        "/openapi.json lists what there is",
    )
    refusal.headers |= dict(error.headers or {})
    request.app.state.service.metrics.refused(refusal.code)
    return problem_response(refusal, identity(request))


async def _path_error(request: Request, error: Exception) -> Response:
    """The answer to a path or a query whose parameters are not valid."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))[:200]
    refusal = Refusal(
        400, "bad-values", f"{place}: {first['msg'][:500]}", "/openapi.json describes the request"
    )
    request.app.state.service.metrics.refused(refusal.code)
    return problem_response(refusal, identity(request))


def _described(app: FastAPI) -> dict[str, Any]:
    """The OpenAPI description, with the bodies that routes read themselves."""
    if app.openapi_schema is None:
        from fastapi.openapi.utils import get_openapi

        described = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        bodies: list[type[BaseModel]] = [ConfigurationBody, EncodedImages, InferBody, RollbackBody, Problem]
        own = models_json_schema(
            [(body, "validation") for body in bodies], ref_template="#/components/schemas/{model}"
        )[1]
        schemas = described.setdefault("components", {}).setdefault("schemas", {})
        schemas |= own["$defs"]
        for path in described["paths"].values():
            for route in path.values():
                if "HTTPValidationError" in str(
                    route["responses"].get("422")
                ):  # these errors are problems, with 400
                    del route["responses"]["422"]
        for name in ("HTTPValidationError", "ValidationError"):
            schemas.pop(name, None)
        app.openapi_schema = described
    return app.openapi_schema
