"""The example of docs/production.md runs, and prints what it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "production.md"


def test_the_example_of_the_sessions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = PAGE.read_text().split("\n## Sessions\n")[1].split("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "production.md", "exec"), {})
    expected = re.findall(r"print\(.*\)  # ([^:\n]*)", code)
    assert capsys.readouterr().out.splitlines() == expected
