"""A server on loopback: connections, signals, its end, and the command that starts it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

pytest.importorskip("uvicorn", reason="pip install -e '.[serve]'")
from server_world import images, on_loopback, served

from testtime.serve import Client, Session
from testtime.serve.client import ServerBusyError
from testtime.serve.server import Limits, listening

CLI = [
    sys.executable,
    "-m",
    "testtime",
    "serve",
    "--model",
    "digits-cnn",
    "--method",
    "bn-adapt",
    "--no-guard",
]


def test_sigterm_answers_what_is_in_progress_and_writes_a_last_snapshot(tmp_path: Path) -> None:
    answers, slow = [], []

    def talk(client: Client, port: int) -> None:
        for i in range(3):
            answers.append(client.infer(images(i), "door"))

        def late() -> None:
            with Client(f"http://127.0.0.1:{port}", model="small") as own:
                answers.append(own.infer(torch.rand(200, 3, 6, 6), "door"))

        slow.append(threading.Thread(target=late))
        slow[0].start()
        while client.status("door").offset == 12 and slow[0].is_alive():
            time.sleep(0.001)

    assert on_loopback(tmp_path, talk) == 0
    slow[0].join()
    assert [answer.offset for answer in answers] == [0, 4, 8, 12]
    with Session.resume(served().network, tmp_path) as session:
        assert session.status("door").offset == 212
        assert session.status("door").state == answers[-1].state


def test_sigint_ends_with_130(tmp_path: Path) -> None:
    assert on_loopback(tmp_path, lambda client, port: None, signal.SIGINT) == 130


def test_slow_connections_are_closed_and_others_answered(tmp_path: Path) -> None:
    def talk(client: Client, port: int) -> None:
        slow = [socket.create_connection(("127.0.0.1", port)) for _ in range(20)]
        body = b"POST /v2/models/small/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 50\r\n\r\n{"
        for i, one in enumerate(slow):
            one.settimeout(20)
            one.sendall((b"", b"GET /v2 HT", b"GET /v2 HTTP/1.1\r\nHost: a\r\nX-", body)[i % 4])
        assert client.infer(images(0)).learned
        received = [one.recv(4096) for one in slow]
        assert all(data.startswith(b"HTTP/1.1 408") == (i % 4 == 3) for i, data in enumerate(received))
        assert all(data == b"" for i, data in enumerate(received) if i % 4 != 3)
        for one in slow:
            one.close()
        assert client.infer(images(1)).offset == 4

    assert on_loopback(tmp_path, talk, limits=Limits(receive=0.5)) == 0


def test_connections_and_bytes_beyond_the_limits(tmp_path: Path) -> None:
    def talk(client: Client, port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as one:
            one.settimeout(20)
            one.sendall(
                b"POST /v2/models/small/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 99999999\r\n\r\n"
            )
            data = b"".join(iter(lambda: one.recv(4096), b""))  # closed without reading the body
            assert data.startswith(b"HTTP/1.1 413")
            assert b"body-too-large" in data
        with socket.create_connection(("127.0.0.1", port)) as one:
            one.settimeout(20)
            one.sendall(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
            assert one.recv(4096).startswith(b"HTTP/1.1 400")
        others = [socket.create_connection(("127.0.0.1", port)) for _ in range(12)]
        with pytest.raises(ServerBusyError):
            client.infer(images(0))
        for one in others:
            one.close()
        for _ in range(200):
            if client.ready():
                break
            time.sleep(0.02)
        assert client.infer(images(0)).learned

    assert on_loopback(tmp_path, talk, limits=Limits(connections=10, body=10_000)) == 0


def test_a_port_in_use_is_an_error_before_any_work() -> None:
    with listening("127.0.0.1", 0) as found, pytest.raises(OSError, match="choose another address or port"):
        listening("127.0.0.1", found.getsockname()[1])
    with pytest.raises(OSError, match=r"cannot listen on 203\.0\.113\.7"):
        listening("203.0.113.7", 0)


def start(folder: Path, *arguments: str, **environ: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [*CLI, "--state", str(folder), "--port", "0", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **environ},
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.startswith("digits-cnn with "):
        process.kill()
        pytest.fail(f"{line}{process.communicate()[1]}")
    return process, line.split(" at ")[1].split(",")[0]


@pytest.mark.timeout(120)
def test_the_command_serves_until_sigterm_and_continues(tmp_path: Path) -> None:
    token = "a-token-of-the-clients"
    process, url = start(tmp_path, TESTTIME_TOKEN=token)
    with Client(url, token=token, model="digits-cnn") as client:
        answer = client.infer(torch.rand(8, 3, 32, 32), "door")
        assert answer.logits.shape == (8, 10)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    events = [json.loads(line)["event"] for line in errors.splitlines()]
    assert events[-2:] == ["stopping", "closed"]
    assert token not in errors
    with Session.resume(None, tmp_path) as session:
        assert (session.status("door").offset, session.status("door").state) == (8, answer.state)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_command_continues_after_a_kill_and_after_an_interruption(tmp_path: Path) -> None:
    process, url = start(tmp_path)
    with Client(url, model="digits-cnn") as client:
        client.infer(torch.rand(8, 3, 32, 32), "door")
        kept = client.snapshot("door")
        client.infer(torch.rand(8, 3, 32, 32), "door")
        client.configure("source", guarded=False)
    process.kill()
    process.communicate(timeout=60)
    process, url = start(tmp_path)
    with Client(url, model="digits-cnn") as client:
        assert client.configuration().method == "source"
        assert client.status("door").offset == kept.offset
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "digit-cnn"], "did you mean 'digits-cnn'?"),
        (["--model", "digits-cnn", "--method", "tnet"], "did you mean 'tent'?"),
        (["--model", "digits-cnn", "--host", "0.0.0.0"], "there is no token; set TESTTIME_TOKEN"),
        (["--model", "digits-cnn", "--guarded", "--no-guard"], "exclude each other"),
        (["--model", "digits-cnn", "--set", "lr"], "expected a setting as KEY=VALUE"),
        (["--model", "digits-cnn", "--no-guard", "--set", "speed=1"], "Tent"),
        (["--model", "digits-cnn", "--no-guard", "--method", "cafa"], "--source FOLDER"),
    ],
)
def test_mistakes_leave_nothing_behind(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from testtime.cli import main

    method = [] if "--method" in arguments else ["--method", "tent"]
    assert main(["serve", "--state", str(tmp_path / "state"), "--port", "0", *method, *arguments]) == 2
    printed = capsys.readouterr()
    assert message in printed.err
    assert len(printed.err.splitlines()) == 1
    assert printed.out == ""
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--port x", "--port: expected a whole number from 0"),
        ("--deadline 0", "--deadline: expected a number above 0"),
        ("--source nowhere", "no such file or folder: 'nowhere'"),
        ("--token-file nowhere", "no such file or folder: 'nowhere'"),
        ("--logs xml", "no choice 'xml'"),
        ("--tokn-file a", "(did you mean '--token-file'?)"),
    ],
)
def test_options_are_checked_first(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    from testtime.cli import main

    with pytest.raises(SystemExit) as left:
        main(["serve", "--model", "digits-cnn", "--state", "x", *arguments.split()])
    assert left.value.code == 2
    assert message in capsys.readouterr().err
