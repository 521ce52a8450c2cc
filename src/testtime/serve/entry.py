"""The HTTP entry of a Ray Serve deployment: the routes of the Open Inference Protocol, and images of streams.

It needs ``testtime[ray]`` and ``testtime[serve]``.

    from ray import serve
    from testtime.serve.entry import EntryOptions, http_application

    serve.run(http_application(build, "/shared/cameras", EntryOptions("digits-cnn", classes=10, side=32), replicas=4))

The stream of a request (the path, the parameter ``stream`` or the header ``X-Stream``) is Ray's ``multiplexed_model_id``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from fastapi import FastAPI
from pydantic import BaseModel
from torch import Tensor, nn

from testtime.adapter import Adapter
from testtime.errors import DataError
from testtime.serve.engine import Answer
from testtime.serve.leases import StreamBusy, StreamLost
from testtime.serve.ray import application, ray_serve
from testtime.serve.server import Configuration, Limits, ServedModel, ServerOptions, Tokens
from testtime.serve.server.app import assembled
from testtime.serve.server.bodies import validated
from testtime.serve.server.metrics import Metrics
from testtime.serve.server.problems import Refusal
from testtime.serve.server.protocol import ROUTER as PROTOCOL
from testtime.serve.server.streams import IMAGES

__all__ = ["EntryOptions", "RemoteService", "http_application"]

T = TypeVar("T")
M = TypeVar("M", bound=BaseModel)
AGAIN = 1.0  # seconds after which a request may be sent again
TENSORS = ("logits", "predicted", "confidence", "score")


@dataclass(frozen=True)
class EntryOptions:
    """What an entry knows of the model behind it, and to whom it answers.

    Args:
        model: name of the model in addresses.
        classes: number of classes.
        side: height and width of its images in pixels; None where it takes any.
        channels: number of channels of its images, 1 or 3.
        method: name of the method, for the metadata.
        tokens: tokens of clients; without any, only this machine is answered.
        limits: limits of requests; those of queues and streams are Ray's and the replicas'.
        replicas: number of entries.
    """

    model: str
    classes: int
    side: int | None
    channels: Literal[1, 3] = 3
    method: str = ""
    tokens: Tokens = field(default_factory=Tokens)
    limits: Limits = field(default_factory=Limits)
    replicas: int = 1

    def server(self) -> ServerOptions:
        """Return the options of the routes; the network is that of the replicas, and none is held here.

        Raises:
            ValueError: name, classes, side or channels is not valid.
        """
        model = ServedModel(nn.Identity(), self.model, self.classes, self.side, self.channels)
        return ServerOptions(model, Configuration(self.method), self.tokens, self.limits)


def http_application(
    build: Callable[[], Adapter], directory: str | Path, entry: EntryOptions, **settings: Any
) -> Any:
    """Return an application for ``ray.serve.run`` that answers HTTP.

    Its routes are ``/v2/...`` and ``POST /streams/{id}/images`` of :func:`testtime.serve.server.create_app`, with the same
    bodies, errors, tokens and limits; ``deadline`` is refused, and nothing is managed here.

    Args:
        build, directory, settings: those of :func:`testtime.serve.ray.application`.
        entry: the model as clients see it, tokens and limits.

    Returns:
        a ``ray.serve.Application``.

    Raises:
        ImportError: Ray Serve is not installed.
        ValueError: an option is not valid.
    """
    serve, name = ray_serve(), settings.get("name", "testtime")
    entry.server()

    def built() -> FastAPI:
        service = RemoteService(serve.get_deployment_handle(name), entry.server())
        return assembled(service, (PROTOCOL, IMAGES))

    streams = application(build, directory, **settings)
    front = serve.deployment(serve.ingress(built)(), name=f"{name}-entry", num_replicas=entry.replicas)
    return front.bind(streams)


class RemoteService:
    """What the routes ask of a :class:`testtime.serve.server.service.Service`, answered by the replicas of a deployment.

    Args:
        handle: handle of the deployment of :func:`testtime.serve.ray.application`.
        options: options of the routes.

    Attributes:
        configuration: the configuration, of which the metadata name the method.
        ready: True; Ray starts and ends entries.
    """

    def __init__(self, handle: Any, options: ServerOptions) -> None:
        self.options, self.configuration, self.ready = options, options.configuration, True
        self.metrics = Metrics(options.labelled_streams)
        self._handle = handle

    async def parse(self, body: bytes, model: type[M]) -> M:
        """Parse and validate a body in a thread.

        Raises:
            Refusal: it is no JSON or holds something else.
        """
        return await asyncio.to_thread(validated, body, model)

    async def submit(
        self,
        stream: str,
        read: Callable[[], Tensor],
        pack: Callable[[Answer], T],
        deadline: float | None = None,
        learn: bool = True,
        since: float | None = None,
    ) -> T:
        """Let a replica answer a batch of a stream.

        Args:
            stream: identity of the stream, by which Ray finds the replica.
            read: function that makes the batch.
            pack: function of the answer, for the response.
            deadline: refused: replicas keep none.
            learn: whether the stream adapts to it.
            since: not used.

        Raises:
            Refusal: the batch is not valid, the stream is on its way to another replica, or its replica died.
        """
        if deadline is not None:
            raise Refusal(
                400, "no-deadline", "replicas of Ray keep no deadline", "send the request without one"
            )
        x = await asyncio.to_thread(read)
        try:
            found = await self._handle.options(multiplexed_model_id=stream).remote(x.numpy(), learn)
        except Exception as error:
            raise refusal_of(error) from error
        return pack(answer_of(found))

    async def close(self) -> None:
        """End; the replicas write their own last snapshots."""
        self.ready = False


def answer_of(found: dict[str, Any]) -> Answer:
    """Return the answer that the fields of :func:`testtime.serve.ray.fields_of` describe."""
    fields = {k: v for k, v in found.items() if k in Answer.__dataclass_fields__}
    return Answer(**fields | {name: torch.from_numpy(fields[name].copy()) for name in TENSORS})


def refusal_of(error: Exception) -> Refusal:
    """Return the refusal for an error of a call of a replica: bad values 400, damaged files 409, otherwise 503."""
    cause = getattr(error, "cause", None) or error
    text = str(cause)[:2000]
    if isinstance(cause, StreamBusy | StreamLost):
        return Refusal(503, "moving", text, "send it again when Retry-After says so", retry_after=AGAIN)
    if isinstance(cause, DataError):
        return Refusal(409, "damaged", text, "delete the stream, or restore its folder")
    if isinstance(cause, ValueError | TypeError):
        return Refusal(400, "bad-values", text, "GET /v2/models/{name} describes the input")
    if isinstance(cause, OSError):
        return Refusal(507, "disk", text, "see to the folder of the states")
    return Refusal(
        503,
        "replica",
        f"the replica of the stream did not answer ({type(cause).__name__})",
        "compare the offset of the next answer, for the samples may have been learned from",
        retry_after=AGAIN,
    )
