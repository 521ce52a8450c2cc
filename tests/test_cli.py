"""The command line: what it prints, its exit codes, and that mistakes get a sentence and not a traceback."""

import json
from pathlib import Path

import pytest

from testtime.cli import main


def test_bench_lists_the_protocols(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "--list"]) == 0
    out = capsys.readouterr().out
    assert "paper-table-1" in out
    assert "cifar10-open" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "no-such"], "no protocol 'no-such'"),
        (["bench", "cifar10-open", "--methods", "nonsense"], "has no method nonsense"),
        (["bench", "cifar10-open", "--data", "nowhere"], "nowhere"),
        (["bench", "digits-open", "--open-sets", "moon"], "no data set 'moon'"),
        (["report", "nowhere"], "not the folder of a run"),
    ],
)
def test_mistakes(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    extra = ["--out", str(tmp_path / "run")] if arguments[0] == "bench" else []
    assert main([*arguments, *extra]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert "Traceback" not in captured.err


def test_wrong_usage_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["bench", "digits-open", "--seeds", "one"], ["nonsense"]):
        with pytest.raises(SystemExit) as left:
            main(arguments)
        assert left.value.code == 2
    assert "expected numbers with commas" in capsys.readouterr().err


def test_methods_as_table_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    assert "paf-kip" in capsys.readouterr().out
    assert main(["methods", "--json"]) == 0
    found = {m["name"]: m for m in json.loads(capsys.readouterr().out)}
    assert found["paf-kip"]["forwards"] == 3
    assert found["paf-kip"]["backwards"] == 1
    assert found["paf-kip"]["stochastic"] is True
    assert found["paf-kip"]["reference"].endswith("BMVC 2025.")
    assert found["bn-adapt"]["norm"] == ["BatchNorm"]
    assert found["eata"]["source"] == "data"
    assert found["cotta"]["output"] == "teacher"


def test_bench_and_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    out = str(tmp_path / "run")
    arguments = [
        "bench",
        "digits-open",
        "--methods",
        "source,bn-adapt",
        "--limit",
        "10",
        "--batch-size",
        "20",
    ]
    assert main([*arguments, "--out", out]) == 0
    assert capsys.readouterr().out.strip() == out
    assert main(["report", out]) == 0
    printed = capsys.readouterr().out
    assert "BN-adapt" in printed
    assert str(tmp_path / "run" / "report.html") in printed
    assert (tmp_path / "run" / "report.html").is_file()


def test_demo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    out = str(tmp_path / "demo")
    assert main(["demo", "--out", out, "--jobs", "1", "--limit", "10", "--methods", "source,paf-kip"]) == 0
    printed = capsys.readouterr().out
    assert "PAF+KIP" in printed
    assert "report.html" in printed
