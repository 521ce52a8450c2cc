"""The package imports where the system is not POSIX: no module needs one when it is imported."""

import ast
import builtins
from pathlib import Path

import pytest

import testtime
from testtime.metrics import peak_memory

SOURCES = sorted(Path(testtime.__file__).parent.rglob("*.py"))
POSIX_MODULES = {"resource", "fcntl", "pwd", "grp", "termios", "pty", "tty", "syslog"}
POSIX_NAMES = {
    ("os", name)
    for name in ("fork", "getuid", "geteuid", "getpgid", "killpg", "statvfs", "sched_getaffinity")
} | {("signal", name) for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "pause", "alarm")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_nothing_posix_alone_is_used_at_import(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {id(node) for function in functions for node in ast.walk(function)}
    for node in top:
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        if id(node) not in inside:
            assert not {name.split(".")[0] for name in names} & POSIX_MODULES
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert (node.value.id, node.attr) not in POSIX_NAMES


def test_peak_memory_is_not_measured_where_there_is_no_resource(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (peak_memory() or 0) > 10_000_000
    real = builtins.__import__

    def without(name: str, *args: object, **kwargs: object) -> object:
        if name == "resource":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)
    assert peak_memory() is None
