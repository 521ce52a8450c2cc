import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from testtime.data import download, sha256_of
from testtime.errors import DataError

CONTENT = bytes(range(256)) * 40
SHA = hashlib.sha256(CONTENT).hexdigest()


class Server(ThreadingHTTPServer):
    ranges = True
    break_after: int | None = None
    status: int | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/file.bin"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.asked.append(wanted)
        if self.server.status:
            self.send_error(self.server.status)
            return
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and self.server.ranges else 0
        if start >= len(CONTENT):
            self.send_error(416)
            return
        body = CONTENT[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body if self.server.break_after is None else body[: self.server.break_after])

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def test_a_file_is_fetched_checked_and_not_fetched_twice(server: Server, tmp_path: Path) -> None:
    seen: list[tuple[int, int | None]] = []
    path = download(server.url, tmp_path / "deep" / "file.bin", SHA.upper(), lambda *at: seen.append(at))
    assert path.read_bytes() == CONTENT
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert list(path.parent.iterdir()) == [path]
    assert download(server.url, path, SHA) == path
    assert server.asked == [None]


def test_a_broken_download_continues_where_it_stopped(server: Server, tmp_path: Path) -> None:
    server.break_after = 4000
    path = download(server.url, tmp_path / "file.bin", SHA)
    assert path.read_bytes() == CONTENT
    assert server.asked == [None, "bytes=4000-", "bytes=8000-"]


def test_what_was_fetched_is_kept_for_the_next_call(server: Server, tmp_path: Path) -> None:
    server.break_after = 4000
    with pytest.raises(DataError, match=r"4000 bytes are kept in .*file\.bin\.part; call again to continue"):
        download(server.url, tmp_path / "file.bin", SHA, attempts=1)
    assert not (tmp_path / "file.bin").exists()
    server.break_after = None
    assert sha256_of(download(server.url, tmp_path / "file.bin", SHA)) == SHA
    assert server.asked == [None, "bytes=4000-"]


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.ranges = False
    (tmp_path / "file.bin.part").write_bytes(CONTENT[:100])
    assert download(server.url, tmp_path / "file.bin", SHA).read_bytes() == CONTENT


def test_a_part_that_is_whole_is_only_checked(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(CONTENT)
    assert download(server.url, tmp_path / "file.bin", SHA).read_bytes() == CONTENT


def test_a_file_with_a_wrong_checksum_is_removed(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin.part").write_bytes(b"x" * 100)
    with pytest.raises(DataError, match="it was removed; call again") as caught:
        download(server.url, tmp_path / "file.bin", SHA)
    assert f"expected SHA-256 {SHA} from {server.url}, found" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    assert download(server.url, tmp_path / "file.bin", SHA).is_file()


def test_another_file_of_that_name_is_left_alone(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file.bin").write_bytes(b"mine")
    with pytest.raises(DataError, match="remove the file and call again"):
        download(server.url, tmp_path / "file.bin", SHA)
    assert (tmp_path / "file.bin").read_bytes() == b"mine"


def test_failures_of_the_server_are_reported(server: Server, tmp_path: Path) -> None:
    server.status = 404
    with pytest.raises(DataError, match=r"not fetched .*404"):
        download(server.url, tmp_path / "file.bin", SHA)
    with pytest.raises(ValueError, match="must start with http"):
        download("file:///etc/hosts", tmp_path / "file.bin", SHA)
