"""Files of predictions and labels, signals that need no label, and the samples to label next."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testtime.errors import DataError
from testtime.metrics import Samples
from testtime.metrics.control_variates import Round, estimate_mean
from testtime.metrics.few_labels import (
    Labels,
    Predictions,
    draw_next,
    estimate_or_choose,
    estimate_text,
    label_next,
    logit_signals,
    neyman_probabilities,
    predictions_of,
    read_labels,
    read_predictions,
    write_next,
)
from testtime.metrics.repeated_draws import repeat_draws, repeat_for


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_signals_of_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(7, 5)) * 3
    p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    found = logit_signals(logits)
    assert found["confidence"] == pytest.approx(p.max(axis=1))
    assert found["margin"] == pytest.approx([a[-1] - a[-2] for a in np.sort(p, axis=1)])
    assert found["entropy"] == pytest.approx(-(p * np.log(p)).sum(axis=1))
    assert found["energy"] == pytest.approx(-np.log(np.exp(logits).sum(axis=1)))
    assert logit_signals([[900.0, 0.0]])["entropy"].tolist() == [0.0]


def test_the_probabilities_of_a_draw_are_those_of_the_equation_and_weights_are_at_most_4() -> None:
    p = np.array([0.5, 0.9, 0.999, 0.1, 1.0])
    s = [math.sqrt(x * (1 - x)) for x in (0.5, 0.9, 0.98, 0.1, 0.98)]
    q = neyman_probabilities(p)
    assert q == pytest.approx([0.25 / 5 + 0.75 * one / sum(s) for one in s])
    assert q.sum() == pytest.approx(1)
    assert (1 / (5 * q)).max() <= 4
    rows, own = draw_next(p, 20000, seed=3)
    assert np.bincount(rows) / 20000 == pytest.approx(q, abs=0.015)
    assert own == pytest.approx(q[rows])
    assert (draw_next(p, 9, seed=1)[0] != draw_next(p, 9, seed=2)[0]).any()


def test_signals_of_a_stream() -> None:
    confidence = np.array([0.9, math.nan, 0.3, 0.6])
    found = Predictions(
        np.array(["a", "b", "a", "a"]),
        {"confidence": confidence},
        {"shipped": np.array(["a", "a", "a", "b"])},
    )
    assert [*found.signals] == [
        "confidence",
        "agreement with shipped",
        "confidence nearby",
        "predicted a",
        "predicted b",
    ]
    table = found.table
    assert table[:, 0].tolist() == pytest.approx([0.9, 0.6, 0.3, 0.6])  # the mean of the others
    assert table[:, 1].tolist() == [1, 0, 1, 0]
    assert table[:, 2].tolist() == pytest.approx([0.6] * 4)
    assert table[:, 3].tolist() == [1, 0, 1, 1]
    assert found.chances.tolist() == pytest.approx([0.9, 0.6, 0.3, 0.6])
    assert Predictions(np.array(["a", "b"])).chances.tolist() == [0.5, 0.5]
    long = Predictions(np.array(["a"] * 300), {"confidence": np.arange(300.0)})
    assert long.signals["confidence nearby"][[0, 150, 299]].tolist() == [25.0, 150.0, 274.0]
    many = Predictions(np.arange(21).astype(str))
    assert many.table.shape == (21, 0)  # too many classes to be signals


def test_predictions_of_a_run() -> None:
    def samples(predicted: list[int]) -> Samples:
        n = len(predicted)
        whole, real = np.zeros(n, np.int32), np.full(n, 0.7, np.float32)
        return Samples(
            whole, whole, whole, np.array(predicted, np.int32), real, real, real, real, {"sure": whole == 0}
        )

    found = predictions_of(
        {"TENT": samples([1, 0, 1]), "Source": samples([1, 1, 1]), "part": samples([1])}, "TENT"
    )
    assert found.predicted.tolist() == ["1", "0", "1"]
    assert found.signals["agreement with Source"].tolist() == [1, 0, 1]
    assert found.signals["selected sure"].tolist() == [1, 1, 1]
    assert "agreement with part" not in found.signals


def test_a_csv_and_an_npz_of_the_same_predictions(tmp_path: Path) -> None:
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [3.0, 1.0]])
    np.savez(tmp_path / "p.npz", logits=logits, logits_shipped=-logits, blur=np.array([1, 2, 3]))
    text = "index,predicted,predicted_shipped,blur\n0,0,1,1\n1,1,0,2\n2,0,1.0,3\n"
    packed, plain = read_predictions(tmp_path / "p.npz"), read_predictions(written(tmp_path / "p.csv", text))
    for found in (packed, plain):
        assert found.predicted.tolist() == ["0", "1", "0"]
        assert found.signals["blur"].tolist() == [1, 2, 3]
        assert found.signals["agreement with shipped"].tolist() == [0, 0, 0]
    assert packed.signals["confidence"] == pytest.approx(logit_signals(logits)["confidence"])
    assert "confidence" not in plain.signals


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("confidence\n0.5\n", "expected a column predicted .* got the columns confidence"),
        ("predicted\n", "expected a head and at least one line"),
        ("predicted,blur\na,1\n\n,2\n", "line 4: expected a class as predicted, got nothing"),
        ("predicted,blur\na,high\n", "line 2: expected a number as blur, got high; or leave blur out"),
        ("predicted,blur\na,1\nb\n", r"line 3: expected 2 entries \(predicted, blur\), got 1"),
        ("predicted,predicted\na,b\n", "different names in its head"),
    ],
)
def test_a_csv_that_holds_no_predictions_is_refused(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_predictions(written(tmp_path / "p.csv", text))


def test_an_npz_that_holds_no_predictions_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.npz"
    path.write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"p.npz is damaged .*repair it"):
        read_predictions(path)
    for arrays, message in (
        ({"logits": np.zeros(3)}, r"logits as numbers \(N, C\), got float64 of the shape \(3,\)"),
        ({"predicted": np.zeros(3), "predicted_b": np.zeros(2)}, "predicted_b has 2 entries, predicted 3"),
        (
            {"predicted": np.zeros(3), "blur": np.zeros((3, 2))},
            r"blur has the shape \(6,\)|one number for each",
        ),
    ):
        np.savez(path, **arrays)  # type: ignore[arg-type]
        with pytest.raises(DataError, match=message):
            read_predictions(path)
    np.savez(path, predicted=np.array([1.0, np.nan, 0.0]))
    with pytest.raises(DataError, match=r"p.npz, sample 1: expected a class as predicted, got nothing"):
        read_predictions(path)
    with pytest.raises(FileNotFoundError):
        read_predictions(tmp_path / "none.csv")


STREAM = Predictions(np.array(["cat", "dog", "cat", "cat"]))


def test_files_of_labels_are_rounds(tmp_path: Path) -> None:
    first = written(tmp_path / "a.csv", "index,label\n2,cat\n0,dog\n3,\n")
    second = written(tmp_path / "b.csv", "index,probability,label\n1,0.4,dog\n1,0.4,dog\n")
    rounds, kind, unpredicted = read_labels([first, second], STREAM)
    assert kind == "label"
    assert not unpredicted
    assert rounds[0].rows.tolist() == [2, 0]
    assert rounds[0].values.tolist() == [1, 0]
    assert rounds[0].probabilities is None
    assert rounds[1].values.tolist() == [1, 1]
    assert rounds[1].probabilities.tolist() == [0.4, 0.4]  # type: ignore[union-attr]
    rounds, kind, _ = read_labels([written(tmp_path / "c.csv", "index,value\n1,0.25\n2,1\n")], STREAM)
    assert (rounds[0].values.tolist(), kind) == ([0.25, 1.0], "value")
    with pytest.raises(DataError, match="label or value in all files, got label, value"):
        read_labels([first, tmp_path / "c.csv"], STREAM)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sample,label\n1,cat\n", r"columns index and label \(or value\), got sample, label"),
        ("index,label\n1,cat\n2,\n", "expected at least 2 labels, got 1; fill in the column label"),
        ("index,label\n1,\n2,cat\n", "line 2 has no label, later ones have; label in the order of the file"),
        ("index,label\n1,cat\n4,cat\n", "line 3: expected an index as a whole number from 0 to 3, got 4"),
        ("index,label\n0.5,cat\n1,cat\n", "line 2: expected an index"),
        ("index,label\n1,cat\n0,cat\n1,dog\n", "line 4: sample 1 has a label already; keep one of its lines"),
        ("index,label\none,cat\n1,cat\n", "line 2: expected a number as index, got one"),
        (
            "index,probability,label\n1,,cat\n2,,cat\n",
            "line 2: expected a number as probability, got nothing",
        ),
        ("index,value\n1,high\n2,0.5\n", "line 2: expected a number as value, got high"),
        ("index,value\n1,0.5\n\n\n2,high\n", "line 5: expected a number as value, got high"),
    ],
)
def test_damaged_labels_are_refused_with_their_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_labels([written(tmp_path / "l.csv", text)], STREAM)


def test_files_that_overlap_are_refused_where_a_sample_would_count_twice(tmp_path: Path) -> None:
    stream = Predictions(np.array(["cat"] * 9))

    def read(*texts: str) -> list[int]:
        paths = [written(tmp_path / f"{k}.csv", text) for k, text in enumerate(texts)]
        return [len(one.rows) for one in read_labels(paths, stream).rounds]

    first = "index,label\n2,cat\n0,dog\n5,cat\n"
    message = r"1.csv has 2 samples of .*0.csv, the first is sample 5; .*put both into one file"
    with pytest.raises(DataError, match=message):
        read(first, "index,label\n1,cat\n5,cat\n2,cat\n")
    with pytest.raises(DataError, match=r"1.csv has 1 sample of .*0.csv, the first is sample 0"):
        read(first, "index,label\n1,cat\n0,dog\n")
    with pytest.raises(DataError, match="in its order; give each file of labels once"):
        read(first, "index,label\n2,cat\n0,dog\n5,cat\n7,cat\n")  # a later state of the same file
    drawn = "index,probability,label\n2,0.2,cat\n0,0.1,dog\n"
    with pytest.raises(DataError, match="in its order; give each file of labels once"):
        read(drawn + "7,0.1,cat\n", drawn)
    # draws of two rounds, and a draw after a random sample, may meet a sample again
    again = "index,probability,label\n5,0.3,cat\n2,0.2,cat\n0,0.1,dog\n"
    assert read(first, again, "index,probability,label\n0,0.3,dog\n2,0.2,cat\n") == [3, 3, 2]
    assert read(first, "index,label\n1,cat\n3,cat\n") == [3, 2]


def test_a_sample_with_two_values_is_refused(tmp_path: Path) -> None:
    one = written(tmp_path / "a.csv", "index,label\n2,cat\n0,cat\n")
    two = written(tmp_path / "b.csv", "index,probability,label\n3,0.2,cat\n2,0.2,dog\n")
    with pytest.raises(DataError, match=r"a.csv and .*b.csv have two values for sample 2, .*label it again"):
        read_labels([one, two], STREAM)
    written(two, "index,probability,label\n3,0.2,cat\n1,0.2,dog\n3,0.2,cow\n")
    with pytest.raises(DataError, match=r"b.csv has two values for sample 3, one of them wrong"):
        read_labels([two], STREAM)


def test_labels_of_classes_that_are_never_predicted_are_remarked(tmp_path: Path) -> None:
    labels = read_labels([written(tmp_path / "l.csv", "index,label\n0,cat\n1,bird\n2,bird\n3,cow\n")], STREAM)
    assert labels.unpredicted == {"bird": 2, "cow": 1}
    assert labels.rounds[0].values.tolist() == [1, 0, 0, 0]
    last = estimate_text(STREAM, labels).splitlines()[-1]
    assert last.startswith(
        "3 labels are of classes that are predicted for no sample, and wrong: bird (2), cow (1)"
    )


def test_logits_that_are_not_finite_are_refused_with_their_sample(tmp_path: Path) -> None:
    logits = np.zeros((6, 3))
    logits[4, 1] = logits[5, 0] = np.nan
    np.savez(tmp_path / "p.npz", logits=logits)
    with pytest.raises(DataError, match="2 of 6 samples have others, the first is sample 4"):
        read_predictions(tmp_path / "p.npz")


def stream(samples: int = 600) -> tuple[Predictions, np.ndarray]:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(samples, 3)) * 2
    labels = np.array([rng.choice(3, p=np.exp(z) / np.exp(z).sum()) for z in logits]).astype(str)
    predicted = logits.argmax(axis=1).astype(str)
    return Predictions(predicted, logit_signals(logits)), labels


def test_two_rounds_from_the_first_choice_to_the_estimate(tmp_path: Path) -> None:
    predictions, labels = stream()
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    text = estimate_or_choose(predictions, [], count=40, out=one)
    assert text == f"{one}: fill in the last column from the top, then give --labels {one}"

    def fill(path: Path) -> None:
        head, *lines = path.read_text().split()
        path.write_text("\n".join([head, *(line + labels[int(line.split(",")[0])] for line in lines)]))

    fill(one)
    rounds = read_labels([one], predictions).rounds
    expected = draw_next(predictions.chances, 40, 0)
    assert rounds[0].rows.tolist() == expected[0].tolist()
    assert rounds[0].probabilities == pytest.approx(expected[1], rel=1e-8)
    text = estimate_or_choose(predictions, [one], count=60, out=two)
    assert text.splitlines()[-1].endswith(f"--labels {one} {two}")
    fill(two)
    labelled = read_labels([one, two], predictions)
    found = estimate_mean(labelled.rounds, predictions.table)
    truth = (labels == predictions.predicted).mean()
    assert found.low < truth < found.high
    printed = estimate_text(predictions, labelled)
    ends = f"{100 * found.low:.1f} to {100 * found.high:.1f}"
    assert printed.splitlines()[0] == f"accuracy {100 * found.mean:.1f} %, 95 % interval {ends} %"
    assert "100 labels of 600 samples" in printed
    assert "variates: " in printed
    assert estimate_text(predictions, labelled, "betting").splitlines()[0] != printed.splitlines()[0]
    with pytest.raises(ValueError, match=r"two.csv is there already.*--out"):
        estimate_or_choose(predictions, [one], count=5, out=two)
    with pytest.raises(ValueError, match=r"expected --labels, .* or --next N"):
        estimate_or_choose(predictions, [])


def test_values_of_the_user_and_a_draw_by_what_their_labels_show(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    blur = rng.uniform(size=500)
    predictions = Predictions(np.full(500, "image"), {"blur": blur})
    value = np.where(blur > 0.8, rng.integers(0, 2, 500), 0.98)
    rows = rng.permutation(500)[:100]
    rounds = [Round(rows, value[rows])]
    next_rows, q = label_next(predictions, rounds, 2000)
    assert (blur[next_rows] > 0.8).mean() > 1.2 * (blur > 0.8).mean()
    assert (q >= 0.25 / 500).all()
    text = estimate_text(predictions, Labels(rounds, "value"), "student")
    assert text.startswith("mean value ")
    assert "variates: blur" in text
    path = write_next(tmp_path / "n.csv", np.array([4, 2]), np.array([0.25, 0.125]), "value")
    assert path.read_text() == "index,probability,value\n4,0.25,\n2,0.125,\n"


def test_draws_are_repeated_for_several_numbers_of_labels() -> None:
    predictions, labels = stream(300)
    right = labels == predictions.predicted
    seen: list[tuple[int, int]] = []
    settings = {"design": "sparse", "labels": [12, 30], "draws": 20, "seed": 5}
    found = repeat_for(right, predictions, settings, lambda *at: seen.append(at))
    assert (found["accuracy"], found["samples"]) == (pytest.approx(100 * right.mean()), 300)
    assert seen == [(1, 2), (2, 2)]
    again = repeat_draws(right, predictions.table, predictions.chances, 30, "sparse", draws=20, seed=5)
    assert found["labels"]["30"] == again
    assert again["covered"] <= 20
    assert found["labels"]["12"]["width"] > again["width"] > 0


def test_files_that_would_mislead_are_refused(tmp_path: Path) -> None:
    file, labels = tmp_path / "p.csv", tmp_path / "l.csv"
    file.write_text("predicted,confidence\na,90\nb,80\na,70\n")
    labels.write_text("index,label\n0,a\n2,b\n")
    predictions = read_predictions(file)
    with pytest.raises(DataError, match=r"confidence in \[0, 1\], got 90"):
        label_next(predictions, [], 2)
    with pytest.raises(DataError, match="give each file of labels once"):
        read_labels([labels, labels], predictions)
    file.write_text("predicted;confidence\na;0.9\n")
    with pytest.raises(DataError, match="columns separated by commas, got ';'"):
        read_predictions(file)
    for wrong in (np.array(3), np.zeros((4, 2)), np.zeros(0)):
        np.savez(tmp_path / "p.npz", predicted=wrong)
        with pytest.raises(DataError, match="class of each sample as predicted"):
            read_predictions(tmp_path / "p.npz")


def test_signals_that_explain_every_value_are_worth_the_whole_stream() -> None:
    predicted = np.array(["a", "b", "c"] * 100)
    predictions = Predictions(predicted, {}, {"predicted": predicted})
    rows = np.arange(0, 300, 4)
    labels = Labels([Round(rows, (predicted[rows] == "a").astype(float))])
    lines = estimate_text(predictions, labels).splitlines()
    assert lines[0].startswith("accuracy 33.3 %, ")
    assert lines[1] == (
        "75 labels of 300 samples; plain random sampling needs all of them for the same standard error"
    )


def test_predictions_in_another_order_than_their_index_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "p.csv"
    file.write_text("index,predicted\n0,a\n1,b\n")
    assert read_predictions(file).predicted.tolist() == ["a", "b"]
    file.write_text("index,predicted\n0,a\n2,b\n1,c\n")
    with pytest.raises(
        DataError, match=r"line 3: expected the index 1, got 2; labels name samples by their place"
    ):
        read_predictions(file)
    np.savez(tmp_path / "p.npz", predicted=np.arange(3), index=np.arange(1, 4))
    with pytest.raises(DataError, match=r"sample 0: expected the index 0, got 1"):
        read_predictions(tmp_path / "p.npz")


def test_names_that_end_in_a_number_stay_apart(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("predicted\nv1.0\nv1\n3.0\n3\n-1.0\n")
    assert read_predictions(tmp_path / "p.csv").predicted.tolist() == ["v1.0", "v1", "3", "3", "-1"]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: draw_next([0.5, 0.5], -1), "number of samples to label is a whole number from 0, got -1"),
        (lambda: draw_next([0.5, 0.5], 1, -1), "seed is a whole number from 0, got -1"),
        (lambda: draw_next([], 1), r"chance of each sample as a number \(N,\), got the shape \(0,\)"),
        (lambda: draw_next([0.5, np.nan], 1), "got NaN"),
    ],
)
def test_draws_that_cannot_be_made_are_refused(draw: Callable[[], Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        draw()


def test_another_kind_of_interval_is_refused(tmp_path: Path) -> None:
    (tmp_path / "l.csv").write_text("index,label\n0,a\n1,a\n")
    predictions = Predictions(np.array(["a", "a", "b"]))
    labels = read_labels([tmp_path / "l.csv"], predictions)
    with pytest.raises(ValueError, match="interval is one of 'wilson', 'student', got 'wald'"):
        estimate_text(predictions, labels, "wald")  # type: ignore[arg-type]
