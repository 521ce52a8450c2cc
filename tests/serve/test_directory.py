"""The directory of a session: who holds it, and where it lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from small_session import images, network, tent

from testtime.serve import Session, verify_session
from testtime.serve.directory import Directory, DirectoryLock


def test_a_directory_is_given_back_while_a_forked_process_has_its_lock_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = DirectoryLock(tmp_path)
    inherited = os.dup(lock._file or 0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: 1)
        lock.release()  # in the forked process: the other one still holds the directory
    with pytest.raises(RuntimeError, match=f"another session .process {os.getpid()}."):
        DirectoryLock(tmp_path)
    os.close(inherited)

    lock = DirectoryLock(tmp_path)
    inherited = os.dup(lock._file or 0)
    lock.release()
    DirectoryLock(tmp_path).release()
    os.close(inherited)


def test_a_session_stays_where_it_is_when_the_working_directory_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Session(tent(), "cameras") as session:
        session.submit(images(0))
        monkeypatch.chdir(tmp_path / "elsewhere")
        session.submit(images(1))
        assert session.snapshot().offset == 8
        last = session.submit(images(2))
    assert list((tmp_path / "elsewhere").iterdir()) == []
    assert verify_session(tmp_path / "cameras").closed
    with Session.resume(network(), Path("..", "cameras")) as session:
        assert session.status().state == last.state


def test_an_empty_path_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="got an empty path"):
        Session(tent(), "")
    assert list(tmp_path.iterdir()) == []
    Session(tent(), ".").close()
    with pytest.raises(ValueError, match="got an empty path"):
        Session.resume(network(), "")


def test_a_session_keeps_its_identity(tmp_path: Path) -> None:
    found = []
    with Session(tent(), tmp_path / "a") as session:
        found.append(Directory(tmp_path / "a").found())
        session.configure(tent(lr=0.5))
        found.append(Directory(tmp_path / "a").found())
    Session.resume(network(), tmp_path / "a").close()
    found.append(Directory(tmp_path / "a").found())
    Session(tent(), tmp_path / "b").close()
    found.append(Directory(tmp_path / "b").found())
    names = [one.session for one in found if one is not None]
    assert names[0] == names[1] == names[2] != names[3]
