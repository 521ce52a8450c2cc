"""Requests that must be refused: by name, the call and the status."""

from __future__ import annotations

import base64
import json
import struct
import zlib
from typing import Any

from server_world import INFER, binary, images, png, request, tensor

X = images(0)
PNG = {"Content-Type": "image/png"}
JSON = {"Content-Type": "application/json"}
Bad = tuple[str, str, dict[str, Any], int]


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bomb(width: int, height: int, bits: int = 8) -> bytes:
    """A PNG file whose header declares so many pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 1000)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def changed(**changes: Any) -> Bad:
    return "POST", INFER, {"json": {"inputs": [tensor(X, **changes)]}}, 400


def sent(content: bytes, status: int = 400, path: str = INFER, **headers: str) -> Bad:
    return "POST", path, {"content": content, "headers": {**JSON, **headers}}, status


def image(
    content: bytes, status: int = 400, kind: str = "image/png", path: str = "/streams/default/images"
) -> Bad:
    return "POST", path, {"content": content, "headers": {"Content-Type": kind}}, status


def parameters(**given: Any) -> Bad:
    return "POST", INFER, {"json": request(X, **given)}, 400


def as_bytes(header: str | None = None, extra: bytes = b"", **changes: Any) -> Bad:
    body, headers = binary(X, **changes)
    headers = headers if header is None else {**headers, "Inference-Header-Content-Length": header}
    return "POST", INFER, {"content": body + extra, "headers": headers}, 400


def configuration(body: Any, status: int = 422) -> Bad:
    return "PUT", "/configuration", {"content": json.dumps(body), "headers": JSON}, status


FILE = png()
ROLLBACK = "/streams/default/rollback"
BAD: dict[str, Bad] = {
    "empty body": sent(b""),
    "no json": sent(b"\xff\xfe{"),
    "truncated json": sent(json.dumps(request(X)).encode()[:-7]),
    "a list": sent(b"[]"),
    "a number": sent(b"7"),
    "NaN in json": sent(json.dumps({"inputs": [tensor(X[:1] * float("nan"))]}).encode()),
    "Infinity in json": sent(
        b'{"inputs": [{"name": "input", "shape": [1], "datatype": "FP32", "data": [Infinity]}]}'
    ),
    "deep json": sent(b"[" * 100_000),
    "deep data": changed(data=[[[[[[1.0]]]]]]),
    "no inputs": sent(b'{"inputs": []}'),
    "two inputs": ("POST", INFER, {"json": {"inputs": [tensor(X), tensor(X)]}}, 400),
    "another input": changed(name="image"),
    "rank": changed(shape=[3, 6, 6], data=[0.0] * 108),
    "channels": changed(shape=[4, 1, 6, 6], data=[0.0] * 144),
    "height": changed(shape=[4, 3, 7, 6], data=[0.0] * 504),
    "no samples": changed(shape=[0, 3, 6, 6], data=[]),
    "negative shape": changed(shape=[-4, 3, 6, 6]),
    "huge shape": (*changed(shape=[2**40, 3, 6, 6])[:3], 413),
    "shape of floats": changed(shape=[4.5, 3, 6, 6]),
    "shape of texts": changed(shape=["4", 3, 6, 6]),
    "too few data": changed(data=[0.5] * 431),
    "too many data": changed(data=[0.5] * 433),
    "ragged data": changed(data=[[0.5] * 108, [0.5] * 107, [0.5] * 108, [0.5] * 109]),
    "texts as data": changed(data=["0.5"] * 432),
    "truth values as data": changed(data=[True] * 432),
    "null in data": changed(data=[None] * 432),
    "a number beyond all types": sent(
        json.dumps({"inputs": [tensor(X, data=[0.5] * 431)]})
        .encode()
        .replace(b"]}]", b", 1" + b"0" * 400 + b"]}]")
    ),
    "data and bytes": changed(parameters={"binary_data_size": 1728}),
    "neither": changed(data=None),
    "uint8": changed(datatype="UINT8"),
    "int64": changed(datatype="INT64"),
    "unknown type": changed(datatype="FLOAT"),
    "half in json": changed(datatype="FP16"),
    "header beyond the body": as_bytes("99999999"),
    "negative header": as_bytes("-1"),
    "header of letters": as_bytes("abc"),
    "header inside the json": as_bytes("17"),
    "bytes behind": as_bytes(None, b"123"),
    "size of bytes": as_bytes(None, b"", shape=[3, 3, 6, 6]),
    "unknown output": ("POST", INFER, {"json": {**request(X), "outputs": [{"name": "labels"}]}}, 400),
    "stream with a slash": parameters(stream="../../etc"),
    "stream that begins with a dot": parameters(stream=".hidden"),
    "long stream": parameters(stream="a" * 65),
    "stream of a number": parameters(stream=3),
    "negative deadline": parameters(deadline=-1),
    "deadline as text": parameters(deadline="soon"),
    "learn as text": parameters(learn="no"),
    "unknown model": ("POST", "/v2/models/other/infer", {"json": request(X)}, 404),
    "unknown route": ("GET", "/v2/models", {}, 404),
    "wrong method": ("GET", INFER, {}, 405),
    "form": ("POST", INFER, {"data": {"a": "b"}}, 415),
    "compressed": sent(b"x", 415, **{"Content-Encoding": "gzip"}),
    "no image": image(b"hello"),
    "empty image": image(b""),
    "truncated png": image(FILE[:60]),
    "damaged png": image(FILE[:50] + b"\0\0\0\0" + FILE[54:]),
    "png that is a header": image(FILE[:8]),
    "truncated jpeg": image(png(0, 64, "JPEG")[:300], kind="image/jpeg"),
    "gif": image(png(0, 6, "GIF")),
    "gif as such": image(png(0, 6, "GIF"), 415, "image/gif"),
    "bomb": image(bomb(60_000, 60_000), 413),
    "bomb beyond all limits": image(bomb(2**31 - 1, 2**31 - 1), 413),
    "sixteen bits": image(bomb(6, 6, 16)),
    "no base64": ("POST", "/streams/default/images", {"json": {"images": ["not base64!"]}}, 400),
    "no images": ("POST", "/streams/default/images", {"json": {"images": []}}, 400),
    "one bad of two": (
        "POST",
        "/streams/default/images",
        {"json": {"images": [base64.b64encode(FILE).decode(), base64.b64encode(FILE[:40]).decode()]}},
        400,
    ),
    "image of a bad stream": image(FILE, 400, path="/streams/a%20b/images"),
    "image with a deadline of letters": image(FILE, 400, path="/streams/default/images?deadline=x"),
    "rollback to a text": ("POST", ROLLBACK, {"json": {"to": "1"}}, 400),
    "rollback to nothing": ("POST", ROLLBACK, {"json": {}}, 400),
    "rollback with more": ("POST", ROLLBACK, {"json": {"to": 1, "force": True}}, 400),
    "rollback to no snapshot": ("POST", ROLLBACK, {"json": {"to": 12345}}, 404),
    "rollback beyond integers": ("POST", ROLLBACK, {"json": {"to": 10**30}}, 404),
    "no method": configuration({}),
    "unknown method": configuration({"method": "tnet"}),
    "import path as method": configuration({"method": "os:system"}),
    "unknown option": configuration({"method": "tent", "options": {"speed": 3}, "guarded": False}),
    "option of another type": configuration(
        {"method": "eta", "options": {"margin": "wide"}, "guarded": False}
    ),
    "a function that is none": configuration(
        {"method": "tent", "options": {"optimizer": {"function": "os.system", "with": {}}}, "guarded": False}
    ),
    "a function with a wrong option": configuration(
        {
            "method": "tent",
            "options": {"optimizer": {"function": "adam", "with": {"speed": 1}}},
            "guarded": False,
        }
    ),
    "a method that the model does not fit": configuration(
        {"method": "memo", "options": {"views": 0}, "guarded": False}
    ),
    "more than a configuration": configuration({"method": "tent", "seed": 1}),
}
