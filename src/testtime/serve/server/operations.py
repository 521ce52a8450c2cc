"""Routes of the server as a whole: configuration and metrics."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response

from testtime.serve.server import schemas
from testtime.serve.server.access import client, manager
from testtime.serve.server.bodies import received, validated
from testtime.serve.server.metrics import CONTENT_TYPE
from testtime.serve.server.problems import responses
from testtime.serve.server.schemas import ConfigurationBody
from testtime.serve.server.served import Configuration
from testtime.serve.server.service import Service

if TYPE_CHECKING:
    from testtime.serve import Session

__all__ = ["ROUTER"]

ROUTER = APIRouter(tags=["operations"])
JSON = "application/json"


@ROUTER.get(
    "/configuration",
    response_model=schemas.ConfigurationView,
    responses=responses(),
    summary="The configuration",
)
async def configuration(service: Annotated[Service, Depends(client)]) -> dict[str, Any]:
    """Method, options and guards in use."""
    return _view(service)


@ROUTER.put(
    "/configuration",
    response_model=schemas.ConfigurationView,
    responses=responses(415, 422, 507),
    summary="Change method and options while requests are served",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/ConfigurationBody"}}},
        }
    },
)
async def configure(request: Request, service: Annotated[Service, Depends(manager)]) -> dict[str, Any]:
    """Build the adapter of a configuration, try it, and serve it from the next request on.

    A configuration that is not valid is refused with 422, and the old one keeps serving.
    """
    asked = validated(await received(request, JSON), ConfigurationBody, 422)
    await service.configure(Configuration(asked.method, asked.options, asked.guarded))
    return _view(service)


@ROUTER.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {
            "content": {"text/plain": {"schema": {"type": "string"}}},
            "description": "text format of Prometheus",
        },
        **responses(),
    },
    summary="Metrics for Prometheus",
)
async def metrics(service: Annotated[Service, Depends(client)]) -> Response:
    """Requests, times, refusals, samples, events of guards and estimates."""

    def job(session: Session) -> bytes:
        streams = session.streams()
        names, watch = service.metrics.labelled(streams), service.options.alarms
        estimates = {name: _estimates(session, name) for name in names}
        alarms = None if watch is None else {name: watch.state(name).raised for name in names}
        return service.metrics.text(len(streams), service.model.waiting, estimates, alarms, session.mirror)

    return Response(await service.ask(job), media_type=CONTENT_TYPE)


def _estimates(session: Session, stream: str) -> dict[str, float]:
    last = session.history(stream)[-1:]
    return {name: float(value) for record in last for name, value in record["diagnostics"].items()}


def _view(service: Service) -> dict[str, Any]:
    used = service.configuration
    return {
        "method": used.method,
        "options": dict(used.options),
        "guarded": used.guarded,
        "changes": service.changes,
    }
