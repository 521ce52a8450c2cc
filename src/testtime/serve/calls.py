"""The requests of the clients, their responses and their errors, without a connection."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import quote

import torch
from torch import Tensor

from testtime.errors import TesttimeError, need_packages
from testtime.gate import check_batch
from testtime.serve.engine import Answer
from testtime.serve.snapshots import SnapshotInfo
from testtime.serve.streams import Counts, StreamStatus, check_stream

need_packages(httpx="serve")

import httpx  # noqa: E402

__all__ = [
    "Call",
    "Calls",
    "ConfigurationInfo",
    "ForbiddenError",
    "Image",
    "InvalidRequestError",
    "NotFoundError",
    "ServerBusyError",
    "ServerError",
    "ServerFaultError",
    "ServerUnreachableError",
    "TooLargeError",
    "UnauthorisedError",
    "connection",
    "need_model",
    "unreachable",
]

T = TypeVar("T")
BYTES_HEADER = "Inference-Header-Content-Length"
DTYPES = {torch.float32: "FP32", torch.float64: "FP64", torch.float16: "FP16", torch.bfloat16: "BF16"}
KINDS = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg"}
LONGEST = 60.0  # seconds that a client waits before it tries again, whatever Retry-After says
Image = str | Path | bytes | Any
"""An image: path or content of a PNG or JPEG file, or an image of Pillow."""


class ServerError(TesttimeError):
    """The server did not do what was asked.

    Attributes:
        status: status of the response; 0 without one.
        code: kind of the error, such as "bad-shape"; empty without a problem object.
        advice: remedy, as a sentence.
        request: identity of the request in the logs of the server.
        retry_after: seconds after which the request may be sent again; None: it would not be accepted.
    """

    def __init__(
        self,
        message: str,
        status: int = 0,
        problem: Mapping[str, Any] | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        found = problem or {}
        self.status, self.retry_after = status, retry_after
        self.code, self.advice = str(found.get("code", "")), str(found.get("advice", ""))
        self.request = str(found.get("request", ""))


class InvalidRequestError(ServerError, ValueError):
    """The request is not valid: its shape, type, values, image or configuration (400, 408, 409, 411, 415, 422)."""


class UnauthorisedError(ServerError, PermissionError):
    """The token is missing or wrong (401)."""


class ForbiddenError(ServerError, PermissionError):
    """The token does not allow this (403): management needs the manager's."""


class NotFoundError(ServerError, LookupError):
    """There is no such model, stream or snapshot (404)."""


class TooLargeError(ServerError, ValueError):
    """The body, the batch or an image is too large (413)."""


class ServerBusyError(ServerError):
    """The server is busy, shutting down, or gets too many requests (429, 503); ``retry_after`` says when to come back."""


class ServerFaultError(ServerError):
    """An error of the server, or of its disk (500, 507)."""


class ServerUnreachableError(ServerError, ConnectionError):
    """There was no response. Whether the server learned from the request is not known, unless it was never connected."""


ERRORS: dict[int, type[ServerError]] = {
    401: UnauthorisedError,
    403: ForbiddenError,
    404: NotFoundError,
    413: TooLargeError,
    429: ServerBusyError,
    503: ServerBusyError,
}


@dataclass(frozen=True)
class ConfigurationInfo:
    """How the model of a server adapts.

    Attributes:
        method: name of the method.
        options: its options, in values of JSON.
        guarded: whether it is guarded.
        changes: number of changes since the server began.
    """

    method: str
    options: Mapping[str, Any]
    guarded: bool
    changes: int


@dataclass(frozen=True)
class Call(Generic[T]):
    """A request, and the function of its response.

    Args:
        safe: whether it may be sent twice.
    """

    method: str
    path: str
    read: Callable[[httpx.Response], T]
    content: bytes | None = None
    headers: Mapping[str, str] | None = None
    query: Mapping[str, Any] | None = None
    safe: bool = False

    def result(self, response: httpx.Response) -> T:
        if response.is_success:
            try:
                return self.read(response)
            except (ValueError, LookupError, TypeError) as error:
                raise ServerFaultError(
                    f"{self.method} {self.path}: the response is none of this version's server ({error})",
                    response.status_code,
                ) from error
        try:
            problem = response.json()
        except ValueError:
            problem = None
        problem = problem if isinstance(problem, dict) else {}
        fallback = f"status {response.status_code} {response.reason_phrase}"
        message = f"{self.method} {self.path}: {problem.get('error') or fallback}"
        kind = ERRORS.get(
            response.status_code, ServerFaultError if response.status_code >= 500 else InvalidRequestError
        )
        raise kind(message, response.status_code, problem, _seconds(response))


def _seconds(response: httpx.Response) -> float | None:
    text = response.headers.get("retry-after", "")
    return float(text) if text.isascii() and text.isdecimal() else None


class Calls:
    """The requests of both clients."""

    model: str | None

    def _infer(self, model: str, x: Tensor, settings: Mapping[str, Any]) -> Call[Answer]:
        if not isinstance(x, Tensor) or x.dtype not in DTYPES:
            found = x.dtype if isinstance(x, Tensor) else type(x).__name__
            raise TypeError(
                f"expected a floating-point tensor (N, ...), got {found}; images of 0 to 255: x / 255"
            )
        check_batch(x)
        raw = bytes(x.detach().cpu().contiguous().view(torch.uint8).numpy().data) if x.numel() else b""
        described = {
            "parameters": {
                **{k: v for k, v in settings.items() if v is not None},
                "binary_data_output": True,
            },
            "inputs": [
                {
                    "name": "input",
                    "shape": list(x.shape),
                    "datatype": DTYPES[x.dtype],
                    "parameters": {"binary_data_size": len(raw)},
                }
            ],
        }
        header = json.dumps(described).encode()
        headers = {"Content-Type": "application/octet-stream", BYTES_HEADER: str(len(header))}
        path = f"/v2/models/{quote(model, safe='')}/infer"
        return Call("POST", path, _answer_of_bytes, header + raw, headers)

    def _images(
        self, image: Image | list[Image], stream: str, deadline: float | None, learn: bool
    ) -> Call[Answer]:
        query: dict[str, Any] = {"learn": str(learn).lower()}
        if deadline is not None:
            query["deadline"] = deadline
        path = f"{_stream(stream)}/images"
        if isinstance(image, list):
            import base64

            texts = [base64.b64encode(_file(one)[0]).decode() for one in image]
            content, kind = json.dumps({"images": texts}).encode(), "application/json"
        else:
            content, kind = _file(image)
        return Call("POST", path, _answer_of_images, content, {"Content-Type": kind}, query)

    @staticmethod
    def _streams() -> Call[tuple[str, ...]]:
        return Call("GET", "/streams", lambda r: tuple(r.json()["streams"]), safe=True)

    @staticmethod
    def _status(stream: str) -> Call[StreamStatus]:
        return Call("GET", _stream(stream), _status_of, safe=True)

    @staticmethod
    def _snapshots(stream: str) -> Call[tuple[SnapshotInfo, ...]]:
        def read(response: httpx.Response) -> tuple[SnapshotInfo, ...]:
            return tuple(_info(stream, one) for one in response.json()["snapshots"])

        return Call("GET", f"{_stream(stream)}/snapshots", read, safe=True)

    @staticmethod
    def _snapshot(stream: str) -> Call[SnapshotInfo]:
        return Call("POST", f"{_stream(stream)}/snapshots", lambda r: _info(stream, r.json()))

    @staticmethod
    def _rollback(stream: str, to: int | None) -> Call[SnapshotInfo | None]:
        def read(response: httpx.Response) -> SnapshotInfo | None:
            found = response.json()["snapshot"]
            return None if found is None else _info(stream, found)

        return _json("POST", f"{_stream(stream)}/rollback", {"to": to}, read)

    @staticmethod
    def _switch(stream: str, action: str) -> Call[StreamStatus]:
        return Call("POST", f"{_stream(stream)}/{action}", _status_of, safe=True)

    @staticmethod
    def _forget(stream: str) -> Call[None]:
        return Call("DELETE", _stream(stream), lambda r: None)

    @staticmethod
    def _configuration() -> Call[ConfigurationInfo]:
        return Call("GET", "/configuration", lambda r: ConfigurationInfo(**r.json()), safe=True)

    @staticmethod
    def _configure(method: str, options: Mapping[str, Any] | None, guarded: bool) -> Call[ConfigurationInfo]:
        body = {"method": method, "options": dict(options or {}), "guarded": guarded}
        return _json("PUT", "/configuration", body, lambda r: ConfigurationInfo(**r.json()))

    @staticmethod
    def _metrics() -> Call[str]:
        return Call("GET", "/metrics", lambda r: r.text, safe=True)

    @staticmethod
    def _metadata(model: str) -> Call[dict[str, Any]]:
        return Call("GET", f"/v2/models/{quote(model, safe='')}", lambda r: dict(r.json()), safe=True)

    @staticmethod
    def _ready() -> Call[bool]:
        return Call("GET", "/v2/health/ready", lambda r: bool(r.json()["ready"]), safe=True)

    @staticmethod
    def _wait(error: ServerError, attempt: int, retries: int, safe: bool) -> float | None:
        """Seconds until the request is sent again; None: it is not.

        A refusal with 429 or 503 came before any work. A request without a response is sent again if it may be done twice, or
        if it was never connected.
        """
        if attempt >= retries:
            return None
        if isinstance(error, ServerBusyError):
            return min(LONGEST, error.retry_after if error.retry_after is not None else 2.0**attempt)
        connected = not isinstance(
            error.__cause__, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout
        )
        return (
            0.1 * 2**attempt
            if isinstance(error, ServerUnreachableError) and (safe or not connected)
            else None
        )


def unreachable(url: object, call: Call[Any], error: Exception) -> ServerUnreachableError:
    return ServerUnreachableError(
        f"{call.method} {call.path}: no response of {url} ({type(error).__name__}: {error}); is the server running there?"
    )


def connection(url: str, token: str | None, timeout: float, retries: int) -> dict[str, Any]:
    """Check the arguments of a client, and return those of httpx.

    Raises:
        ValueError: one is not valid; the message does not hold the token.
    """
    if type(timeout) not in (int, float) or not 0 < timeout < math.inf:
        raise ValueError(f"expected timeout as a number of seconds above 0, got {timeout!r}")
    if type(retries) is not int or retries < 0:
        raise ValueError(f"expected retries as a whole number of at least 0, got {retries!r}")
    headers = {} if token is None else {"Authorization": f"Bearer {_token(token)}"}
    return {"base_url": _address(url), "headers": headers, "timeout": timeout, "trust_env": False}


def _address(url: str) -> httpx.URL:
    expected = "expected the address of a server, such as http://127.0.0.1:8000"
    if not isinstance(url, str) or not url.startswith(("http://", "https://")):
        raise ValueError(f"{expected}, got {url!r}")
    try:
        found = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise ValueError(f"{expected}, got {url!r} ({error})") from None
    if not found.host or not 0 < (found.port or 80) < 2**16:
        raise ValueError(f"{expected}, got {url!r}")
    return found


def _token(token: str) -> str:
    found = token.strip() if isinstance(token, str) else ""
    if not found or not found.isascii() or not found.isprintable() or " " in found:
        raise ValueError(
            "expected token as a text of letters, digits and marks of ASCII, without spaces, or None"
        )
    return found


def need_model(model: str | None) -> str:
    if model is None:
        raise ValueError(
            "expected the name of the model: Client(url, model='digits-cnn'), or model= of this call"
        )
    if model in (".", ".."):  # in a path, these are not names
        raise ValueError(f"expected the name of a model, got {model!r}")
    return model


def _stream(name: str) -> str:
    return f"/streams/{check_stream(name)}"


def _json(method: str, path: str, body: Mapping[str, Any], read: Callable[[httpx.Response], T]) -> Call[T]:
    return Call(method, path, read, json.dumps(body).encode(), {"Content-Type": "application/json"})


def _file(image: Image) -> tuple[bytes, str]:
    """Content and type of the file of an image."""
    if isinstance(image, str | Path):
        data = Path(image).read_bytes()
    elif isinstance(image, bytes):
        data = image
    elif hasattr(image, "save"):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        data = buffer.getvalue()
    else:
        raise TypeError(
            f"expected a path, the content of a file or an image of Pillow, got {type(image).__name__}; tensors: infer(x)"
        )
    kind = next((kind for sign, kind in KINDS.items() if data.startswith(sign)), None)
    if kind is None:
        raise ValueError("expected a PNG or JPEG file, found other bytes; convert the image")
    return data, kind


# Responses --------------------------------------------------------------------------------------------------------------

TYPES = {"FP32": torch.float32, "INT64": torch.int64}


def _answer_of_bytes(response: httpx.Response) -> Answer:
    length = int(response.headers[BYTES_HEADER])
    described, tail = json.loads(response.content[:length]), response.content[length:]
    tensors: dict[str, Tensor] = {}
    reasons: dict[str, tuple[str | None, ...]] = {}
    at = 0
    for output in described["outputs"]:
        size = output["parameters"]["binary_data_size"]
        raw, at = tail[at : at + size], at + size
        if output["datatype"] == "BYTES":
            reasons[output["name"]] = tuple(_texts(raw))
        else:
            dtype = TYPES[output["datatype"]]
            tensors[output["name"]] = torch.frombuffer(bytearray(raw), dtype=dtype).reshape(output["shape"])
    found: dict[str, Any] = {**tensors, **reasons, **_facts(described["parameters"])}
    return Answer(**found)


def _texts(raw: bytes) -> Iterable[str | None]:
    at = 0
    while at < len(raw):
        size = int.from_bytes(raw[at : at + 4], "little")
        yield raw[at + 4 : at + 4 + size].decode() or None
        at += 4 + size


def _answer_of_images(response: httpx.Response) -> Answer:
    content = response.json()
    rows = content["predictions"]
    nan = float("nan")
    logits = torch.tensor([[nan if v is None else v for v in row["logits"]] for row in rows])
    numbers = {
        name: torch.tensor([nan if row[name] is None else row[name] for row in rows])
        for name in ("confidence", "score")
    }
    predicted = torch.tensor([-1 if row["predicted"] is None else row["predicted"] for row in rows])
    reasons = {name: tuple(row[name] for row in rows) for name in ("refused", "quarantined")}
    found: dict[str, Any] = {**numbers, **reasons, **_facts(content)}
    return Answer(logits=logits, predicted=predicted, **found)


def _facts(content: Mapping[str, Any]) -> dict[str, Any]:
    return {name: content[name] for name in ("learned", "adapted", "skipped", "serving", "offset", "state")}


def _status_of(response: httpx.Response) -> StreamStatus:
    content = response.json()
    found = {one.name: content[one.name] for one in fields(StreamStatus)}
    return StreamStatus(**{**found, "counts": Counts(**content["counts"])})


def _info(stream: str, content: Mapping[str, Any]) -> SnapshotInfo:
    return SnapshotInfo(stream=stream, **content)
