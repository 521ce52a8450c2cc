"""``testtime estimate`` as a user calls it: on own predictions, and on a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from testtime.cli import main


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> np.ndarray:
    """Own predictions of 400 samples in a CSV, and the labels that the user knows how to find."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0.5, 1, 400).round(3)
    right = rng.uniform(size=400) < confidence
    lines = [f"cat,{c}" for c in confidence]
    (tmp_path / "predictions.csv").write_text("\n".join(["predicted,confidence", *lines]))
    return np.where(right, "cat", "dog")


def fill(path: Path, labels: np.ndarray) -> None:
    head, *lines = path.read_text().split()
    path.write_text("\n".join([head, *(line + labels[int(line.split(",")[0])] for line in lines)]))


def test_choose_label_and_estimate(own: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "predictions.csv", "--next", "60"]) == 0
    assert (
        capsys.readouterr().out
        == "next.csv: fill in the last column from the top, then give --labels next.csv\n"
    )
    fill(Path("next.csv"), own)
    again = ["estimate", "predictions.csv", "--labels", "next.csv", "--next", "40", "--out", "more.csv"]
    assert main(again) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith("accuracy ")
    assert printed[1].startswith("60 labels of 400 samples; plain random sampling needs about ")
    assert printed[-1].endswith("--labels next.csv more.csv")
    fill(Path("more.csv"), own)
    ends = []
    for kind in ("wilson", "betting"):
        files = ["--labels", "next.csv", "more.csv", "--interval", kind]
        assert main(["estimate", "predictions.csv", *files]) == 0
        words = capsys.readouterr().out.split()
        ends.append((float(words[6]), float(words[8])))
    truth = 100 * (own == "cat").mean()
    assert all(low < truth < high for low, high in ends)
    assert ends[1][1] - ends[1][0] > ends[0][1] - ends[0][0]


def test_mistakes_are_one_line(own: np.ndarray, capsys: pytest.CaptureFixture[str]) -> None:
    Path("labels.csv").write_text("index,label\n400,cat\n1,cat\n")
    for words, message in (
        ([], "expected --labels, files of labels, or --next N"),
        (["--labels", "labels.csv"], "labels.csv, line 2: expected an index as a whole number from 0 to 399"),
    ):
        assert main(["estimate", "predictions.csv", *words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    for words, message in (
        (
            ["nothing.csv"],
            "nothing.csv: no such file; expected a CSV or NPZ of predictions, or the folder of a run",
        ),
        (["predictions.csv", "--labels", "nothing.csv"], "nothing.csv: no such file; check its spelling"),
    ):
        assert main(["estimate", *words]) == 2
        assert capsys.readouterr().err == f"testtime: {message}\n"


def test_labels_that_name_classes_otherwise_are_remarked_on(
    own: np.ndarray, capsys: pytest.CaptureFixture[str]
) -> None:
    for label, count in (("3", 3), ("cat", 1)):
        Path("labels.csv").write_text(f"index,label\n0,{label}\n1,{label}\n2,3\n")
        assert main(["estimate", "predictions.csv", "--labels", "labels.csv"]) == 0
        printed = capsys.readouterr()
        assert printed.out.startswith("accuracy ")
        remark = f"{count} label{'s are' if count > 1 else ' is'} of classes that are predicted for no sample"
        assert remark in printed.out
        assert printed.out.count("are they named alike? predicted: cat") == 1
