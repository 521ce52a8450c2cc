"""Objects by their import path: whatever is wrong with an own module, one line says what and where."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

from testtime.plugins import load_plugin, resolve


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class Mine\n", r"cannot be imported: SyntaxError: expected ':' \(own_module_0.py, line 1\)"),
        (
            "x = 1\ny = x / 0\n",
            r"cannot be imported: ZeroDivisionError: division by zero \(.*own_module_1.py, line 2\)",
        ),
        ("import math\nmath.no\n", r"cannot be imported: AttributeError: .* \(.*own_module_2.py, line 2\)"),
        ("from math import no\n", r"cannot be imported: ImportError: cannot import name 'no'"),
        ("import no_such_package\n", r"No module named 'no_such_package'; install its package"),
        ("Other = 1\n", r"has no attribute 'Mine'; expected an import path as package.module:name"),
    ],
)
def test_an_own_module_that_fails_is_reported_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str, request: pytest.FixtureRequest
) -> None:
    number = request.node.callspec.indices["text"]
    (tmp_path / f"own_module_{number}.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ImportError, match=rf"^own_module_{number}:Mine: .*{message}") as caught:
        resolve(f"own_module_{number}:Mine")
    assert "\n" not in str(caught.value)


def test_a_broken_entry_point_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_plugin.py").write_text("x = [][0]\n")
    monkeypatch.syspath_prepend(tmp_path)
    message = r"entry point mine = broken_plugin:Mine of testtime.methods cannot be loaded: IndexError: .*line 1\); repair or"
    with pytest.raises(ImportError, match=message):
        load_plugin(EntryPoint("mine", "broken_plugin:Mine", "testtime.methods"))
