"""What README and examples show is run as it stands."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

from testtime.corruptions import CORRUPTIONS, corrupt
from testtime.data import embedded
from testtime.models import load_model

ROOT = Path(__file__).parents[1]


def the_ten_lines() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return code


def test_the_ten_lines_of_the_readme(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn", reason="pip install -e '.[demo]'")
    monkeypatch.chdir(tmp_path)
    exec(compile(the_ten_lines(), "README.md", "exec"), {})
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 5
    assert all(line.startswith("True ") for line in printed)
    assert (tmp_path / "runs/adapter/adapter.safetensors").stat().st_size < 8500


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_ten_lines_are_more_accurate_than_the_shipped_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn", reason="pip install -e '.[demo]'")
    monkeypatch.chdir(tmp_path)
    test, model = embedded().test, load_model("digits-cnn")
    order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0)).tolist()
    images, labels = test.batch(order), test.targets(order)
    code = the_ten_lines().replace("range(160)", f"range({len(test)})")
    code = code.replace("y = adapter(x)", "y = adapter(x); predicted.append(y.argmax(1))")
    shipped, ours = {}, {}
    for name in ("clean", *CORRUPTIONS):
        x = images if name == "clean" else corrupt(images, name)
        monkeypatch.setattr("testtime.corruptions.corrupt", lambda images, _, x=x: x)
        predicted: list[torch.Tensor] = []
        exec(compile(code, "README.md", "exec"), {"predicted": predicted})
        with torch.no_grad():
            answers = {
                "shipped": torch.cat([model(b).argmax(1) for b in x.split(32)]),
                "ours": torch.cat(predicted),
            }
        shipped[name], ours[name] = (100 * float((y == labels).float().mean()) for y in answers.values())
        print(f"{name:18} shipped {shipped[name]:5.1f}  adapted {ours[name]:5.1f}")
    assert ours.pop("clean") > shipped.pop("clean") - 1
    means = [sum(accuracy.values()) / len(CORRUPTIONS) for accuracy in (shipped, ours)]
    print(f"{'mean':18} shipped {means[0]:5.1f}  adapted {means[1]:5.1f}")
    assert means == pytest.approx([76.0, 84.0], abs=1)


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
