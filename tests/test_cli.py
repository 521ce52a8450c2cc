"""The command line: what it prints, its exit codes, and that mistakes get a sentence and not a traceback."""

import json
import shlex
from importlib import util
from pathlib import Path

import pytest

from testtime import __version__, errors, processor
from testtime.bench.grid import Grid
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
        (["bench", "cifar10-opne"], "no protocol 'cifar10-opne' (did you mean 'cifar10-open'?); there are"),
        (
            ["bench", "digits-open", "--methods", "pafkipp"],
            "has no method pafkipp (did you mean 'paf-kip'?); it has",
        ),
        (["bench", "digits-open", "--open-sets", "photograph"], "(did you mean 'photographs'?)"),
        (["bench", "digits-open", "--batch-size", "1"], "a batch of 1 with 1 unknown for each known image"),
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


BENCH = "bench digits-open --methods source"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{BENCH} --limit -3", "--limit: expected a whole number from 1, got '-3'"),
        (f"{BENCH} --limit 0", "--limit: expected a whole number from 1, got '0'"),
        (f"{BENCH} --limit some", "--limit: expected a whole number from 1, got 'some'"),
        (f"{BENCH} --batch-size 0", "--batch-size: expected a whole number from 1"),
        (f"{BENCH} --seeds ''", "--seeds: expected one or more, with commas between"),
        (f"{BENCH} --seeds 1,2,1", "--seeds: 1 stands twice in '1,2,1'"),
        (f"{BENCH} --seeds -1", "--seeds: expected numbers from 0"),
        (f"{BENCH} --jobs 0", "--jobs: expected a whole number from 1"),
        (f"{BENCH} --device gpu", "--device: no device 'gpu' here; there is cpu"),
        (f"{BENCH} --severity 9", "--severity: no choice 9; there are 1, 2, 3, 4, 5"),
        (f"{BENCH} --precision half", "--precision: no choice 'half'; there are auto, float32, bfloat16"),
        (f"{BENCH} --order mixd", "--order: no choice 'mixd' (did you mean 'mixed'?)"),
        (f"{BENCH} --open-sets moon", "no data set 'moon'"),
        (f"{BENCH} --data nowhere", "--data nowhere: no such folder"),
        (f"{BENCH} --no-mirror", "--no-mirror needs --no-labels"),
        (f"{BENCH} --no-labels --jobs 2", "--no-labels is one stream in one process"),
        (f"{BENCH} --no-labels --seeds 0,1", "--no-labels is one stream in one process"),
        (f"{BENCH} --model digits-cnn", "--model needs --images DIR"),
        ("bench --no-labels --images .", "--images need --model NAME"),
        ("bench --no-labels --images . --model digits-cnn --limit 3", "--limit belongs to a protocol"),
        (
            "bench --no-labels --images . --model digits-cnn --batch-size 0",
            "--batch-size: expected a whole number",
        ),
        ("bench --no-labels --images . --model digit-cnn", "(did you mean 'digits-cnn'?)"),
        ("bench --no-labels --images nowhere --model digits-cnn", "--images nowhere: no such file or folder"),
        ("demo --limit 0", "--limit: expected a whole number from 1"),
        ("demo --jobs -1", "--jobs: expected a whole number from 1"),
        ("demo --methods tnet", "has no method tnet (did you mean 'tent'?)"),
        ("scenes make --spaces 0", "--spaces: expected a whole number from 1"),
        ("scenes make --frames 0", "--frames: expected a whole number from 1"),
        ("scenes make --size 0", "--size: expected pixels as 64 or 48x64"),
        ("scenes make --style defualt", "(did you mean 'default'?)"),
        ("scenes make --jobs 0", "--jobs: expected a whole number from 1"),
        ("multitask train --iterations 0", "--iterations: expected a whole number from 1"),
        ("multitask train --device gpu", "--device: no device 'gpu' here"),
        ("multitask train --data nowhere", "--data nowhere: no such folder"),
        ("multitask bench table1 --seeds 0,0", "--seeds: 0 stands twice"),
        ("multitask bench tabel1", "no study 'tabel1' (did you mean 'table1'?)"),
        ("multitask bench table1 --rows s4", "has no row s4 (did you mean 'S4T'?)"),
        ("multitask bench table1 --preset huge", "no preset 'huge'; there are tiny, paper"),
        ("multitask analyse affinty", "(did you mean 'affinity'?)"),
        ("multitask demo --seed -1", "--seed: expected a whole number from 0"),
        ("space bench mian", "no experiment 'space-mian' (did you mean 'space-main'?)"),
        ("space bench main --seeds 1 1", "--seeds: 1 stands twice"),
        ("space bench main --jobs 0", "--jobs: expected a whole number from 1"),
        ("space ingest . --size 20", "--size 20 is not a multiple of --patch 8"),
        ("space ingest . --blur 2", "--blur: expected a number from 0 to 1"),
        ("space ingest . --fps 0", "--fps: expected a number above 0"),
        ("space ingest . --steps 0", "--steps: expected a whole number from 1"),
        ("space demo --jobs 0", "--jobs: expected a whole number from 1"),
        ("rnu digits-open", "no choice 'rnu' (did you mean 'run'?)"),
        ("multitask benhc", "no choice 'benhc' (did you mean 'bench'?)"),
    ],
)
def test_a_refused_call_is_one_line_and_leaves_nothing(
    command: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    out = [] if "benhc" in command or "rnu" in command else ["--out", "run"]
    try:
        code = main([*shlex.split(command), *out])
    except SystemExit as left:
        code = int(str(left.code))
    captured = capsys.readouterr()
    assert code == 2
    assert message in captured.err
    lines = [
        line for line in captured.err.splitlines() if not line.startswith("DeprecationWarning: testtime")
    ]
    assert len(lines) == 1
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", ["bench digits-open", "demo", "scenes make", "multitask demo", "space demo"]
)
def test_results_do_not_go_into_a_file(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(SystemExit) as left:
        main([*command.split(), "--out", str(tmp_path / "file")])
    assert left.value.code == 2
    assert f"{tmp_path / 'file'} is a file; expected a folder" in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == "mine"


def test_all_that_a_command_lacks_is_named_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = util.find_spec
    gone = {"PIL", "cv2", "vector_quantize_pytorch", "pycocotools"}
    monkeypatch.setattr(errors, "find_spec", lambda name: None if name in gone else real(name))
    assert main(["run", "space-demo", "--out", str(tmp_path / "run")]) == 2
    assert capsys.readouterr().err == (
        "testtime: Pillow, opencv-python-headless, vector-quantize-pytorch, pycocotools are not installed; they come with "
        "testtime[images,scenes,space]: pip install -e '.[images,scenes,space]' in the folder of testtime's source\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert left.value.code == 0
    assert capsys.readouterr().out == f"testtime {__version__}\n"


def test_a_run_in_float32_goes_on_where_auto_would_take_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("sklearn")
    command = ["bench", "digits-open", "--methods", "source", "--limit", "4", "--batch-size", "8"]
    command += ["--out", str(tmp_path / "run")]
    monkeypatch.setattr(processor, "_features", set)
    assert main(command) == 0
    about = json.loads((tmp_path / "run" / "run.json").read_text())
    assert about["precision"] == "float32"
    path = tmp_path / "run" / "run.json"
    path.write_text(
        json.dumps({name: value for name, value in about.items() if name != "precision"})
    )  # an old one
    monkeypatch.setattr(processor, "_features", lambda: {"avx512_bf16"})
    assert Grid(tmp_path / "run").precision() == "float32"
    assert main(command) == 0
    assert "1 of 1 cells are finished already" in capsys.readouterr().err
    assert json.loads(path.read_text())["cells"] == about["cells"]


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
