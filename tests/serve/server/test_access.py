"""Who may do what: every route with no, wrong, the client's and the manager's token."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="pip install -e '.[serve]'")
from server_world import INFER, MANAGE, TENT, TOKENS, USE, images, request, served, serving

from testtime.serve.server import ServerOptions, Tokens

OPEN = {("GET", "/v2/health/live"), ("GET", "/v2/health/ready")}
MANAGED = {
    ("POST", "/streams/{stream}/snapshots"),
    ("POST", "/streams/{stream}/rollback"),
    ("POST", "/streams/{stream}/pause"),
    ("POST", "/streams/{stream}/resume"),
    ("DELETE", "/streams/{stream}"),
    ("PUT", "/configuration"),
}
GIVEN = {"none": None, "wrong": "Bearer " + "x" * 22, "basic": f"Basic {USE}", "use": USE, "manage": MANAGE}


def test_every_route_wants_its_token(tmp_path: Path) -> None:
    with serving(tmp_path, tokens=TOKENS) as call:
        routes = [
            (method.upper(), path)
            for path, methods in call.get("/openapi.json").json()["paths"].items()
            for method in methods
        ]
        assert {*routes} > MANAGED | OPEN
        assert len(routes) >= 17
        for method, path in routes:
            address = path.replace("{stream}", "s").replace("{name}", "small")
            for kind, token in GIVEN.items():
                value = token if kind in ("none", "wrong", "basic") else f"Bearer {token}"
                headers = {} if value is None else {"Authorization": value}
                response = call(method, address, headers=headers)
                where = f"{method} {path} with {kind}: {response.status_code}"
                if (method, path) in OPEN or kind == "manage":
                    assert response.status_code not in (401, 403), where
                elif kind == "use":
                    assert (response.status_code == 403) == ((method, path) in MANAGED), where
                else:
                    assert response.status_code == 401, where
                    assert response.headers["www-authenticate"] == "Bearer"
        assert call.session.streams() == ()


def test_without_a_manager_token_nobody_manages(tmp_path: Path) -> None:
    with serving(tmp_path, tokens=Tokens(USE), token=USE) as call:
        assert call.infer(images(0)).status_code == 200
        refused = call.post("/streams/default/snapshots")
        assert (refused.status_code, refused.json()["code"]) == (403, "management-off")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:8000"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example"}, 403),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1"}, 200),
        ({"Origin": "null"}, 403),
    ],
)
def test_pages_of_other_sites_do_not_reach_a_server_without_tokens(
    headers: dict[str, str], status: int, tmp_path: Path
) -> None:
    with serving(tmp_path) as call:
        assert call.post(INFER, json=request(images(0)), headers=headers).status_code == status
        assert call.session.streams() == (("default",) if status == 200 else ())


def test_without_tokens_only_this_machine_is_answered() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        ServerOptions(served(), TENT, host=host)
    for host in ("0.0.0.0", "::", "192.168.1.4", "example.org"):
        with pytest.raises(ValueError, match="reached from other machines"):
            ServerOptions(served(), TENT, host=host)
        ServerOptions(served(), TENT, TOKENS, host=host)


def test_tokens_come_from_the_environment_or_from_files(tmp_path: Path) -> None:
    (tmp_path / "use").write_text(USE + "\n")
    (tmp_path / "manage").write_text(MANAGE)
    assert Tokens.read({}) == Tokens()
    assert Tokens.read({"TESTTIME_TOKEN": USE, "TESTTIME_MANAGE_TOKEN": MANAGE}) == TOKENS
    files = {"TESTTIME_TOKEN_FILE": str(tmp_path / "use")}
    assert Tokens.read(files) == Tokens(USE)
    assert Tokens.read(files, None, str(tmp_path / "manage")) == TOKENS
    assert USE not in repr(TOKENS)


@pytest.mark.parametrize(
    ("use", "manage", "message"),
    [
        ("short", None, "5 characters, expected 16 or more"),
        ("with a blank 0123456789", None, "expected letters"),
        ("ключ-0123456789-0123", None, "expected letters"),
        (None, MANAGE, "none for clients"),
        (USE, USE, "are equal"),
    ],
)
def test_bad_tokens(use: str | None, manage: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tokens(use, manage)


def test_bad_files_of_tokens(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file; expected one with a token"):
        Tokens.read({}, str(tmp_path / "none"))
    for name, data, message in (
        ("a", b"", "is empty"),
        ("b", b"\xff" * 20, "as text"),
        ("c", b"x" * 5000, "larger"),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=message):
            Tokens.read({}, str(tmp_path / name))


def test_roles() -> None:
    assert Tokens().role(None) == "manage"
    assert [TOKENS.role(f"Bearer {token}") for token in (USE, MANAGE, "", "é")] == [
        "use",
        "manage",
        None,
        None,
    ]
    assert TOKENS.role(f"bearer  {USE}") == "use"
    assert TOKENS.role(USE) is None
    assert Tokens(USE).role("Bearer ") is None
