"""The directory of a session: who holds it, and where it lies."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from testtime.serve.directory import DirectoryLock


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
