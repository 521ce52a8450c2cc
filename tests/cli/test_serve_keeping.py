"""``testtime serve --resident --idle --mirror``: what they set, and what is refused before anything is written."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest

from testtime.cli import main
from testtime.cli.serve import Keeping
from testtime.serve import fetch_session

server = pytest.importorskip(
    "testtime.serve.server", reason="pip install -e '.[serve]'", exc_type=ImportError
)
pytest.importorskip("fsspec", reason="pip install -e '.[fsspec]'")
SERVE = "serve --model digits-cnn --method bn-adapt --no-guard --port 0 --state state"


def test_the_session_of_the_command_gets_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def run(app: Any, found: Any) -> int:
        seen.append(app.state.service.session.options)
        return 0

    monkeypatch.setattr(server, "run", run)
    monkeypatch.setattr(
        server.logs, "write_logs", lambda form, level: None
    )  # it would stay for the tests after this one
    monkeypatch.chdir(tmp_path)
    more = f"--resident 3 --idle 1.5 --mirror file://{tmp_path}/mirror --max-streams 7 --snapshot-every 2"
    assert main([*shlex.split(SERVE), *more.split()]) == 0
    found = seen[0]
    assert (found.resident, found.idle, found.streams, found.snapshot_every) == (3, 1.5, 7, 2)
    assert (found.mirror, found.model) == (f"file://{tmp_path}/mirror", "digits-cnn")
    assert fetch_session(found.mirror, tmp_path / "copy") == {}  # the description is there


def test_by_default_nothing_leaves_before_there_are_many() -> None:
    model = server.ServedModel(None, "small", 3, 6)
    found = Keeping().options(model, 1000, None)
    assert (found.resident, found.idle, found.mirror, found.snapshot_every) == (1024, 0.0, None, 100)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--resident 0", "--resident: expected a whole number from 1, got '0'"),
        ("--idle 0", "--idle: expected a number above 0, got '0'"),
        ("--idle soon", "--idle: expected a number above 0, got 'soon'"),
        ("--mirror backup", "--mirror: expected a URL as s3://bucket/folder or file:///folder, got 'backup'"),
        ("--mirror file://", "--mirror: expected a URL"),
        ("--mirror nosuch://bucket", "fsspec cannot open 'nosuch://bucket' (Protocol not known: nosuch"),
        ("--mirror file://{here}/state/mirror", "lie in each other; choose another folder"),
        ("--mirror file://{here}", "lie in each other; choose another folder"),
    ],
)
def test_mistakes_leave_nothing(
    option: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = main(shlex.split(f"{SERVE} {option.format(here=tmp_path)}"))
    except SystemExit as left:
        code = int(str(left.code))
    captured = capsys.readouterr()
    assert code == 2
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert message in line
    assert list(tmp_path.iterdir()) == []
