"""What README, documentation and examples show is run as it stands."""

from __future__ import annotations

import importlib
import os
import re
import runpy
import shlex
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
import torch

from testtime import cli
from testtime.corruptions import CORRUPTIONS, corrupt
from testtime.data import embedded
from testtime.experiments.registry import list_experiments
from testtime.models import load_model

ROOT = Path(__file__).parents[1]
RUNS = 3
DOCS = sorted((ROOT / "docs").rglob("*.md"))
RUN = [ROOT / "docs" / name for name in ("index.md", "choosing.md")]
RUN += sorted((ROOT / "docs" / "start").glob("*.md")) + sorted((ROOT / "docs" / "guides").glob("*.md"))
BLOCK = re.compile(r'^```python(?: title="([\w.]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)
COMMAND = re.compile(r"^(testtime [^#\n]*)", re.MULTILINE)


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
    """Over three runs (order of the images, seed): 9 points better under corruption, less than one worse on clean images."""
    pytest.importorskip("sklearn", reason="pip install -e '.[demo]'")
    monkeypatch.chdir(tmp_path)
    test, model = embedded().test, load_model("digits-cnn")
    images, labels = test.batch(range(len(test))), test.targets(range(len(test)))
    code = the_ten_lines().replace("range(160)", f"range({len(test)})")
    code = code.replace("y = adapter(x)", "y = adapter(x); predicted.append(y.argmax(1))")
    gain = {}
    for name in ("clean", *CORRUPTIONS):
        x = images if name == "clean" else corrupt(images, name)
        with torch.no_grad():
            shipped = 100 * float((model(x).argmax(1) == labels).float().mean())
        ours = []
        for run in range(RUNS):
            order = torch.randperm(len(x), generator=torch.Generator().manual_seed(run))
            monkeypatch.setattr("testtime.corruptions.corrupt", lambda images, _, x=x[order]: x)
            predicted: list[torch.Tensor] = []
            seeded = code.replace("classes=10)", f"classes=10, seed={run})")
            exec(compile(seeded, "README.md", "exec"), {"predicted": predicted})
            ours.append(100 * float((torch.cat(predicted) == labels[order]).float().mean()))
        gain[name] = [accuracy - shipped for accuracy in ours]
        print(
            f"{name:18} shipped {shipped:5.2f}  adapted {' '.join(f'{accuracy:5.2f}' for accuracy in ours)}"
        )
    clean = gain.pop("clean")
    corrupted = [sum(runs) / len(CORRUPTIONS) for runs in zip(*gain.values(), strict=True)]
    print("gain: clean", *(f"{g:5.2f}" for g in clean), " corrupted", *(f"{g:5.2f}" for g in corrupted))
    assert sum(clean) / RUNS > -1
    assert sum(corrupted) / RUNS > 9


def test_your_own_method(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(ROOT / "examples/your_own_method.py"), run_name="__main__")
    assert capsys.readouterr().out == "HalfTent obeys the laws\n"


def test_drifting_stream(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="pip install -e '.[demo]'")
    runpy.run_path(str(ROOT / "examples/drifting_stream.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 18
    assert lines[0].split()[:3] == ["gaussian_noise", "batch", "0"]


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 120
    assert max(map(len, lines)) <= 128


def test_links_lead_somewhere() -> None:
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS):
        text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        for target in re.findall(r"\]\((?!http|#)([^)#]+)", text):
            assert (page.parent / target).exists(), f"{page.name} links to {target}, which is not there"


@pytest.mark.parametrize("page", [p for p in RUN if p.stem != "few_labels"], ids=lambda page: page.stem)
def test_code_of_the_documentation(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks run in their order, in one namespace; those with a title are also a file.

    The code of few_labels.md is an example with a test of its own.
    """
    for extra in ("sklearn", "PIL", "cv2", "trimesh"):
        pytest.importorskip(extra, reason="pip install -e '.[demo,scenes]'")
    if "transformers" in page.read_text():
        pytest.importorskip("transformers", reason="pip install -e '.[interop]'")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    blocks = BLOCK.findall(page.read_text())
    assert blocks
    for title in {title for title, _ in blocks if title}:
        (tmp_path / title).write_text("".join(code for name, code in blocks if name == title))
        monkeypatch.delitem(sys.modules, title.removesuffix(".py"), raising=False)
    namespace: dict[str, object] = {"__name__": page.stem}
    for _, code in blocks:
        exec(compile(code, str(page), "exec"), namespace)


def commands(page: Path) -> list[list[str]]:
    """The commands of a page: lines of its blocks for a shell, and text in backquotes."""
    text = page.read_text().replace("\\\n", " ")
    found = [c for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) for c in COMMAND.findall(block)]
    found += re.findall(r"`(testtime (?:run|list|report|methods|demo|scenes|space) [^`]+)`", text)
    return [shlex.split(command)[1:] for command in found]


@pytest.mark.parametrize("page", [ROOT / "README.md", *RUN], ids=lambda page: page.stem)
def test_commands_of_the_documentation(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They are parsed, not run; experiments are there by their names."""
    names = {one.name for family in list_experiments().values() for one in family}
    for words in commands(page):
        try:
            arguments = cli.parser().parse_args(words)
        except SystemExit as error:
            pytest.fail(f"{page.name}: testtime {shlex.join(words)}: {capsys.readouterr().err or error}")
        asked = [name for name in getattr(arguments, "names", ()) if not name.endswith(".toml")]
        assert not {*asked} - names, f"{page.name}: testtime {shlex.join(words)} names no experiment"


@pytest.mark.parametrize("name", ["method_pages", "example_pages"])
def test_written_pages_are_up_to_date(name: str) -> None:
    folder = ROOT / "docs" / name.replace("_pages", "s")
    for file, text in importlib.import_module(name).pages().items():
        there = (folder / file).read_text(encoding="utf-8")
        assert there == text, f"docs/{folder.name}/{file} is out of date: python scripts/{name}.py"
    assert {path.name for path in folder.glob("*.md")} == {*importlib.import_module(name).pages()}


def test_docstrings_become_markdown() -> None:
    for extra in ("griffe", "latex2mathml"):
        pytest.importorskip(extra, reason="pip install -e '.[docs]'")
    markdown = importlib.import_module("docstring_markup").markdown
    text = "Cost: one forward of :func:`~a.b.step`.\n\nA step:\n    1. predict;\n    2. update.\n"
    assert markdown(text, {"a.b.step": "a.b.step"}.get) == (
        '**Cost:** one forward of <autoref identifier="a.b.step" optional>`step`</autoref>.\n\n'
        "**A step**\n\n1. predict;\n2. update.\n"
    )
    assert markdown("Args:\n    x: images.\n\n>>> 1 + 1\n2\n").endswith("\n```pycon\n>>> 1 + 1\n2\n```\n")
    formula = markdown(".. math::\n    a &= \\log x \\\\\n    b &= 2\n\nwhere :math:`x` is\n")
    assert formula.startswith('\n<div class="math"><math')
    assert formula.count("<mtr>") == 2
    assert formula.count("&amp;") == formula.count(".. math") == 0
    assert 'where <span class="math"><math' in formula


def test_a_name_without_a_page_and_a_foreign_script_are_faults(tmp_path: Path) -> None:
    pytest.importorskip("griffe", reason="pip install -e '.[docs]'")
    lines = [
        "testtime.build.adapt py:function 1 api/testtime.html#$ -",
        "testtime.parts.losses.entropy py:function 1 a -",
    ]
    packed = zlib.compress("\n".join(lines).encode())
    (tmp_path / "objects.inv").write_bytes(b"# version\n# project\n# version\n# zlib\n" + packed)
    (tmp_path / "page.html").write_text(
        '<script src="https://a.example/b.js"></script><a href="https://c.example">c</a>'
    )
    found = importlib.import_module("check_site").faults(tmp_path)
    assert "testtime.load is in no page of docs/api or docs/methods: add its module there" in found
    assert not [fault for fault in found if fault.startswith(("testtime.adapt ", "testtime.parts.entropy "))]
    assert not [fault for fault in found if "no docstring" in fault]
    assert [fault for fault in found if ".html" in fault] == [
        'page.html loads a file from elsewhere: <script src="https://a.example/b.js">'
    ]


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_site_builds_without_faults(tmp_path: Path) -> None:
    for extra in ("mkdocs", "mkdocstrings", "latex2mathml"):
        pytest.importorskip(extra, reason="pip install -e '.[docs]'")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True)
    assert importlib.import_module("check_site").faults(tmp_path) == []


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "pictures"),
    [
        ("own_images", ["drift-accuracy.svg", "drift-diversity.svg"]),
        ("many_tasks", ["tasks-gain.svg", "tasks.jpg"]),
        ("one_house", ["house-miou.svg", "house.png"]),
    ],
)
def test_examples_with_cells(name: str, pictures: list[str], tmp_path: Path) -> None:
    for extra in ("sklearn", "PIL", "cv2", "trimesh", "altair"):
        pytest.importorskip(extra, reason="pip install -e '.[all]'")
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), "pictures"]
    printed = subprocess.run(
        command, cwd=tmp_path, env=os.environ, check=True, capture_output=True, text=True
    ).stdout
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == pictures
    assert all(0 < path.stat().st_size < 300_000 for path in (tmp_path / "pictures").iterdir())
    if name == "own_images":
        assert "take BN-adapt\n" in printed or "take TENT\n" in printed
    elif name == "many_tasks":
        mious = [float(value) for value in re.findall(r"semseg ([\d.]+)", printed)]
        assert min(mious[1:]) > mious[0] + 3  # new statistics help, and S4T keeps that
    else:
        mious = [float(value) for value in re.findall(r"mIoU +([\d.]+)", printed)]
        assert (
            min(mious[2:]) > max(mious[:2]) + 5
        )  # twenty labels of the place are worth more than 160 of others


def test_choose_without_labels(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn", reason="pip install -e '.[demo]'")
    runpy.run_path(str(ROOT / "examples/choose_without_labels.py"), run_name="__main__")
    printed = capsys.readouterr().out
    assert "take BN-adapt" in printed or "take TENT\n" in printed
    assert "- Not TENT, far too fast: " in printed
