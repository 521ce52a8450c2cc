"""Mistakes get one line that says what to do, exit with 2, and leave nothing behind; also in former spellings."""

import shlex
from importlib import util
from pathlib import Path

import pytest

from testtime import errors
from testtime.cli import main

RUN = "run digits-open --rows source"
OWN = "run no-labels --data . --model digits-cnn"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("run no-such", "no experiment 'no-such'"),
        ("run cifar10-opne", "no experiment 'cifar10-opne' (did you mean 'cifar10-open'?); testtime list"),
        ("run digits-open --rows pafkipp", "has no row 'pafkipp' (did you mean 'PAF+KIP'?); its rows are"),
        ("run digits-open --rows nonsense", "has no row 'nonsense'"),
        (f"{RUN} --method tnet", "there is no method 'tnet' (did you mean 'tent'?)"),
        (f"{RUN} --limit -3", "--limit: expected a whole number from 1, got '-3'"),
        (f"{RUN} --limit 0", "--limit: expected a whole number from 1, got '0'"),
        (f"{RUN} --limit some", "--limit: expected a whole number from 1, got 'some'"),
        (f"{RUN} --limt 3", "no option '--limt' (did you mean '--limit'?)"),
        (f"{RUN} --seeds ''", "--seeds: expected one or more, with commas between"),
        (f"{RUN} --seeds 1,2,1", "--seeds: 1 stands twice in '1,2,1'"),
        (f"{RUN} --seeds -1", "--seeds: expected numbers from 0"),
        (f"{RUN} --seeds one", "--seeds: expected numbers with commas"),
        (f"{RUN} --jobs 0", "--jobs: expected a whole number from 1"),
        (f"{RUN} --device gpu", "--device: no device 'gpu' here; there is cpu"),
        (f"{RUN} --precision half", "--precision: no choice 'half'; there are auto, float32, bfloat16"),
        (f"{RUN} --data nowhere", "--data nowhere: no such folder"),
        (f"{RUN} --set batch_size=0", "a batch holds at least 1 image, got batch_size 0"),
        (f"{RUN} --set batch_size=1", "a batch of 1 with 1 unknown for each known image"),
        (f"{RUN} --set severity=9", "severity is a whole number from 1 to 5, got 9"),
        (f"{RUN} --set order=mixd", "no order 'mixd' (did you mean 'mixed'?)"),
        (f"{RUN} --set 'open_sets=[\"moon\"]'", "no data set 'moon'"),
        (f"{RUN} --set 'open_sets=[\"photograph\"]'", "(did you mean 'photographs'?)"),
        (f"{RUN} --set batch_size=many", "expected the setting batch_size in the form of 200, got 'many'"),
        (
            f"{RUN} --set 'corruptions=[fog]'",
            "got '[fog]'; a list is JSON: 'corruptions=[\"gaussian_noise\"]'",
        ),
        (f"{RUN} --set pace=slow", "expected the setting pace in the form of 1, got 'slow'"),
        (f"{RUN} --set target=true", "expected the setting target in the form of 0.5, got True"),
        (f"{RUN} --set rounds=1.5", "expected the setting rounds in the form of 1, got 1.5"),
        (
            f"{RUN} --set 'open_sets=[3]'",
            "expected the setting open_sets in the form of ['textures'], got [3]",
        ),
        (f"{RUN} --set 'corruptions=[[\"fog\"]]'", "expected the setting corruptions in the form of ['gau"),
        ("run no-labels --set mirror=1", "expected the setting mirror in the form of True, got 1"),
        ("run no-labels --set severity=high", "expected the setting severity in the form of 5, got 'high'"),
        ("run failure-zoo --set source=3", "expected the setting source in the form of 'images', got 3"),
        (
            "run space-main --set 'encoders=[3]'",
            "expected the setting encoders in the form of ['name'], got [3]",
        ),
        (f"{RUN} --set oder=mixed", "no setting of digits-open 'oder' (did you mean 'order'?)"),
        ("run digits --set epochs=0", "epochs is a whole number from 1, got 0"),
        ("run digits --set 'corruptions=[\"foggy\"]'", "no corruption 'foggy' (did you mean 'fog'?)"),
        ("run digits --set 'corruptions=[]'", "the list of corruptions is empty"),
        ("run digits --seeds 4294967296", "expected seeds up to 4294967295"),
        (f"{RUN} --method my_method.Mine", "there is no method 'my_method.Mine'; an own class is named as"),
        ("run no-labels --data .", "own images need --model, the network that is in use"),
        ("run no-labels --data . --model digit-cnn", "(did you mean 'digits-cnn'?)"),
        (f"{OWN} --set images=nowhere", "nowhere: no such folder"),
        ("bench cifar10-opne", "(did you mean 'cifar10-open'?)"),
        ("bench digits-open --limit 0", "--limit: expected a whole number from 1"),
        ("demo --limit 0", "--limit: expected a whole number from 1"),
        ("demo --jobs -1", "--jobs: expected a whole number from 1"),
        ("demo --rows tnet", "has no row 'tnet' (did you mean 'TENT'?)"),
        ("scenes make --spaces 0", "--spaces: expected a whole number from 1"),
        ("scenes make --frames 0", "--frames: expected a whole number from 1"),
        ("scenes make --size 0", "--size: expected pixels as 64 or 48x64"),
        ("scenes make --style defualt", "(did you mean 'default'?)"),
        ("scenes make --jobs 0", "--jobs: expected a whole number from 1"),
        ("scenes make --backend numby", "--backend: no choice 'numby' (did you mean 'numpy'?)"),
        ("multitask train --iterations 0", "--iterations: expected a whole number from 1"),
        ("multitask train --device gpu", "--device: no device 'gpu' here"),
        ("multitask train --data nowhere", "--data nowhere: no such folder"),
        ("multitask train --preset huge", "no preset 'huge'; there are tiny, paper"),
        ("multitask bench table1 --seeds 0,0", "--seeds: 0 stands twice"),
        ("multitask bench tabel1", "no experiment 'multitask-tabel1' (did you mean 'multitask-table1'?)"),
        ("run multitask-table1 --rows s4", "has no row 's4' (did you mean 'S4T'?)"),
        ("run multitask-table1 --set preset=huge", "no preset 'huge'; there are tiny, paper"),
        (
            "multitask analyse affinty",
            "no experiment 'multitask-affinty' (did you mean 'multitask-affinity'?)",
        ),
        ("multitask demo --seed -1", "--seeds: expected numbers from 0"),
        ("multitask tarin", "no choice 'tarin' (did you mean 'train'?)"),
        ("run space-mian", "no experiment 'space-mian' (did you mean 'space-main'?)"),
        ("space bench main --seeds 1 1", "--seeds: 1 stands twice"),
        ("space bench main --jobs 0", "--jobs: expected a whole number from 1"),
        ("run space-main --set preset=huge", "no preset 'huge'; there are tiny"),
        ("space ingest . --size 20", "--size 20 is not a multiple of --patch 8"),
        ("space ingest . --blur 2", "--blur: expected a number from 0 to 1"),
        ("space ingest . --fps 0", "--fps: expected a number above 0"),
        ("space ingest . --steps 0", "--steps: expected a whole number from 1"),
        ("space ingest nowhere", "nowhere: no such file or folder"),
        ("space demo --jobs 0", "--jobs: expected a whole number from 1"),
        ("report nowhere", "nowhere is not the folder of a run: it has no run.json; testtime run makes one"),
        ("recommend nowhere", "nowhere is not the folder of a run"),
        ("list onlin", "no family 'onlin' (did you mean 'online'?)"),
        ("rnu digits-open", "no choice 'rnu' (did you mean 'run'?); there are run, list, report"),
        ("space ingets .", "no choice 'ingets' (did you mean 'ingest'?)"),
        ("", "the following arguments are required: COMMAND"),
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
    words = shlex.split(command)
    out = (
        ["--out", "run"]
        if words and words[0] in ("run", "bench", "demo", "scenes", "space", "multitask")
        else []
    )
    try:
        code = main([*words, *out])
    except SystemExit as left:
        code = int(str(left.code))
    captured = capsys.readouterr()
    assert code == 2
    (line,) = [
        one for one in captured.err.splitlines() if not one.startswith("DeprecationWarning: testtime ")
    ]
    assert message in line
    assert captured.out == ""
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "command", ["run digits-open", "demo", "scenes make", "space demo", "space ingest ."]
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
