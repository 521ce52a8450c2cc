"""Download of files over HTTP with resumption and a check of their SHA-256."""

import hashlib
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from testtime.errors import DataError

CHUNK = 1 << 20
Progress = Callable[[int, int | None], None]


def sha256_of(path: str | Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal.

    Args:
        path: path of the file.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(
    url: str,
    path: str | Path,
    sha256: str,
    progress: Progress | None = None,
    timeout: float = 30.0,
    attempts: int = 3,
) -> Path:
    """Download a file and return its path; a file that exists and has the checksum is not downloaded again.

    The data are written to ``<path>.part``; an interrupted download is resumed (HTTP Range), and the file gets its name after
    its checksum was verified.

    Args:
        url: http or https address of the file.
        path: path of the downloaded file.
        sha256: expected checksum, in hexadecimal.
        progress: function that is called with the bytes so far and in total (None if the server does not send the length).
        timeout: timeout of the connection, in seconds.
        attempts: number of attempts.

    Raises:
        DataError: the server cannot be reached or fails, or the checksum differs.
        ValueError: the address is not http or https.
    """
    path = Path(path)
    if not url.startswith(("http://", "https://")):
        raise ValueError(f"url must start with http:// or https://, got {url!r}")
    if path.is_file():
        return _verified(path, path, url, sha256)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    problem: Exception | None = None
    for _ in range(max(1, attempts)):
        try:
            _continue(url, part, progress, timeout)
            return _verified(part, path, url, sha256)
        except (OSError, http.client.HTTPException) as error:
            problem = error
    raise DataError(
        f"{url}: not fetched ({problem}); {_size(part)} bytes are kept in {part}; call again to continue"
    ) from problem


def _size(part: Path) -> int:
    return part.stat().st_size if part.is_file() else 0


def _continue(url: str, part: Path, progress: Progress | None, timeout: float) -> None:
    """Append the missing data to the part, or start again if the server does not support resumption."""
    have = _size(part)
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        with error:
            if error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                return  # the part is complete; the checksum is verified next
            raise
    with response:
        resumed = response.status == http.HTTPStatus.PARTIAL_CONTENT
        have = have if resumed else 0
        length = response.headers.get("Content-Length")
        total = have + int(length) if length else None
        with open(part, "ab" if resumed else "wb") as file:
            while chunk := response.read(CHUNK):
                file.write(chunk)
                have += len(chunk)
                if progress:
                    progress(have, total)
    if total is not None and have < total:
        raise ConnectionError(f"the connection ended after {have} of {total} bytes")


def _verified(found: Path, path: Path, url: str, sha256: str) -> Path:
    """Rename the file to its final path if its checksum is right; remove a part whose checksum is wrong."""
    actual = sha256_of(found)
    if actual == sha256.lower():
        os.replace(found, path)
        return path
    if found != path:
        found.unlink()
    remedy = "remove the file and call again" if found == path else "it was removed; call again"
    raise DataError(f"{found}: expected SHA-256 {sha256} from {url}, found {actual}; {remedy}")
