"""Candidates in shadow: the run, its files, that it goes on, that labels stay out of it, and the advice."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from testtime.bench import sets
from testtime.bench.cell import make_stream
from testtime.bench.protocol import Row
from testtime.bench.protocols import protocol
from testtime.bench.shadow import Shadow, advise, advise_text, judged, read_signs, write_advice
from testtime.cli import main
from testtime.parts import adam
from testtime.streams import Stream

ROWS = (Row("Source", "Source"), Row("TENT", "Tent"), Row("hot", "Tent", {"optimizer": adam(5.0)}))


def stream(limit: int = 30) -> Stream:
    small = replace(protocol("digits-open"), corruptions=("fog", "contrast"))
    column = replace(small.columns[0], open_set=None, batch_size=10)
    return make_stream(small, column, 0, ".", limit)


def shadow(**changes: object) -> Shadow:
    settings = {"rows": ROWS, "model": "digits-cnn", "data": ".", "stream": stream()}
    return Shadow(**{**settings, **changes})  # type: ignore[arg-type]


def quiet(line: str) -> None:
    """Nobody listens."""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shadow")
    shadow().run(out, {"stream": "digits"}, quiet)
    return out


def test_images_are_mirrored_where_the_model_allows_it(run: Path) -> None:
    assert not json.loads((run / "shadow.json").read_text())["mirror"]
    assert shadow(model="cifar10-resnet20-augmix").mirrors
    assert shadow(mirror=True).mirrors
    assert not shadow(model="cifar10-resnet20-augmix", mirror=False).mirrors


def test_a_run_holds_the_signs_of_every_candidate(run: Path) -> None:
    about = json.loads((run / "shadow.json").read_text())
    assert (about["candidates"], about["batches"], about["images"]) == (["Source", "TENT", "hot"], 6, 60)
    seen = read_signs(run)
    assert list(seen) == ["Source", "TENT", "hot"]
    assert all(len(signs) == 6 and sum(s.images for s in signs) == 60 for signs in seen.values())
    assert all(s.agreement == 1 and not s.updated for s in seen["Source"])
    assert all(s.updated for s in seen["TENT"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', "[" * 10_000, "\x00"])
def test_damaged_files_are_named(text: str, tmp_path: Path, run: Path) -> None:
    for name in ("shadow.json", "signs/tent.jsonl", "looks.npy", "judged/tent.json"):
        folder = tmp_path / name.replace("/", "-")
        shutil.copytree(run, folder)
        (folder / name).write_text(text)
        with pytest.raises(ValueError, match=rf"{name}.* is damaged .*; .*delete it"):
            judged(folder), advise(folder)


def test_the_truth_is_kept_apart_and_right(run: Path) -> None:
    model, _ = sets.source_model("digits-cnn", ".")
    right = [float((model(b.x).argmax(1) == b.y).float().sum()) for b in stream()]
    assert judged(run)["Source"] == pytest.approx(100 * sum(right) / 60)
    for name in ("signs", "shadow.json"):
        text = (
            (run / name).read_text() if name.endswith("json") else (run / name / "source.jsonl").read_text()
        )
        assert "accuracy" not in text


def test_no_label_changes_the_signs(tmp_path: Path, run: Path) -> None:
    def bare(one: Stream) -> Stream:
        domains = tuple(replace(d, images=replace(d.images, labels=None, classes=())) for d in one.domains)
        return replace(one, domains=domains)

    shadow(rows=ROWS[:2], stream=bare(stream())).run(tmp_path, {"stream": "bare"}, quiet)
    assert judged(tmp_path) == {}
    for name, signs in read_signs(tmp_path).items():
        for one, other in zip(signs, read_signs(run)[name], strict=True):
            assert replace(one, milliseconds=0) == replace(other, milliseconds=0)


def test_a_run_goes_on_and_is_added_to(tmp_path: Path) -> None:
    shadow(rows=ROWS[:1]).run(tmp_path, {"stream": "digits"}, quiet)
    before = (tmp_path / "signs" / "source.jsonl").read_text()
    (tmp_path / "signs" / "tent.part").write_text("half a line")
    said: list[str] = []
    shadow(rows=ROWS[:2]).run(tmp_path, {"stream": "digits"}, said.append)
    assert said == ["Source: finished already"]
    assert (tmp_path / "signs" / "source.jsonl").read_text() == before
    assert list(read_signs(tmp_path)) == ["Source", "TENT"]
    with pytest.raises(ValueError, match="another batches, images"):
        shadow(stream=stream(10)).run(tmp_path, {"stream": "digits"}, quiet)


def test_signs_of_another_version_are_told(tmp_path: Path) -> None:
    shadow(rows=ROWS[:1]).run(tmp_path, {"stream": "digits"}, quiet)
    file = tmp_path / "signs" / "source.jsonl"
    file.write_text(file.read_text().replace('"changed"', '"mirrored"'))
    with pytest.raises(ValueError, match="was written by another version; delete"):
        read_signs(tmp_path)


def test_what_cannot_run_is_left_out_and_said(tmp_path: Path) -> None:
    said: list[str] = []
    rows = (Row("EATA", "EATA"), Row("CoTTA", "CoTTA"))
    with pytest.raises(ValueError, match="no candidate is left"):
        shadow(rows=rows).run(tmp_path, {}, said.append)
    assert said[0].startswith("EATA: left out, it must see images of the source")
    assert said[1].startswith("CoTTA: left out, it takes 34 forwards a batch")


def test_the_one_that_destroys_itself_is_not_taken(run: Path) -> None:
    advice = advise(run)
    assert judged(run)["hot"] < 40
    assert advice.name != "hot"
    text = advise_text(advice, judged(run))
    assert f"Take {advice.name}." in text
    best = max(judged(run).values())
    assert f"{best - judged(run)[advice.name]:.1f} points less" in text
    page = write_advice(run).read_text()
    assert f"<h1>Take {advice.name}</h1>" in page
    assert page.count('<tr><th scope="row">') == len(advice.candidates)


def test_an_advice_before_all_are_finished_says_so(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    shutil.copytree(run, out)
    assert main(["recommend", str(out)]) == 0
    assert "that are finished" not in capsys.readouterr().out
    (out / "signs" / "hot.jsonl").unlink()
    assert main(["recommend", str(out)]) == 0
    assert ", of the 2 of 3 candidates that are finished." in capsys.readouterr().out
    assert ", of the 2 of 3 candidates that are finished</h1>" in (out / "recommendation.html").read_text()


def test_a_folder_of_images_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    folder, out = tmp_path / "mine", tmp_path / "run"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (7, 20, 24, 3), dtype=np.uint8)
    for number, one in enumerate(pixels):
        image.fromarray(one).save(folder / f"{number}.png")
    base = ["bench", "--no-labels", "--images", str(folder), "--out", str(out)]
    assert main([*base, "--model", "digits-cnn", "--methods", "source,tent", "--batch-size", "4"]) == 0
    assert main(["recommend", str(out), "--judge"]) == 0
    printed = capsys.readouterr().out
    assert "Take " in printed
    assert "Judged" not in printed  # there were no labels
    assert [s.images for s in read_signs(out)["TENT"]] == [4, 3]


def test_damaged_pictures_are_skipped_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("PIL.Image")
    folder = tmp_path / "mine"
    folder.mkdir()
    for number in range(3):
        image.new("RGB", (20, 24), (number,) * 3).save(folder / f"{number}.png")
    (folder / "1.png").write_bytes((folder / "1.png").read_bytes()[:50])
    base = ["bench", "--no-labels", "--images", str(folder), "--model", "digits-cnn", "--methods", "source"]
    assert main([*base, "--out", str(tmp_path / "a")]) == 2
    assert "--skip-damaged" in capsys.readouterr().err
    assert main([*base, "--out", str(tmp_path / "b"), "--skip-damaged"]) == 0
    assert "mine: left out 1 damaged pictures: 1.png" in capsys.readouterr().out
    about = json.loads((tmp_path / "b" / "shadow.json").read_text())
    assert (about["images"], about["damaged"]) == (2, {"mine": ["1.png"]})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bench", "--no-labels"], "needs a stream"),
        (["bench", "--images", "x", "digits-open"], "add --no-labels"),
        (["bench", "--no-labels", "--images", "x"], "need --model"),
        (["recommend", "nowhere"], "run testtime bench --no-labels first"),
    ],
)
def test_mistakes_get_a_sentence(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
