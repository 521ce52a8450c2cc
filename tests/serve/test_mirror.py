"""A mirror of the snapshots under a URL: what is lost with a disk continues from it, bit for bit."""

from __future__ import annotations

import json
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from small_session import images, network, tent

from testtime.serve import Retention, Session, SessionOptions, fetch_session
from testtime.serve.audit import records

fsspec = pytest.importorskip("fsspec", reason="pip install -e '.[fsspec]'")


@pytest.fixture(params=["file", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    yield f"file://{tmp_path}/mirror" if request.param == "file" else "memory://cameras/mirror"
    if request.param == "memory":
        fsspec.filesystem("memory").rm("/cameras", recursive=True)


def options(url: str, **more: object) -> SessionOptions:
    return SessionOptions(snapshot_every=1, mirror=url, **more)  # type: ignore[arg-type]


def test_a_lost_disk(tmp_path: Path, url: str) -> None:
    names = ("a", "Hall.2")
    with Session(tent(), tmp_path / "lost", options=options(url)) as session:
        last = {}
        for i in range(3):
            for name in names:
                last[name] = session.submit(images(10 * i + len(name)), name)
            session.settle(60)
        session.configure(tent(lr=0.5))
        want = session.predict(images(99), "a")
    shutil.rmtree(tmp_path / "lost")
    assert fetch_session(url, tmp_path / "new") == dict.fromkeys(names, 12)
    for path in (tmp_path / "new").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    with Session.resume(network(), tmp_path / "new") as session:
        assert {name: session.status(name).state for name in names} == {
            name: answer.state for name, answer in last.items()
        }
        assert session.status("a").step == 3
        assert torch.equal(session.predict(images(99), "a").logits, want.logits)
    with pytest.raises(FileExistsError, match="not empty"):
        fetch_session(url, tmp_path / "new")


def test_the_mirror_keeps_what_the_ring_keeps(tmp_path: Path, url: str) -> None:
    ring = Retention(last=2, healthy=0, powers=False)
    with Session(tent(), tmp_path / "here", options=options(url, retention=ring)) as session:
        mirror = session.mirror
        assert mirror is not None
        for i in range(5):
            session.submit(images(i), "a")
            session.settle(60)
            assert mirror.settle(60)
        system, root = fsspec.core.url_to_fs(url)
        assert sorted(path.rpartition("/")[2] for path in system.ls(f"{root}/streams/a", detail=False)) == [
            "000000004.safetensors",
            "000000005.safetensors",
        ]
        assert mirror.copied == 5
        session.forget("a")
        assert mirror.settle(60)
        assert not system.exists(f"{root}/streams/a/000000005.safetensors")
    with pytest.raises(FileNotFoundError, match="holds no session"):
        fetch_session(f"{url}/elsewhere", tmp_path / "new")


def test_only_what_is_whole_is_fetched(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/mirror"
    with Session(tent(), tmp_path / "here", options=options(url)) as session:
        states = []
        for i in range(3):
            states.append(session.submit(images(i), "a").state)
            session.settle(60)
            assert session.mirror is not None
            assert session.mirror.settle(60)
    folder = tmp_path / "mirror" / "streams" / "a"
    newest = folder / "000000003.safetensors"
    newest.write_bytes(newest.read_bytes()[:-7])
    (folder / "notes.safetensors").write_bytes(b"no")
    (folder / "9.safetensors").write_bytes(b"no")
    (tmp_path / "mirror" / "streams" / "..a").mkdir()
    (tmp_path / "mirror" / "adapters" / "no-hash").mkdir()
    assert fetch_session(url, tmp_path / "new") == {"a": 8}
    found = sorted(path.name for path in (tmp_path / "new" / "streams").rglob("*") if path.is_file())
    assert found == ["000000001.safetensors", "000000002.safetensors"]
    with Session.resume(network(), tmp_path / "new") as session:
        assert session.status("a").state == states[1]


def test_a_mirror_that_fails_fails_no_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"file://{tmp_path}/mirror"
    with Session(tent(), tmp_path / "here", options=options(url)) as session:
        mirror = session.mirror
        assert mirror is not None
        assert mirror.settle(60)

        def down(*_: object, **__: object) -> None:
            raise ConnectionError("the store is away")

        monkeypatch.setattr(mirror._system, "pipe_file", down)
        state = session.submit(images(0), "a").state
        session.settle(60)
        assert mirror.settle(60)
        assert mirror.error == "ConnectionError: the store is away"
        assert session.status("a").error == ""
        assert "the mirror failed: ConnectionError: the store is away" in caplog.messages
        monkeypatch.undo()
        session.snapshot("a")
        assert mirror.settle(60)
        assert mirror.error == ""
    assert "mirror failed" in [record["event"] for record in records(tmp_path / "here" / "audit")]
    assert fetch_session(url, tmp_path / "new") == {"a": 4}
    with Session.resume(network(), tmp_path / "new") as session:
        assert session.status("a").state == state


def feed(session: Session, count: int, stream: str = "a") -> None:
    """Let a stream take so many requests, and the mirror its snapshots."""
    for _ in range(count):
        offset = session.status(stream).offset if stream in session else 0
        session.submit(images(offset), stream)
        session.settle(60)
        assert session.mirror is None or session.mirror.settle(60)


def content(url: str) -> dict[str, bytes]:
    system, root = fsspec.core.url_to_fs(url)
    return {path: system.cat_file(path) for path in system.find(root)}


def test_a_mirror_of_another_session_is_refused(tmp_path: Path, url: str) -> None:
    with Session(tent(), tmp_path / "lost", options=options(url)) as session:
        feed(session, 5)
    before = content(url)
    with pytest.raises(
        ValueError, match="holds another session; choose another URL, delete what is there, or"
    ):
        Session(tent(), tmp_path / "other", options=options(url))
    assert content(url) == before
    assert fetch_session(url, tmp_path / "new") == {"a": 20}
    with Session.resume(network(), tmp_path / "new", options=options(url)) as session:
        session.configure(tent(lr=0.5))
        feed(session, 1)
    with Session.resume(network(), tmp_path / "new", options=options(url)) as session:
        feed(session, 1)
    assert fetch_session(url, tmp_path / "newer") == {"a": 28}


def test_nothing_is_written_before_the_mirror_was_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/mirror"
    system, _ = fsspec.core.url_to_fs(url)

    def down(*_: object, **__: object) -> None:
        raise ConnectionError("the store is away")

    for place, error in (("here", ""), ("other", "OtherSessionError: the mirror file://")):
        with monkeypatch.context() as patch:
            patch.setattr(type(system), "cat_file", down)
            session = Session(tent(), tmp_path / place, options=options(url))
            assert session.mirror is not None
            assert session.mirror.settle(60)
            assert session.mirror.error == "ConnectionError: the store is away"
        feed(session, 2 if place == "here" else 1)
        assert session.mirror.error[: len("OtherSessionError: the mirror file://")] == error
        if place == "other":
            session.forget("a")
        session.close()
    assert fetch_session(url, tmp_path / "new") == {"a": 8}


def test_sessions_of_before_have_no_identity(tmp_path: Path) -> None:
    url, here = f"file://{tmp_path}/mirror", tmp_path / "here"
    with Session(tent(), here, options=options(url)) as session:
        feed(session, 1)
        feed(session, 1, "b")
    for path in (here / "session.json", tmp_path / "mirror" / "session.json"):
        found = json.loads(path.read_text())
        assert len(found.pop("session")) == 16
        path.write_text(json.dumps(found))
    shutil.rmtree(here / "streams" / "b")
    with Session.resume(network(), here, options=options(url)) as session:
        session.configure(tent(lr=0.5))
        feed(session, 1)
        assert session.mirror is not None
        assert session.mirror.error == ""
    assert "session" not in json.loads((here / "session.json").read_text())
    assert fetch_session(url, tmp_path / "new") == {"a": 8, "b": 4}  # b may be another session's
    with pytest.raises(ValueError, match="holds another session"):
        Session(tent(), tmp_path / "other", options=options(url))


def test_what_was_forgotten_does_not_come_back(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def down(*_: object, **__: object) -> None:
        raise ConnectionError("nothing can be deleted")

    with Session(tent(), tmp_path / "here", options=options(url)) as session:
        mirror: Any = session.mirror
        for name in "abc":
            feed(session, 3, name)
        with monkeypatch.context() as patch:
            patch.setattr(mirror._system, "rm", down)
            for name in "ac":
                session.forget(name)
            assert mirror.settle(60)
            assert mirror.error == "ConnectionError: nothing can be deleted"
            feed(session, 1, "b")  # it is copied, and the error stays
            assert (mirror.copied, mirror.error) == (10, "ConnectionError: nothing can be deleted")
            feed(session, 1, "a")  # it is not mixed with the one of before
            assert mirror.copied == 10
        assert fetch_session(url, tmp_path / "between") == {"a": 12, "b": 16, "c": 12}
        session.snapshot("a")
        assert mirror.settle(60)
        assert (mirror.copied, mirror.error) == (11, "")
        assert fetch_session(url, tmp_path / "after") == {"a": 4, "b": 16}
        assert len(list((tmp_path / "after" / "streams" / "a").iterdir())) == 1


def test_the_mirror_follows_what_happened_without_it(tmp_path: Path, url: str) -> None:
    with Session(tent(), tmp_path / "here", options=options(url)) as session:
        for name in ("a", "b", "Hall.2"):
            feed(session, 3, name)
    with Session.resume(network(), tmp_path / "here", options=SessionOptions(snapshot_every=1)) as session:
        for name in ("a", "Hall.2"):
            session.forget(name)
        feed(session, 1, "a")
    system, root = fsspec.core.url_to_fs(url)
    with Session.resume(network(), tmp_path / "here", options=options(url)) as session:
        assert session.mirror is not None
        assert session.mirror.settle(60)
        assert sorted(path.rpartition("/")[2] for path in system.ls(f"{root}/streams", detail=False)) == [
            "a",
            "b",
        ]
        feed(session, 1, "a")  # snapshot 2; the third was that of the stream before
    assert fetch_session(url, tmp_path / "new") == {"a": 8, "b": 12}


def test_streams_that_the_disk_lost_stay_in_the_mirror(tmp_path: Path) -> None:
    url = f"file://{tmp_path}/mirror"
    with Session(tent(), tmp_path / "here", options=options(url)) as session:
        feed(session, 2)
    shutil.rmtree(tmp_path / "here" / "streams")
    with Session.resume(network(), tmp_path / "here", options=options(url)) as session:
        feed(session, 1, "b")
    assert fetch_session(url, tmp_path / "new") == {"a": 8, "b": 4}


def test_urls_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        Session(tent(), tmp_path / "a", options=options("nowhere://a/b"))
    for inside in (f"file://{tmp_path}/a/mirror", f"file://{tmp_path}"):
        with pytest.raises(ValueError, match="lie in each other"):
            Session(tent(), tmp_path / "a", options=options(inside))
    assert not (tmp_path / "a" / "mirror").exists()
    Session(tent(), tmp_path / "a").close()  # the lock was given back
