"""COCO's average precision: known values, and an independent computation."""

import builtins
import math

import numpy as np
import pytest
import torch

from testtime.metrics.boxes import BoxAP, Boxes

pytest.importorskip("pycocotools", reason="pip install -e '.[space]'")


def found(*rows):
    boxes = Boxes.of([row[:5] for row in rows])
    return Boxes(boxes.corners, boxes.labels, torch.tensor([row[5] for row in rows]))


def test_values_that_are_known(capsys):
    square = Boxes.of([(0, 0, 10, 10, 0)])
    meter = BoxAP(["cat", "dog"])
    meter.update([found((0, 0, 10, 10, 0, 0.3))], [square])
    assert (meter.value(), meter.at(0.5)) == (pytest.approx(100.0), pytest.approx(100.0))
    assert math.isnan(meter.by_class["dog"])
    # IoU 8 / 10: right at the thresholds 0.5 ... 0.75 and 0.8, seven of ten.
    meter = BoxAP(["cat"])
    meter.update([found((0, 0, 10, 8, 0, 1.0))], [square])
    assert meter.value() == pytest.approx(70.0)
    assert (meter.at(0.8), meter.at(0.85)) == (pytest.approx(100.0), 0.0)
    # A surer box that is wrong: precision 1/2 at every recall.
    meter = BoxAP(["cat"])
    meter.update([found((20, 20, 30, 30, 0, 0.9), (0, 0, 10, 10, 0, 0.8))], [square])
    assert meter.value() == pytest.approx(50.0)
    # One of two true boxes found: precision 1 at the 51 recalls up to 0.5.
    meter = BoxAP(["cat"])
    meter.update([found((0, 0, 10, 10, 0, 0.9))], [Boxes.of([(0, 0, 10, 10, 0), (20, 20, 30, 30, 0)])])
    assert meter.value() == pytest.approx(100 * 51 / 101)
    # A box of the wrong class counts for neither; the mean is over both.
    meter = BoxAP(["cat", "dog"])
    meter.update(
        [found((0, 0, 10, 10, 0, 0.9), (20, 20, 30, 30, 0, 0.8))],
        [Boxes.of([(0, 0, 10, 10, 0), (20, 20, 30, 30, 1)])],
    )
    assert meter.by_class == {"cat": pytest.approx(100.0), "dog": 0.0}
    assert meter.value() == pytest.approx(50.0)
    assert capsys.readouterr().out == ""


def independent(several_found, several_true, classes):
    """Ten thresholds, greedy matching by score, 101 recalls."""
    values = []
    for c in range(classes):
        total = sum(int((t.labels == c).sum()) for t in several_true)
        if not total:
            continue
        for threshold in np.arange(0.5, 0.96, 0.05):
            hits = []
            for f, t in zip(several_found, several_true, strict=True):
                truth, used = t.corners[t.labels == c].numpy(), set()
                mine = f.labels == c
                for k in torch.argsort(f.scores[mine], descending=True).tolist():
                    a, best, which = f.corners[mine][k].numpy(), threshold - 1e-9, None
                    for j, b in enumerate(truth):
                        w = min(a[2], b[2]) - max(a[0], b[0])
                        h = min(a[3], b[3]) - max(a[1], b[1])
                        inner = max(w, 0) * max(h, 0)
                        iou = inner / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - inner)
                        if j not in used and iou >= best:
                            best, which = iou, j
                    used.add(which)
                    hits.append((f.scores[mine][k].item(), which is not None))
            hits.sort(key=lambda hit: -hit[0])
            right = np.cumsum([hit for _, hit in hits])
            recall, precision = right / total, right / np.arange(1, len(hits) + 1)
            at = [precision[recall >= r - 1e-12].max(initial=0) for r in np.linspace(0, 1, 101)]
            values.append(np.mean(at))
    return 100 * np.mean(values)


def test_it_is_that_of_an_independent_computation():
    rng = np.random.default_rng(0)
    several_true, several_found = [], []
    for _ in range(8):
        corners = rng.uniform(0, 50, (5, 2))
        true = [(*c, *(c + rng.uniform(5, 20, 2)), int(rng.integers(0, 3))) for c in corners]
        several_true.append(Boxes.of(true))
        guesses = [
            (*(np.array(b[:4]) + rng.normal(0, 1, 4)), b[4] if rng.random() < 0.8 else 0, rng.random())
            for b in [*true, *true[:2]]
        ]
        several_found.append(found(*guesses))
    meter = BoxAP(["a", "b", "c", "never"])
    meter.update(several_found[:3], several_true[:3])
    assert meter.value() == pytest.approx(independent(several_found[:3], several_true[:3], 3), abs=1e-6)
    meter.update(several_found[3:], several_true[3:])
    assert meter.value() == pytest.approx(independent(several_found, several_true, 3), abs=1e-6)
    assert 10 < meter.value() < 90


def test_nothing_found_is_zero_and_nothing_to_find_is_nan():
    none, one = Boxes.of([]), Boxes.of([(0, 0, 1, 1, 0)])
    meter = BoxAP(["a"])
    assert math.isnan(meter.value())
    meter.update([one], [none])
    assert math.isnan(meter.value())
    meter.update([none], [one])
    assert meter.value() == 0.0


def test_boxes_are_mirrored_and_scaled():
    boxes = Boxes.of([(1, 2, 4, 8, 3)])
    assert boxes.mirrored(10).corners.tolist() == [[6, 2, 9, 8]]
    assert boxes.scaled(2, 0.5).corners.tolist() == [[2, 1, 8, 4]]
    assert boxes.mirrored(10).labels.tolist() == [3]


def test_wrong_boxes_are_refused(monkeypatch):
    one = Boxes.of([(0, 0, 1, 1, 0)])
    meter = BoxAP(["a"])
    with pytest.raises(ValueError, match="each of 1 images"):
        meter.update([one], [])
    with pytest.raises(ValueError, match="label 4 is none of the 1 classes"):
        meter.update([one], [Boxes.of([(0, 0, 1, 1, 4)])])
    with pytest.raises(ValueError, match="not finite"):
        meter.update([found((0, 0, 1, 1, 0, math.nan))], [one])
    with pytest.raises(ValueError, match=r"not 0\.52"):
        meter.at(0.52)
    with pytest.raises(ValueError, match="x0 < x1"):
        Boxes.of([(1, 0, 1, 1, 0)])
    with pytest.raises(ValueError, match=r"corners \(n, 4\)"):
        Boxes(torch.zeros(2, 4), torch.zeros(1), torch.zeros(1))
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("pycocotools"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"testtime\[space\]"):
        BoxAP(["a"])
