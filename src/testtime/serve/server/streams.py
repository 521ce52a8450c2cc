"""Routes of streams: images, status, snapshots, rollback, pause and resume."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from fastapi.responses import Response
from pydantic_core import to_json
from torch import Tensor

from testtime.serve.server import schemas
from testtime.serve.server.access import client, manager
from testtime.serve.server.bodies import content_type, received, validated
from testtime.serve.server.images import KINDS, decode_images, from_base64
from testtime.serve.server.problems import Refusal, responses
from testtime.serve.server.protocol import answer_facts
from testtime.serve.server.schemas import STREAM, EncodedImages, RollbackBody
from testtime.serve.server.service import Service

if TYPE_CHECKING:
    from testtime.serve import Answer, Session, SnapshotInfo

__all__ = ["IMAGES", "ROUTER"]

ROUTER, IMAGES = APIRouter(tags=["streams"]), APIRouter(tags=["streams"])
JSON = "application/json"
Stream = Annotated[str, Path(description="identity of the stream", pattern=STREAM)]
Client = Annotated[Service, Depends(client)]
Manager = Annotated[Service, Depends(manager)]
FILE = {"schema": {"type": "string", "format": "binary"}}


def _body(model: str, kinds: Sequence[str] = ()) -> dict[str, Any]:
    content = {JSON: {"schema": {"$ref": f"#/components/schemas/{model}"}}, **dict.fromkeys(kinds, FILE)}
    return {"requestBody": {"required": True, "content": content}}


@IMAGES.post(
    "/streams/{stream}/images",
    response_model=schemas.ImageAnswer,
    responses=responses(409, 415, 507),
    summary="Predict images and adapt to them",
    openapi_extra=_body("EncodedImages", tuple(KINDS)),
)
async def images(
    stream: Stream,
    request: Request,
    service: Client,
    deadline: Annotated[float | None, Query(gt=0, le=3600, description="seconds")] = None,
    learn: Annotated[bool, Query(description="whether the stream adapts to them")] = True,
) -> Response:
    """Predict images of a stream: one PNG or JPEG file as the body, or several in base64 as JSON.

    They are brought to the size of the model as its preprocessing says: a centre crop for models of 224 pixels and more,
    otherwise scaled.
    """
    body = await received(request, JSON, *KINDS)
    since = time.monotonic()
    model, limits = service.options.model, service.options.limits
    several = (content_type(request) or JSON) == JSON
    encoded = (await service.parse(body, EncodedImages)).images if several else None
    if encoded is not None and len(encoded) > limits.batch:
        raise Refusal(
            413,
            "batch-too-large",
            f"there are {len(encoded)} images, expected at most {limits.batch}",
            "send fewer",
        )

    def read() -> Tensor:
        files = [body] if encoded is None else from_base64(encoded)
        return decode_images(files, model.channels, model.size, limits.pixels, limits.batch_pixels)

    def pack(answer: Answer) -> Response:
        content = {
            "model": model.name,
            "stream": stream,
            "predictions": _predictions(answer),
            **answer_facts(answer),
        }
        return Response(to_json(content, inf_nan_mode="null"), media_type=JSON)

    return await service.submit(stream, read, pack, deadline, learn, since)


@ROUTER.get("/streams", response_model=schemas.StreamList, responses=responses(), summary="List the streams")
async def stream_list(
    service: Client,
    contains: Annotated[str, Query(max_length=64, description="text in their identities")] = "",
    after: Annotated[str, Query(max_length=64, description="identity after which the list begins")] = "",
    limit: Annotated[int | None, Query(ge=1, le=100_000, description="longest list; all by default")] = None,
) -> dict[str, Any]:
    """Identities of the streams that have a state, in their order."""

    def job(session: Session) -> dict[str, Any]:
        names = session.streams()
        found = [name for name in names if contains in name]
        rest = [name for name in found if name > after][:limit]
        return {"streams": rest, "found": len(found), "total": len(names)}

    return await service.ask(job)


@ROUTER.get(
    "/streams/{stream}",
    response_model=schemas.StreamView,
    responses=responses(404),
    summary="Status of a stream",
)
async def stream_status(stream: Stream, service: Client) -> dict[str, Any]:
    """Offset, state, counts and estimates of a stream."""

    def job(session: Session) -> dict[str, Any]:
        service.need(stream)
        return _status(session, stream, service)

    return await service.ask(job)


@ROUTER.get(
    "/streams/{stream}/snapshots",
    response_model=schemas.SnapshotList,
    responses=responses(404),
    summary="List the snapshots of a stream",
)
async def snapshot_list(stream: Stream, service: Client) -> dict[str, Any]:
    """Snapshots that a rollback can return to, the oldest first."""

    def job(session: Session) -> dict[str, Any]:
        service.need(stream)
        return {"stream": stream, "snapshots": [_snapshot(one) for one in session.snapshots(stream)]}

    return await service.ask(job)


@ROUTER.post(
    "/streams/{stream}/snapshots",
    status_code=201,
    response_model=schemas.SnapshotView,
    responses=responses(404, 507),
    summary="Take a snapshot",
)
async def take_snapshot(stream: Stream, service: Manager) -> dict[str, Any]:
    """Write the state of a stream to the disk; the answer acknowledges it."""
    return await service.act("snapshot", stream, lambda session: _snapshot(session.snapshot(stream)))


@ROUTER.post(
    "/streams/{stream}/rollback",
    response_model=schemas.RollbackAnswer,
    responses=responses(404, 409, 415, 507),
    summary="Return to a snapshot, or to the shipped model",
    openapi_extra=_body("RollbackBody"),
)
async def rollback(stream: Stream, request: Request, service: Manager) -> dict[str, Any]:
    """Replace the state of a stream by an earlier one."""
    to = validated(await received(request, JSON), RollbackBody).to

    def job(session: Session) -> dict[str, Any]:
        numbers = [one.number for one in session.snapshots(stream)]
        if to is not None and to not in numbers:
            known = ", ".join(map(str, numbers[-20:])) or "none"
            raise Refusal(
                404,
                "no-snapshot",
                f"there is no snapshot {to} of {stream!r}",
                f"choose among {known}, or null",
            )
        info = session.rollback(stream, to)
        return {"stream": stream, "snapshot": None if info is None else _snapshot(info)}

    return await service.act("rollback", stream, job)


@ROUTER.post(
    "/streams/{stream}/pause",
    response_model=schemas.StreamView,
    responses=responses(404),
    summary="Pause learning",
)
async def pause(stream: Stream, service: Manager) -> dict[str, Any]:
    """Answer from the present state from now on."""
    return await _switch(stream, service, "pause")


@ROUTER.post(
    "/streams/{stream}/resume",
    response_model=schemas.StreamView,
    responses=responses(404),
    summary="Resume learning",
)
async def resume(stream: Stream, service: Manager) -> dict[str, Any]:
    """Adapt again from the present state."""
    return await _switch(stream, service, "resume")


@ROUTER.delete(
    "/streams/{stream}",
    status_code=204,
    responses=responses(404, 507),
    summary="Delete a stream",
)
async def delete(stream: Stream, service: Manager) -> Response:
    """Forget the state of a stream and its snapshots."""
    await service.act("delete", stream, lambda session: session.forget(stream))
    return Response(status_code=204)


async def _switch(stream: str, service: Service, action: str) -> dict[str, Any]:
    def job(session: Session) -> dict[str, Any]:
        (session.pause if action == "pause" else session.unpause)(stream)
        return _status(session, stream, service)

    return await service.act(action, stream, job)


def _predictions(answer: Answer) -> list[dict[str, Any]]:
    columns = (answer.logits, answer.predicted, answer.confidence, answer.score)
    rows = zip(*(column.tolist() for column in columns), answer.refused, answer.quarantined, strict=True)
    return [
        {
            "predicted": predicted if refused is None else None,
            "confidence": confidence,
            "score": score,
            "refused": refused,
            "quarantined": quarantined,
            "logits": logits,
        }
        for logits, predicted, confidence, score, refused, quarantined in rows
    ]


def _snapshot(info: SnapshotInfo) -> dict[str, Any]:
    return {name: getattr(info, name) for name in schemas.SnapshotView.model_fields}


def _status(session: Session, stream: str, service: Service) -> dict[str, Any]:
    found, last = asdict(session.status(stream)), session.history(stream)[-1:]
    alarms = service.options.alarms
    found["alarm"] = None
    if alarms is not None:
        chosen = {name: getattr(alarms.options, name) for name in ("probability", "tolerance", "share")}
        found["alarm"] = asdict(alarms.state(stream)) | chosen
    found["diagnostics"] = {}
    for record in last:
        values = {name: float(value) for name, value in record["diagnostics"].items()}
        found["diagnostics"] = {
            name: value if math.isfinite(value) else None for name, value in values.items()
        }
    return found
