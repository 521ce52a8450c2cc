"""What README and examples show is run as it stands."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_ten_lines_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert all(line.startswith("True ") for line in printed)
    assert (tmp_path / "runs/adapter/adapter.safetensors").stat().st_size < 8000


def test_your_own_method(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples/your_own_method.py"), run_name="__main__")
    assert capsys.readouterr().out == "HalfTent obeys the laws\n"


def test_drifting_stream(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="pip install -e '.[demo]'")
    runpy.run_path(str(ROOT / "examples/drifting_stream.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 18
    assert lines[0].split()[:3] == ["gaussian_noise", "batch", "0"]


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", page.read_text()):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


def test_choose_without_labels(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="pip install -e '.[demo]'")
    runpy.run_path(str(ROOT / "examples/choose_without_labels.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "take BN-adapt" in printed or "take TENT\n" in printed
    assert "- Not TENT, far too fast: " in printed
