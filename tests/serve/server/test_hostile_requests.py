"""Requests that mean harm: images that cost more than they show, sockets that do not end, streams beyond the limit."""

from __future__ import annotations

import base64
import socket
import struct
import zlib
from pathlib import Path

import httpx
import pytest

pytest.importorskip("uvicorn", reason="pip install -e '.[serve]'")
from bad_requests import chunk
from server_world import INFER, images, network, on_loopback, png, request, serving
from torch import nn

from testtime.serve import Client
from testtime.serve.server import Limits, listening
from testtime.serve.server.served import channels_of

PNG = {"Content-Type": "image/png"}


def blank(width: int, height: int) -> bytes:
    """A PNG file of black pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * ((3 * width + 1) * height))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1, 65_536), (65_536, 1)])
def test_an_image_of_one_line_is_refused_before_it_is_scaled(size: tuple[int, int], tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        refused = call.post("/streams/a/images", content=blank(*size), headers=PNG)
        assert (refused.status_code, refused.json()["code"]) == (413, "image-too-large")
        assert "65535 on a side" in refused.json()["detail"]


def test_the_pixels_of_all_images_of_a_request_are_bounded(tmp_path: Path) -> None:
    texts = [base64.b64encode(blank(10, 10)).decode()] * 4
    with serving(tmp_path, limits=Limits(batch_pixels=399)) as call:
        refused = call.post("/streams/a/images", json={"images": texts})
        assert (refused.status_code, refused.json()["code"]) == (413, "images-too-large")
        assert refused.json()["detail"].startswith("images.3: ")
        assert call.post("/streams/a/images", json={"images": texts[:3]}).status_code == 200


def test_a_file_that_only_begins_as_an_image_is_named_without_addresses(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        detail = call.post("/streams/a/images", content=png()[:8], headers=PNG).json()["detail"]
        assert detail == "expected a PNG image, found a file that only begins as one"


@pytest.mark.parametrize("host", ["[::1", "evil.example", "127.0.0.1@evil.example", ""])
def test_a_host_that_is_not_this_machine(host: str, tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        assert call.get("/streams", headers={"Host": host}).status_code == 403


def test_two_lengths_are_refused(tmp_path: Path) -> None:
    both = {"Content-Length": "2", "Transfer-Encoding": "chunked", "Content-Type": "application/json"}
    with serving(tmp_path) as call:
        refused = call.post(INFER, content=b"{}", headers=both)
        assert (refused.status_code, refused.json()["code"]) == (400, "two-lengths")
        assert refused.headers["connection"] == "close"


def test_an_empty_body_is_named(tmp_path: Path) -> None:
    with serving(tmp_path) as call:
        call.infer(images(0))
        refused = call.post("/streams/default/rollback", headers={"Content-Type": "application/json"})
        assert refused.json()["detail"] == "expected JSON, found an empty body"


def test_new_streams_at_once_stay_within_the_limit(tmp_path: Path) -> None:
    calls = [("POST", INFER, {"json": request(images(i), stream=f"s{i}")}) for i in range(6)]
    with serving(tmp_path, limits=Limits(streams=2)) as call:
        statuses = [response.status_code for response in call.gather(*calls)]
        assert sorted(statuses) == [200, 200, 429, 429, 429, 429]
        assert len(call.get("/streams").json()["streams"]) == 2
        refused = call.infer(images(9)[:, :2], stream="s9")  # not an image of the model
        assert refused.status_code == 429
        assert call("DELETE", f"/streams/{call.get('/streams').json()['streams'][0]}").status_code == 204
        assert call.infer(images(9), stream="s9").status_code == 200


def received(one: socket.socket) -> bytes:
    return b"".join(iter(lambda: one.recv(65_536), b""))


def test_head_and_half_closed_and_unread_connections(tmp_path: Path) -> None:
    def talk(client: Client, port: int) -> None:
        head = httpx.head(f"http://127.0.0.1:{port}/v2/health/ready", trust_env=False)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == str(len(b'{"ready":true}'))
        file = png()
        post = b"POST /streams/a/images HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: %d\r\n\r\n"
        for body, status in ((file, b"HTTP/1.1 200"), (file[:20], b"")):
            with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
                one.sendall(post % len(file) + body)
                one.shutdown(socket.SHUT_WR)
                assert received(one)[:12] == status
        with socket.create_connection(("127.0.0.1", port), timeout=20) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            asked = b"GET /openapi.json HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
            with pytest.raises(ConnectionError):  # the answers are not read, so the server gives up
                one.sendall(100_000 * asked)
        assert client.infer(images(0)).learned

    assert on_loopback(tmp_path, talk, limits=Limits(receive=0.5)) == 0


def test_no_such_port() -> None:
    with pytest.raises(ValueError, match="a port from 0 to 65535, got 80000"):
        listening("127.0.0.1", 80_000)


def test_the_client_names_a_stream_with_a_slash() -> None:
    with Client() as client, pytest.raises(ValueError, match="expected the name of a stream, .* got 'a/b'"):
        client.status("a/b")


def test_channels_are_those_of_the_first_convolution() -> None:
    assert channels_of(network()) == 3
    assert channels_of(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3))) == 1
    assert channels_of(nn.Linear(3, 2)) == 3
    with pytest.raises(ValueError, match="its first convolution has 4"):
        channels_of(nn.Conv2d(4, 2, 3))
