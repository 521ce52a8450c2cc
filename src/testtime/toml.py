"""TOML files that appear whole or not at all: strings, numbers, truth values, lists of them, and flat tables of them."""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from testtime.files import damaged, write_text

__all__ = ["read_toml", "write_toml"]

AGAIN = "repair it, or delete it and give the same command again"


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no TOML.
    """
    with damaged(path, AGAIN, (tomllib.TOMLDecodeError,)), open(path, "rb") as file:
        return tomllib.load(file)


def write_toml(path: str | Path, content: Mapping[str, Any]) -> Path:
    """Write strings, numbers, truth values, lists of them, and flat tables of them as TOML.

    Raises:
        ValueError: the content is not of these types.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     read_toml(write_toml(f"{folder}/run.toml", {"seeds": [0, 1], "settings": {"rate": 1e-05, "order": "a\\tb"}}))
    {'seeds': [0, 1], 'settings': {'rate': 1e-05, 'order': 'a\\tb'}}
    """
    lines = [_line(name, value) for name, value in content.items() if not isinstance(value, Mapping)]
    for name, table in content.items():
        if isinstance(table, Mapping):
            lines += ["", f"[{_key(name)}]", *(_line(key, value) for key, value in table.items())]
    text = "\n".join(lines) + "\n"
    plain = {name: _plain(value) for name, value in content.items()}
    if tomllib.loads(text) != plain:
        raise ValueError(f"{path}: the content does not come back from TOML; expected flat tables")
    return write_text(path, text)


def _line(name: str, value: Any) -> str:
    return f"{_key(name)} = {_text(value)}"


def _key(name: str) -> str:
    return name if name.isascii() and name.replace("_", "").replace("-", "").isalnum() else _text(name)


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{', '.join(_text(item) for item in value)}]"
    if not isinstance(value, str | bool | int | float) or (
        isinstance(value, float) and not math.isfinite(value)
    ):
        raise ValueError(f"expected strings, finite numbers, truth values or lists of them, got {value!r}")
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value
