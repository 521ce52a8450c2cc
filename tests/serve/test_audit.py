"""The audit log: its chain finds what was changed, and it survives what happens to disks and processes."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from testtime.errors import DataError
from testtime.serve.audit import Audit, Head, records, verify


def log(folder: Path, n: int = 5, **options: int) -> Audit:
    audit = Audit(folder, lambda: 1.5, **options)
    for i in range(n):
        audit.add("learn", count=i)
    return audit


def lines(folder: Path) -> list[str]:
    return (folder / "000001.jsonl").read_text().splitlines()


def write(folder: Path, content: list[str]) -> None:
    (folder / "000001.jsonl").write_text("".join(f"{line}\n" for line in content))


def test_a_whole_log(tmp_path: Path) -> None:
    audit = log(tmp_path)
    audit.close()
    found = verify(tmp_path, {"here": audit.head})
    assert (found.records, found.head, found.faults, found.torn) == (5, audit.head, (), False)
    assert [r["count"] for r in records(tmp_path)] == [0, 1, 2, 3, 4]
    assert stat.S_IMODE(os.stat(tmp_path / "000001.jsonl").st_mode) == 0o600
    again = Audit(tmp_path, lambda: 2.0)
    assert again.head == audit.head
    assert again.add("learn").seq == 6
    assert verify(tmp_path).faults == ()


def test_an_edited_record_is_named(tmp_path: Path) -> None:
    log(tmp_path).close()
    for key, value in (("count", 9), ("time", 1.25), ("event", "answer"), ("more", 1)):
        content = lines(tmp_path)
        record = json.loads(content[2])
        record[key] = value
        write(tmp_path, [*content[:2], json.dumps(record, separators=(",", ":")), *content[3:]])
        assert verify(tmp_path).faults == ("000001.jsonl: record 3 was edited",)
        write(tmp_path, content)


def test_removed_inserted_and_moved_records_are_named(tmp_path: Path) -> None:
    log(tmp_path).close()
    content = lines(tmp_path)
    write(tmp_path, [*content[:2], *content[3:]])
    assert verify(tmp_path).faults == ("000001.jsonl: record 3 was removed, or moved (line 3 is record 4)",)
    write(tmp_path, [*content[:2], content[1], *content[2:]])
    assert verify(tmp_path).faults[0] == "000001.jsonl: record 3 was removed, or moved (line 3 is record 2)"
    write(tmp_path, content[1:])
    assert verify(tmp_path).faults == ("the log begins with record 2: earlier ones were removed",)
    write(tmp_path, [content[1], content[0], *content[2:]])
    assert len(verify(tmp_path).faults) >= 1
    write(tmp_path, [*content[:2], "{", *content[3:]])
    assert "line 3 is no record" in verify(tmp_path).faults[0]
    with pytest.raises(DataError, match="line 3, is no record"):
        list(records(tmp_path))


def test_a_truncated_log_is_found_by_a_head(tmp_path: Path) -> None:
    head = log(tmp_path).head
    write(tmp_path, lines(tmp_path)[:3])
    assert verify(tmp_path).faults == ()
    assert verify(tmp_path, {"snapshot 1": head}).faults == (
        "the log ends at record 3; snapshot 1 knows record 5: it was truncated",
    )
    assert verify(tmp_path, {"snapshot 1": Head(2, "0")}).faults == (
        "record 2 is not the one that snapshot 1 knows: the log was replaced",
    )


def test_a_torn_last_line_is_repaired(tmp_path: Path) -> None:
    log(tmp_path).close()
    path = tmp_path / "000001.jsonl"
    whole = path.read_bytes()
    for cut in (1, 40, len(whole.splitlines(keepends=True)[-1]) - 1):
        path.write_bytes(whole[:-cut])
        assert verify(tmp_path).torn
        assert verify(tmp_path).faults == ()
        audit = Audit(tmp_path, lambda: 1.5)
        assert audit.repaired > 0
        audit.add("learn")
        audit.close()
        assert verify(tmp_path) == verify(tmp_path, {"the writer": audit.head})
        assert [r["seq"] for r in records(tmp_path)] == [1, 2, 3, 4, 5]


def test_files_are_rotated_and_the_chain_goes_on(tmp_path: Path) -> None:
    audit = log(tmp_path, 40, rotate=1000)
    audit.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert len(files) > 3
    assert verify(tmp_path, {"the writer": audit.head}).faults == ()
    assert [r["count"] for r in records(tmp_path) if r["event"] == "learn"] == list(range(40))
    (tmp_path / files[1]).unlink()
    assert verify(tmp_path).faults[0] == f"file {files[1]} was removed"


def test_only_the_last_files_are_kept(tmp_path: Path) -> None:
    audit = log(tmp_path, 40, rotate=1000, keep=2)
    audit.close()
    assert len(list(tmp_path.iterdir())) == 2
    assert verify(tmp_path, {"the writer": audit.head}).faults == ()


@pytest.mark.parametrize("content", [b"", b'{"seq":'], ids=["empty", "torn"])
def test_the_chain_goes_on_from_the_newest_file_with_a_record(tmp_path: Path, content: bytes) -> None:
    """A process that ends while a file begins leaves one without a record."""
    audit = log(tmp_path)
    audit.add("close")
    audit.close()
    (tmp_path / "000002.jsonl").touch()
    (tmp_path / "000003.jsonl").write_bytes(content)
    assert verify(tmp_path, {"the writer": audit.head}).faults == ()
    assert verify(tmp_path).closed
    again = Audit(tmp_path, lambda: 2.0)
    assert (again.head, again.repaired, again.broken) == (audit.head, len(content), "")
    assert again.add("open").seq == 7
    again.close()
    assert json.loads((tmp_path / "000003.jsonl").read_text())["seq"] == 7
    found = verify(tmp_path, {"the first": audit.head, "the second": again.head})
    assert (found.records, found.head, found.faults, found.closed) == (7, again.head, (), False)
    assert [r["seq"] for r in records(tmp_path)] == [1, 2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("keep", [0, 1])
def test_a_disk_that_fills_when_a_file_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep: int
) -> None:
    audit, real = log(tmp_path, 20, rotate=1000, keep=keep), os.write
    while audit._size < 1000:
        audit.add("learn")
    head, number = audit.head, audit._number

    def full(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    audit.add("learn")
    audit.close()
    monkeypatch.setattr(os, "write", real)
    assert (tmp_path / f"{number + 1:06d}.jsonl").read_bytes() == b""
    again = Audit(tmp_path, lambda: 2.0, rotate=1000, keep=keep)
    assert again.head == head
    again.add("open")
    again.close()
    assert verify(tmp_path, {"before": head, "after": again.head}).faults == ()


def test_records_wait_while_the_disk_is_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    audit, real = log(tmp_path, 2), os.write

    def full(file: int, data: bytes) -> int:
        real(file, data[:10])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    audit.add("learn", count=2)
    assert not audit.flush()
    for i in range(1100):
        audit.add("answer", count=i)
    assert len(audit.waiting) == 1000
    monkeypatch.setattr(os, "write", real)
    assert verify(tmp_path).records == 2
    assert not verify(tmp_path).torn
    audit.add("learn", count=3)
    audit.close()
    found = list(records(tmp_path))
    assert verify(tmp_path, {"the writer": audit.head}).faults == ()
    assert (len(found), found[-1]["event"], found[-1]["records"]) == (1003, "left out", 102)


def test_a_closed_log_takes_no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    audit = log(tmp_path, 2)
    audit.close()
    with pytest.raises(RuntimeError, match="this session is closed; continue it by"):
        audit.add("learn")
    assert (audit.head.seq, audit.waiting, audit.flush(durable=True)) == (2, [], True)
    audit = Audit(tmp_path, lambda: 2.0)
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        audit.add("learn")
        audit.close()
    assert not audit.flush()
    assert verify(tmp_path).records == 2


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("")
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "000001.jsonl").symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic"):
        Audit(tmp_path / "log", lambda: 0.0)
    assert elsewhere.read_text() == ""
