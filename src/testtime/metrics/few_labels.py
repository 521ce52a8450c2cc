r"""Files for an estimate from few labels: predictions of a deployment, labels, and the samples to label next.

A file of predictions has the samples of a stream in their order, one in each line; the first has the index 0.

- CSV: a column ``predicted`` with the predicted class, and any further columns of numbers as signals.
- NPZ: ``logits`` (N, C), or ``predicted`` (N,), and any further arrays (N,) of numbers as signals.
- In both, ``predicted_NAME`` is the prediction of another model (in an NPZ also ``logits_NAME``), such as the shipped one.

A file of labels is a CSV with the columns ``index`` and ``label``, or ``index`` and ``value`` where the quality of a sample is
a number in [0, 1], such as the mIoU of an image. A column ``probability`` says that the samples were drawn by
:func:`draw_next`; without it they are a random sample of the stream.

The next samples to label are drawn where it is most uncertain whether the prediction is right, as in the allocation of Neyman
(1934), with a uniform share :math:`u` so that no weight is above :math:`1/u`:

.. math:: q_i = \frac uN + (1 - u) \frac{\sqrt{p_i (1 - p_i)}}{\sum_j \sqrt{p_j (1 - p_j)}}

where :math:`p_i`, cut to [0.02, 0.98], is the expected value of the sample: the fitted function of the signals, or, before
there are labels, the confidence of the prediction.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple
from zipfile import BadZipFile

import numpy as np
from numpy.typing import ArrayLike, NDArray

from testtime.errors import DataError
from testtime.files import damaged, write_text
from testtime.metrics.betting import betting_interval
from testtime.metrics.control_variates import Interval, Round, estimate_mean, fit_rounds, standardise
from testtime.metrics.next_draws import draw_next
from testtime.metrics.next_draws import neyman_probabilities as neyman_probabilities
from testtime.metrics.summary import Samples

__all__ = [
    *(
        "Predictions",
        "draw_next",
        "estimate_or_choose",
        "estimate_text",
        "label_next",
        "logit_signals",
        "neyman_probabilities",
    ),
    *("Labels", "predictions_of", "read_labels", "read_predictions", "write_next"),
]

Floats = NDArray[np.float64]
CLASSES = 20  # up to which the predicted class itself is a signal
NEAR = 101  # samples of the stream over which the confidence is averaged
REPAIR = "repair it, or write it again"


@dataclass(eq=False)
class Predictions:
    """Predictions of the N samples of a stream in their order, and signals that need no label.

    Args:
        predicted: names of the predicted classes, (N,).
        signals: numbers (N,) of each signal by name; one that is not finite counts as the mean of the others.
        others: predicted classes (N,) of other models by name; agreement with them becomes a signal.
    """

    predicted: NDArray[np.str_]
    signals: dict[str, Floats] = field(default_factory=dict)
    others: Mapping[str, NDArray[np.str_]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, other in self.others.items():
            self.signals[f"agreement with {name}"] = (other == self.predicted).astype(float)
        if "confidence" in self.signals:
            self.signals["confidence nearby"] = _moving_mean(_filled(self.signals["confidence"]))
        names = np.unique(self.predicted)
        if len(names) <= CLASSES:
            self.signals |= {f"predicted {name}": (self.predicted == name).astype(float) for name in names}
        for name, values in self.signals.items():
            if values.shape != self.predicted.shape:
                counts = f"{len(self.predicted)} samples, {name} has the shape {values.shape}"
                raise DataError(f"expected one number for each sample, got {counts}")

    @property
    def table(self) -> Floats:
        """The signals as columns, (N, K)."""
        columns = [_filled(values) for values in self.signals.values()]
        return np.stack(columns, axis=1) if columns else np.zeros((len(self.predicted), 0))

    @property
    def chances(self) -> Floats:
        """The chance of each prediction to be right before there are labels, (N,): its confidence, or 0.5 without one."""
        found = self.signals.get("confidence")
        if found is None:
            return np.full(len(self.predicted), 0.5)
        chances = _filled(found)
        if len(wrong := chances[(chances < 0) | (chances > 1)]):
            raise DataError(
                f"expected a confidence in [0, 1], got {wrong[0]:g}; divide it, or rename the column"
            )
        return chances


def logit_signals(logits: ArrayLike) -> dict[str, Floats]:
    """Return confidence, margin of the two highest probabilities, entropy in nats and energy of logits (N, C).

    >>> {name: values.round(2).tolist() for name, values in logit_signals([[0.0, 0.0], [3.0, 0.0]]).items()}
    {'confidence': [0.5, 0.95], 'margin': [0.0, 0.91], 'entropy': [0.69, 0.19], 'energy': [-0.69, -3.05]}
    """
    z = np.asarray(logits, float)
    top = z.max(axis=1, keepdims=True)
    energy = -(top[:, 0] + np.log(np.exp(z - top).sum(axis=1)))
    log = z + energy[:, None]
    p = np.exp(log)
    first = np.sort(p, axis=1)
    entropy = -np.where(p > 0, p * log, 0.0).sum(axis=1)
    found = {"confidence": first[:, -1], "margin": first[:, -1] - first[:, -2], "entropy": entropy}
    return {**found, "energy": energy}


def label_next(
    predictions: Predictions, rounds: Sequence[Round], count: int, seed: int = 0
) -> tuple[NDArray[np.int64], Floats]:
    """Draw the samples to label next: by the function fitted on all labels, or by confidence where there are none.

    Args:
        predictions: predictions of the stream.
        rounds: samples that are labelled already.
        count: number of draws.
        seed: random seed; the number of rounds is added to it.

    Returns:
        indices of the samples (count,), and the probability of each in a draw (count,).
    """
    chances = predictions.chances
    if rounds:
        z = standardise(predictions.table)
        chances = fit_rounds(rounds, z)(z.table)
    return draw_next(chances, count, seed + len(rounds))


def read_predictions(path: str | Path) -> Predictions:
    """Read a file of predictions, see the module.

    Args:
        path: path of the CSV or NPZ.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: it is no CSV or NPZ of predictions; the message says what was expected.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such file; expected a CSV or NPZ of predictions, or the folder of a run"
        )
    lines: Sequence[int] = ()
    if path.suffix == ".npz":
        with damaged(path, REPAIR, (EOFError, BadZipFile)), np.load(path, allow_pickle=False) as found:
            columns = {name: found[name] for name in found.files}
    else:
        text, lines = _columns(path)
        columns = {name: np.array(values) for name, values in text.items()}
    _check_order(path, columns.pop("index", None), lines)
    for name in [n for n in columns if n == "logits" or n.startswith("logits_")]:
        logits = columns.pop(name)
        if logits.ndim != 2 or logits.shape[1] < 2 or logits.dtype.kind not in "iuf":
            got = f"{logits.dtype} of the shape {logits.shape}"
            raise DataError(f"{path}: expected {name} as numbers (N, C), got {got}")
        if len(wrong := np.flatnonzero(~np.isfinite(logits).all(axis=1))):
            what = f"{len(wrong)} of {len(logits)} samples have others, the first is sample {wrong[0]}"
            raise DataError(f"{path}: expected finite {name}; {what}; leave these samples out")
        columns.setdefault(name.replace("logits", "predicted"), logits.argmax(axis=1))
        columns |= logit_signals(logits) if name == "logits" else {}
    if "predicted" not in columns:
        there = ", ".join(columns) or "none"
        raise DataError(
            f"{path}: expected a column predicted (in an NPZ also logits), got the columns {there}"
        )
    if columns["predicted"].ndim != 1 or not len(columns["predicted"]):
        raise DataError(
            f"{path}: expected the class of each sample as predicted (N,), got the shape {columns['predicted'].shape}"
        )
    predicted = _names(columns.pop("predicted"))
    if len(empty := np.flatnonzero(np.isin(predicted, ("", "nan")))):
        place = f"line {lines[empty[0]]}" if lines else f"sample {empty[0]}"
        raise DataError(
            f"{path}, {place}: expected a class as predicted, got nothing; leave such samples out"
        )
    others = {n: _names(columns.pop(n)) for n in [*columns] if n.startswith("predicted_")}
    for name, other in others.items():
        if other.shape != predicted.shape:
            raise DataError(
                f"{path}: {name} has {len(other)} entries, predicted {len(predicted)}; expected as many"
            )
    signals = {name: _numbers(path, name, values, lines) for name, values in columns.items()}
    with damaged(path, REPAIR):
        return Predictions(predicted, signals, {n.removeprefix("predicted_"): o for n, o in others.items()})


def _check_order(path: Path, index: NDArray[np.generic] | None, lines: Sequence[int]) -> None:
    """Refuse a column of indices that does not count the samples from 0 on: labels name samples by their place."""
    if index is None:
        return
    found = _numbers(path, "index", index.ravel(), lines, True)
    if len(wrong := np.flatnonzero(found != np.arange(len(found)))):
        place = f"line {lines[wrong[0]]}" if lines else f"sample {wrong[0]}"
        raise DataError(
            f"{path}, {place}: expected the index {wrong[0]}, got {found[wrong[0]]:g}; labels name samples by their place in "
            "the file: sort it by index, from 0 on without gaps, or name the column otherwise if it is none"
        )


def predictions_of(samples: Mapping[str, Samples], deployed: str) -> Predictions:
    """Return the predictions of one of several models on the same stream; the others give signals of agreement.

    Args:
        samples: results of each model by its name; labels in them are not used.
        deployed: name of the model that is in use.
    """
    own = samples[deployed]
    signals = {"confidence": own.confidence.astype(float), "score": own.score.astype(float)}
    signals |= {f"selected {name}": mask.astype(float) for name, mask in own.selected.items()}
    others = {
        n: one.predicted.astype(str) for n, one in samples.items() if n != deployed and len(one) == len(own)
    }
    return Predictions(own.predicted.astype(str), signals, others)


class Labels(NamedTuple):
    """Labelled samples.

    Attributes:
        rounds: labelled samples of each file.
        kind: kind of their values: "label" for 1 where the prediction is right and 0 where it is wrong, "value" for values of
            the user.
        unpredicted: number of labels by class, of the classes that are predicted for no sample of the stream.
    """

    rounds: list[Round]
    kind: str = "label"
    unpredicted: Mapping[str, int] = MappingProxyType({})


def read_labels(paths: Sequence[str | Path], predictions: Predictions) -> Labels:
    """Read files of labels, each a round; lines at the end whose label is empty were not labelled yet.

    Args:
        paths: paths of the files, in the order in which the rounds were drawn.
        predictions: predictions of the stream, which the labels are compared with.

    Raises:
        FileNotFoundError: there is no such file.
        DataError: a file holds something else; the message says in which line, and what was expected.
    """
    found = [_round(Path(path), predictions) for path in paths]
    kinds = [one.kind for one in found]
    if len({*kinds}) > 1:
        raise DataError(f"expected label or value in all files, got {', '.join(kinds)}; take one of them")
    for k, one in enumerate(found):
        for earlier in range(k + 1):
            _check_pair(paths[earlier], paths[k], found[earlier].rounds[0], one.rounds[0])
    unpredicted = sum((Counter(one.unpredicted) for one in found), Counter())
    return Labels([r for one in found for r in one.rounds], kinds[0] if kinds else "label", unpredicted)


def _check_pair(path: str | Path, other: str | Path, one: Round, two: Round) -> None:
    """Refuse two files, or one and itself, whose samples were counted twice by mistake, or have two values."""
    known = dict(zip(one.rows.tolist(), one.values.tolist(), strict=True))
    both = [row for row in two.rows.tolist() if row in known]
    for row, value in zip(two.rows.tolist(), two.values.tolist(), strict=True):
        if known.get(row, value) != value:
            where = f"{path} and {other} have" if one is not two else f"{path} has"
            raise DataError(f"{where} two values for sample {row}, one of them wrong; label it again")
    if one is two or not both:
        return
    least = min(len(one.rows), len(two.rows))
    if one.rows[:least].tolist() == two.rows[:least].tolist():
        raise DataError(
            f"{other} has the samples of {path}, in its order; give each file of labels once, and of a file that was "
            "labelled further the last state"
        )
    if one.probabilities is None and two.probabilities is None:
        count = f"{len(both)} {'samples' if len(both) > 1 else 'sample'}"
        raise DataError(
            f"{other} has {count} of {path}, the first is sample {both[0]}; random samples without a probability count once: "
            "put both into one file, in which each sample has one line"
        )


def _round(path: Path, predictions: Predictions) -> Labels:
    """The labels of a file."""
    (columns, lines), samples = _columns(path), len(predictions.predicted)
    kind = next((name for name in ("label", "value") if name in columns), "")
    if "index" not in columns or not kind:
        raise DataError(f"{path}: expected the columns index and label (or value), got {', '.join(columns)}")
    given = [bool(text) for text in columns[kind]]
    count = sum(given)
    if not all(given[:count]):
        what = f"line {lines[given.index(False)]} has no {kind}, later ones have"
        raise DataError(f"{path}: {what}; label in the order of the file, so that what is left is random")
    if count < 2:
        raise DataError(f"{path}: expected at least 2 labels, got {count}; fill in the column {kind}")
    kept = {name: np.array(texts[:count]) for name, texts in columns.items()}
    rows = _numbers(path, "index", kept["index"], lines, True)
    wrong = np.flatnonzero((rows != np.floor(rows)) | (rows < 0) | (rows >= samples))
    if len(wrong):
        expected = f"expected an index as a whole number from 0 to {samples - 1}"
        raise DataError(f"{path}, line {lines[wrong[0]]}: {expected}, got {rows[wrong[0]]:g}")
    at, unpredicted = rows.astype(np.int64), Counter[str]()
    if kind == "label":
        names = _names(kept[kind])
        values = (names == predictions.predicted[at]).astype(float)
        unpredicted = Counter(names[~np.isin(names, predictions.predicted)].tolist())
    else:
        values = _numbers(path, kind, kept[kind], lines, True)
    q = _numbers(path, "probability", kept["probability"], lines, True) if "probability" in kept else None
    if q is None and len({*at}) < count:
        again = next(i for i, row in enumerate(at) if row in at[:i])
        raise DataError(
            f"{path}, line {lines[again]}: sample {at[again]} has a label already; keep one of its lines"
        )
    return Labels([Round(at, values, q)], kind, unpredicted)


def write_next(path: str | Path, rows: NDArray[np.int64], probabilities: Floats, kind: str = "label") -> Path:
    """Write the CSV of samples to label, whose last column is empty; :func:`read_labels` reads it when it is filled in.

    Args:
        path: path of the file.
        rows: indices of the samples, (n,).
        probabilities: probability of each in a draw, (n,).
        kind: name of the last column, "label" or "value".
    """
    lines = [f"{row},{q:.9g}," for row, q in zip(rows, probabilities, strict=True)]
    return write_text(Path(path), "\n".join([f"index,probability,{kind}", *lines, ""]))


def estimate_text(
    predictions: Predictions,
    labels: Labels,
    interval: Interval | Literal["betting"] = "wilson",
) -> str:
    """Return an estimate in words, in percent.

    Args:
        predictions: predictions of the stream.
        labels: labelled samples.
        interval: "wilson" or "student", see :func:`testtime.metrics.control_variates.estimate_mean`, or "betting".

    Raises:
        ValueError: interval is none of these.
    """
    z, names, rounds = standardise(predictions.table), [*predictions.signals], labels.rounds
    found = estimate_mean(rounds, z, interval="wilson" if interval == "betting" else interval)
    low, high = betting_interval(rounds, z) if interval == "betting" else (found.low, found.high)
    what = "accuracy" if labels.kind == "label" else "mean value"
    used = ", ".join(names[i] for i in np.flatnonzero(fit_rounds(rounds, z).weights)) or "none"
    plain = f"about {found.worth:.0f}" if found.worth < found.samples else "all of them"
    lines = [
        f"{what} {100 * found.mean:.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f} %",
        f"{found.labels} labels of {found.samples:,} samples; plain random sampling needs {plain} for the same standard error",
        f"variates: {used}",
    ]
    if count := sum(labels.unpredicted.values()):
        some = ", ".join(f"{name} ({n})" for name, n in [*labels.unpredicted.items()][:5])
        classes = ", ".join(np.unique(predictions.predicted)[:5])
        lines.append(
            f"{count} {'labels are' if count > 1 else 'label is'} of classes that are predicted for no sample, and wrong: "
            f"{some}; are they named alike? predicted: {classes}"
        )
    return "\n".join(lines)


def estimate_or_choose(
    predictions: Predictions,
    labels: Sequence[str | Path],
    interval: Interval | Literal["betting"] = "wilson",
    count: int = 0,
    out: str | Path = "next.csv",
    seed: int = 0,
) -> str:
    """Return an estimate in words, and write the samples to label next; what the command ``testtime estimate`` does.

    Args:
        predictions: predictions of the stream.
        labels: files of labels, one for each round, in the order in which they were drawn.
        interval: see :func:`estimate_text`.
        count: number of samples to label next; 0 for none.
        out: file of these; it must not be there.
        seed: random seed of the draws.

    Raises:
        ValueError: there is neither a file of labels nor a count, or the file is there already.
        DataError: a file of labels is damaged.
    """
    if not labels and not count:
        raise ValueError(
            "expected --labels, files of labels, or --next N, the number of samples to label; --help explains"
        )
    if count and Path(out).exists():
        raise ValueError(f"{out} is there already, maybe with labels; give another name with --out")
    found = read_labels(labels, predictions)
    texts = [estimate_text(predictions, found, interval)] if found.rounds else []
    if count:
        rows, q = label_next(predictions, found.rounds, count, seed)
        write_next(out, rows, q, found.kind)
        files = " ".join(str(path) for path in [*labels, out])
        texts.append(f"{out}: fill in the last column from the top, then give --labels {files}")
    return "\n".join(texts)


def _columns(path: Path) -> tuple[dict[str, list[str]], list[int]]:
    """The columns of a CSV with a head, by name, and the numbers of their lines."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; check its spelling")
    with damaged(path, REPAIR, (csv.Error,)), open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        lines = [([word.strip() for word in line], reader.line_num) for line in reader]
    lines = [(words, number) for words, number in lines if any(words)]
    if len(lines) < 2:
        raise DataError(f"{path}: expected a head and at least one line, got {len(lines)} lines")
    (head, _), *lines = lines
    if len(head) == 1 and (mark := next((m for m in ";\t|" if m in head[0]), "")):
        raise DataError(
            f"{path}: expected columns separated by commas, got {mark!r} in its head; export it with commas"
        )
    if len({*head}) < len(head):
        raise DataError(f"{path}: expected different names in its head, got {', '.join(head)}")
    for words, number in lines:
        if len(words) != len(head):
            raise DataError(
                f"{path}, line {number}: expected {len(head)} entries ({', '.join(head)}), got {len(words)}"
            )
    return {name: [words[i] for words, _ in lines] for i, name in enumerate(head)}, [n for _, n in lines]


def _numbers(
    path: Path, name: str, values: NDArray[np.generic], lines: Sequence[int] = (), needed: bool = False
) -> Floats:
    """A column of numbers, whose lines in a file have these numbers; an empty entry, where it is not needed, is NaN."""
    if values.dtype.kind in "biuf":
        return values.astype(float)
    found = [*_parsed(values)]
    wrong = [i for i, one in enumerate(found) if one is None or (needed and math.isnan(one))]
    if wrong:
        got, advice = f"{values[wrong[0]]!s:.40}" or "nothing", "" if needed else f"; or leave {name} out"
        place = f"line {lines[wrong[0]]}" if lines else f"sample {wrong[0]}"
        raise DataError(f"{path}, {place}: expected a number as {name}, got {got}{advice}")
    return np.array(found, float)


def _parsed(values: NDArray[np.generic]) -> Iterator[float | None]:
    for value in values.ravel():
        try:
            yield float(str(value)) if str(value) else math.nan
        except ValueError:
            yield None


def _names(values: NDArray[np.generic]) -> NDArray[np.str_]:
    """Classes as names, "3" for the numbers 3 and 3.0."""
    texts = [str(value).strip() for value in values.ravel()]
    whole = [text.removesuffix(".0") for text in texts]
    names = [w if w.lstrip("-").isdecimal() else text for w, text in zip(whole, texts, strict=True)]
    return np.array(names, dtype=np.str_)


def _filled(values: Floats) -> Floats:
    fine = np.isfinite(values)
    return np.where(fine, values, values[fine].mean() if fine.any() else 0.0)


def _moving_mean(values: Floats) -> Floats:
    """The mean over the samples around each, fewer at both ends."""
    half, n = NEAR // 2, len(values)
    sums, at = np.concatenate([[0.0], np.cumsum(values)]), np.arange(n)
    low, high = np.maximum(at - half, 0), np.minimum(at + half + 1, n)
    return (sums[high] - sums[low]) / (high - low)
