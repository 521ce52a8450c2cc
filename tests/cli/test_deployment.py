"""Dockerfile, compose file and the unit in docs/production.md: what they copy, install, set and call exists."""

from __future__ import annotations

import ast
import json
import re
import shlex
import tomllib
from pathlib import Path
from typing import Any

import pytest

from testtime.cli import parser

server = pytest.importorskip(
    "testtime.serve.server", reason="pip install -e '.[serve]'", exc_type=ImportError
)
ROOT = Path(__file__).parents[2]
TOKEN = "0123456789abcdefghijklmnopqrstuvwxyz"


def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments; lines that go on are joined."""
    text = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines]


def of(instruction: str) -> list[str]:
    return [rest for name, rest in dockerfile() if name == instruction]


def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml", reason="PyYAML comes with testtime[docs]")
    found: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
    return found


def unit() -> dict[str, list[str]]:
    (text,) = re.findall(r"```ini\n(.*?)```", (ROOT / "docs" / "production.md").read_text(), re.DOTALL)
    found: dict[str, list[str]] = {}
    for key, value in re.findall(r"^(\w+)=(.*)$", text, re.MULTILINE):
        found.setdefault(key, []).append(value)
    return found


def parsed(words: list[str], folder: Path) -> dict[str, Any]:
    """Parse a command line of testtime, with its absolute paths below a folder that has them."""
    moved = []
    for word in words:
        if word.startswith("/"):
            (folder / word[1:]).mkdir(parents=True, exist_ok=True)
            word = str(folder / word[1:])
        moved.append(word)
    return vars(parser().parse_args(moved))


def check_tokens(environ: dict[str, str], folder: Path) -> None:
    """Give the variables a file each: the server finds both tokens by them."""
    files = {name: folder / name for name in environ}
    for name, path in files.items():
        path.write_text(name + TOKEN)
    found = server.Tokens.read({name: str(path) for name, path in files.items()})
    assert None not in (found.use, found.manage)


def test_the_image_copies_and_installs_what_exists() -> None:
    seen = (ROOT / ".dockerignore").read_text().splitlines()
    for copied in of("COPY"):
        *sources, _ = copied.split()
        for source in sources:
            assert (ROOT / source).exists(), source
            assert f"!{source}" in seen, source
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    copied_names = " ".join(of("COPY")).split()
    for needed in (project["project"]["readme"], *project["project"]["license-files"], "constraints.txt"):
        assert needed in copied_names
    (run,) = of("RUN")
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', run)
    assert set(extras.split(",")) <= set(project["project"]["optional-dependencies"])
    assert {"serve", "demo"} <= set(extras.split(","))  # the demo's packages read the packaged digits
    assert re.findall(r"-c (\S+)", run) == ["constraints.txt"]


def test_the_image_serves(tmp_path: Path) -> None:
    (entry,), (words,) = of("ENTRYPOINT"), of("CMD")
    program, *command = json.loads(entry)
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert scripts[program] == "testtime.cli:main"
    given = parsed(command + json.loads(words), tmp_path)
    assert (given["model"], given["method"], given["host"]) == ("digits-cnn", "tent", "0.0.0.0")
    assert of("EXPOSE") == [str(given["port"])]
    assert given["state"] == str(tmp_path / of("VOLUME")[0].strip("/"))


def test_the_health_check_asks_a_route_of_the_server() -> None:
    (check,) = of("HEALTHCHECK")
    *_, code = json.loads(check.split("CMD ", 1)[1])
    (address,) = [
        node.value
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    place = re.fullmatch(r"http://127\.0\.0\.1:(\d+)(/.*)", address)
    assert place is not None
    assert of("EXPOSE") == [place[1]]
    from testtime.serve.server.protocol import ROUTER

    assert place[2] in {route.path for route in ROUTER.routes}  # type: ignore[attr-defined]


def test_the_compose_file_serves(tmp_path: Path) -> None:
    found = compose()
    (service,) = found["services"].values()
    (entry,) = of("ENTRYPOINT")
    given = parsed([*json.loads(entry)[1:], *service["command"]], tmp_path)
    mounted = {volume.split(":")[1]: volume.split(":")[0] for volume in service["volumes"]}
    assert {"/state", "/images"} == mounted.keys()
    assert (given["state"], given["source"]) == (str(tmp_path / "state"), str(tmp_path / "images"))
    assert mounted["/state"] in found["volumes"]
    assert [port.split(":")[-1] for port in service["ports"]] == of("EXPOSE")
    assert set(service["secrets"]) == set(found["secrets"])
    for file in service["environment"].values():
        assert Path(file).parent == Path("/run/secrets")
        assert Path(file).name in service["secrets"]
    check_tokens(service["environment"], tmp_path)
    assert int(service["stop_grace_period"].removesuffix("s")) > server.Limits().shutdown


def test_the_unit_serves(tmp_path: Path) -> None:
    found = unit()
    program, *words = shlex.split(found["ExecStart"][0])
    assert Path(program).name == "testtime"
    given = parsed(words, tmp_path)
    assert given["state"] == str(tmp_path / "var/lib" / found["StateDirectory"][0])
    environ = dict(pair.split("=", 1) for line in found["Environment"] for pair in line.split())
    files = {name: value for name, value in environ.items() if name.startswith("TESTTIME_")}
    loaded = {credential.split(":")[0] for credential in found["LoadCredential"]}
    assert {Path(value).name for value in files.values()} == loaded
    check_tokens(files, tmp_path)
    assert all(environ[name] == f"%C/{found['CacheDirectory'][0]}" for name in ("HF_HOME", "TORCH_HOME"))
    assert int(found["TimeoutStopSec"][0]) > server.Limits().shutdown


def test_options_of_serve_in_the_documentation_exist() -> None:
    text = (ROOT / "docs" / "production.md").read_text()
    commands = re.findall(r"^testtime serve ([^#\n]*)", text, re.MULTILINE)
    assert len(commands) >= 3
    (commands_of,) = [one.choices for one in parser()._actions if isinstance(one.choices, dict)]
    known = set(commands_of["serve"]._option_string_actions)
    for command in commands:
        assert {word for word in shlex.split(command) if word.startswith("--")} <= known, command
