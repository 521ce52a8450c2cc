"""Routes of the Open Inference Protocol (KServe V2): health, metadata and inference."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import APIRouter, Depends, Header, Path, Request
from fastapi.responses import JSONResponse, Response
from pydantic_core import to_json
from torch import Tensor

from testtime import __version__
from testtime.serve.server import schemas
from testtime.serve.server.access import client, service_of
from testtime.serve.server.bodies import received
from testtime.serve.server.problems import Refusal, responses
from testtime.serve.server.schemas import STREAM, InferBody
from testtime.serve.server.served import ServedModel
from testtime.serve.server.service import Service
from testtime.serve.server.tensors import BYTES_HEADER, Array, input_tensor, packed, split

if TYPE_CHECKING:
    from testtime.serve import Answer

__all__ = ["ROUTER"]

ROUTER = APIRouter(tags=["Open Inference Protocol"])
JSON, BYTES = "application/json", "application/octet-stream"
OUTPUTS = ("logits", "predicted", "confidence", "score", "refused", "quarantined")
Name = Annotated[str, Path(description="name of the model", max_length=256)]
EXAMPLE = {
    "parameters": {"stream": "door-3", "deadline": 0.2},
    "inputs": [{"name": "input", "shape": [1, 1, 2, 2], "datatype": "FP32", "data": [0.1, 0.2, 0.3, 0.4]}],
}


@ROUTER.get(
    "/v2/health/live", response_model=schemas.Health, response_model_exclude_none=True, summary="Is it alive"
)
async def live() -> dict[str, bool]:
    """Whether the process answers; no token is needed."""
    return {"live": True}


@ROUTER.get(
    "/v2/health/ready",
    response_model=schemas.Health,
    response_model_exclude_none=True,
    responses={503: {"model": schemas.Health, "description": "it is shutting down"}},
    summary="Is it ready",
)
async def ready(request: Request) -> Response:
    """Whether requests are accepted; no token is needed."""
    state = service_of(request).ready
    return JSONResponse({"ready": state}, 200 if state else 503)


@ROUTER.get(
    "/v2", response_model=schemas.ServerMetadata, responses=responses(), summary="Metadata of the server"
)
async def server_metadata(service: Annotated[Service, Depends(client)]) -> dict[str, Any]:
    """Name, version and extensions of the protocol."""
    return {"name": "testtime", "version": __version__, "extensions": ["binary_tensor_data"]}


@ROUTER.get(
    "/v2/models/{name}",
    response_model=schemas.ModelMetadata,
    responses=responses(404),
    summary="Metadata of the model",
)
async def model_metadata(name: Name, service: Annotated[Service, Depends(client)]) -> dict[str, Any]:
    """Inputs and outputs of the model."""
    model = _named(name, service)
    floats, n = "FP32", [-1]
    return {
        "name": model.name,
        "versions": [],
        "platform": "testtime",
        "inputs": [{"name": "input", "datatype": floats, "shape": _shape(model)}],
        "outputs": [
            {"name": "logits", "datatype": floats, "shape": [-1, model.classes]},
            {"name": "predicted", "datatype": "INT64", "shape": n},
            {"name": "confidence", "datatype": floats, "shape": n},
            {"name": "score", "datatype": floats, "shape": n},
            {"name": "refused", "datatype": "BYTES", "shape": n},
            {"name": "quarantined", "datatype": "BYTES", "shape": n},
        ],
        "parameters": {"method": service.configuration.method, "range": "images in [0, 1]"},
    }


@ROUTER.get(
    "/v2/models/{name}/ready",
    response_model=schemas.Health,
    response_model_exclude_none=True,
    responses=responses(404) | {503: {"model": schemas.Health, "description": "it is shutting down"}},
    summary="Is the model ready",
)
async def model_ready(name: Name, service: Annotated[Service, Depends(client)]) -> Response:
    """Whether the model accepts requests."""
    _named(name, service)
    return JSONResponse({"ready": service.ready}, 200 if service.ready else 503)


@ROUTER.post(
    "/v2/models/{name}/infer",
    response_model=schemas.InferResponse,
    responses=responses(404, 409, 415, 507),
    summary="Predict a batch and adapt to it",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {JSON: {"schema": {"$ref": "#/components/schemas/InferBody"}, "example": EXAMPLE}},
        },
    },
)
async def infer(
    name: Name,
    request: Request,
    service: Annotated[Service, Depends(client)],
    x_stream: Annotated[str | None, Header(description="identity of the stream")] = None,
) -> Response:
    """Predict the batch of the input and adapt the stream to it.

    The stream is the parameter ``stream`` or, without it, the header ``X-Stream``. Of a sample that the gate refuses,
    ``predicted`` is -1, ``refused`` says why, and the other outputs are null. With the header
    ``Inference-Header-Content-Length`` the data follow the JSON as bytes (binary tensor extension).
    """
    model = _named(name, service)
    body = await received(request, JSON, BYTES)
    since = time.monotonic()
    header, tail = split(body, request.headers.get(BYTES_HEADER))
    asked = await service.parse(header, InferBody)
    settings = _settings(asked.parameters, x_stream)
    binary = _outputs(asked)

    def read() -> Tensor:
        return input_tensor(asked.inputs, tail, _shape(model), service.options.limits.batch)

    def pack(answer: Answer) -> Response:
        return _response(answer, asked.id, model.name, settings["stream"], binary)

    return await service.submit(
        settings["stream"], read, pack, settings["deadline"], settings["learn"], since
    )


def _named(name: str, service: Service) -> ServedModel:
    model = service.options.model
    if name != model.name:
        raise Refusal(
            404,
            "no-model",
            f"there is no model {name!r}, expected {model.name!r}",
            "use its name in the address",
        )
    return model


def _shape(model: ServedModel) -> list[int]:
    return [-1, model.channels, model.side or -1, model.side or -1]


def _settings(parameters: Mapping[str, Any], header: str | None) -> dict[str, Any]:
    """Stream, deadline and whether to learn."""
    stream, deadline = parameters.get("stream", header or "default"), parameters.get("deadline")
    learn = parameters.get("learn", True)
    if type(learn) is not bool:
        raise Refusal(
            400, "bad-parameters", f"learn is {str(learn)[:40]!r}, expected true or false", "correct it"
        )
    return {"stream": stream_name(stream), "deadline": deadline_of(deadline), "learn": learn}


def stream_name(value: Any) -> str:
    """Check the name of a stream."""
    if not isinstance(value, str) or not re.fullmatch(STREAM, value):
        raise Refusal(
            400,
            "bad-stream",
            f"the name of the stream is {str(value)[:80]!r}, expected 1 to 64 letters, digits or '._-', not "
            "beginning with '.' or '-'",
            "choose another name",
        )
    return value


def deadline_of(value: Any) -> float | None:
    """Check a deadline in seconds."""
    if value is None:
        return None
    if type(value) not in (int, float) or not 0 < value <= 3600:
        raise Refusal(
            400, "bad-parameters", f"deadline is {str(value)[:40]!r}, expected seconds above 0", "correct it"
        )
    return float(value)


def _outputs(asked: InferBody) -> dict[str, bool]:
    """The outputs that are asked for, and whether they are sent as bytes."""
    bytes_all = asked.parameters.get("binary_data_output", False) is True
    if not asked.outputs:
        return dict.fromkeys(OUTPUTS, bytes_all)
    unknown = next((one.name for one in asked.outputs if one.name not in OUTPUTS), None)
    if unknown is not None:
        raise Refusal(
            400, "bad-outputs", f"there is no output {unknown[:40]!r}", f"choose among {', '.join(OUTPUTS)}"
        )
    return {one.name: one.parameters.get("binary_data", bytes_all) is True for one in asked.outputs}


def _response(
    answer: Answer, identity: str | None, model: str, stream: str, binary: Mapping[str, bool]
) -> Response:
    arrays: dict[str, Array] = {
        "logits": answer.logits.float().numpy(),
        "predicted": answer.predicted.numpy().astype(np.int64, copy=False),
        "confidence": answer.confidence.float().numpy(),
        "score": answer.score.float().numpy(),
        "refused": [reason or "" for reason in answer.refused],
        "quarantined": [reason or "" for reason in answer.quarantined],
    }
    outputs, tail = packed({name: arrays[name] for name in binary}, binary)
    content = {
        "model_name": model,
        "id": identity,
        "parameters": {"stream": stream, **answer_facts(answer)},
        "outputs": outputs,
    }
    if identity is None:
        del content["id"]
    described = to_json(content, inf_nan_mode="null")
    if not any(binary.values()):
        return Response(described, media_type=JSON)
    return Response(described + tail, media_type=BYTES, headers={BYTES_HEADER: str(len(described))})


def answer_facts(answer: Answer) -> dict[str, Any]:
    """What an answer says of the state of its stream."""
    return {
        key: getattr(answer, key) for key in ("learned", "adapted", "skipped", "serving", "offset", "state")
    }
