"""A mirror of the snapshots under a URL: what is lost with a disk continues from it, bit for bit."""

from __future__ import annotations

import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

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


def test_urls_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="nowhere"):
        Session(tent(), tmp_path / "a", options=options("nowhere://a/b"))
    for inside in (f"file://{tmp_path}/a/mirror", f"file://{tmp_path}"):
        with pytest.raises(ValueError, match="lie in each other"):
            Session(tent(), tmp_path / "a", options=options(inside))
    assert not (tmp_path / "a" / "mirror").exists()
    Session(tent(), tmp_path / "a").close()  # the lock was given back
