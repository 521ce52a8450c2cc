"""Boundary F against a slow count in numpy, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from testtime.metrics import BoundaryF


def edges(segments: np.ndarray, known: np.ndarray, name: int) -> list[tuple[int, int]]:
    h, w = segments.shape
    found = []
    for i, j in np.ndindex(h, w):
        around = [(i + a, j + b) for a, b in ((0, 1), (0, -1), (1, 0), (-1, 0))]
        inside = [(k, m) for k, m in around if 0 <= k < h and 0 <= m < w and known[k, m]]
        if known[i, j] and segments[i, j] == name and any(segments[p] != name for p in inside):
            found.append((i, j))
    return found


def hits(these: list[tuple[int, int]], those: list[tuple[int, int]], reach: float) -> int:
    return sum(any((i - k) ** 2 + (j - m) ** 2 <= reach**2 for k, m in those) for i, j in these)


@pytest.mark.parametrize("tolerance", [0.0, 1.0, 1.5, 2.0, 3.0])
def test_it_is_the_count_of_numpy(tolerance: float) -> None:
    rng = np.random.default_rng(0)
    classes, meter = 4, BoundaryF(4, tolerance)
    counts = np.zeros((4, classes))
    for _ in range(3):
        label = rng.integers(0, classes, (2, 5, 7)).repeat(2, 1).repeat(2, 2)
        label[rng.random(label.shape) < 0.1] = 255
        label[label == 3] = 2  # no labelled boundary of class 3
        logits = rng.normal(size=(2, classes, *label.shape[1:]))
        blocks = rng.normal(size=(2, classes, 5, 7)).repeat(2, 2).repeat(2, 3)
        logits = 0.3 * logits + blocks
        meter.update(torch.from_numpy(logits), torch.from_numpy(label))
        for n in range(2):
            known, answer = label[n] != 255, logits[n].argmax(0)
            for c in range(classes):
                found, drawn = edges(answer, known, c), edges(label[n], known, c)
                counts[:, c] += (
                    hits(found, drawn, tolerance),
                    len(found),
                    hits(drawn, found, tolerance),
                    len(drawn),
                )
    f = []
    for hit, found, recalled, drawn in counts.T[:3]:
        p, r = hit / found, recalled / drawn
        f.append(200 * p * r / (p + r))
    np.testing.assert_array_equal(meter.counts, counts)
    np.testing.assert_allclose(meter.by_class[:3], f, atol=1e-9)
    assert np.isnan(meter.by_class[3])
    assert meter.value() == pytest.approx(np.mean(f), abs=1e-9)


def test_a_perfect_prediction_has_100_and_no_boundary_none() -> None:
    label = torch.zeros(1, 6, 8, dtype=torch.long)
    meter = BoundaryF(2)
    one_hot = torch.nn.functional.one_hot
    meter.update(one_hot(label, 2).movedim(-1, 1).float(), label)
    assert np.isnan(meter.value())
    label[:, :, 4:] = 1
    meter.update(one_hot(label, 2).movedim(-1, 1).float(), label)
    assert meter.value() == 100.0


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="0 or more"):
        BoundaryF(2, -1.0)
    with pytest.raises(ValueError, match="resize the output to the label"):
        BoundaryF(2).update(torch.zeros(1, 2, 4, 4), torch.zeros(1, 8, 8, dtype=torch.long))
    for label, words in (
        (torch.full((1, 4, 4), 2), "label 2 is none of the 2"),
        (torch.rand(1, 4, 4), "integers"),
    ):
        with pytest.raises(ValueError, match=words):
            BoundaryF(2).update(torch.zeros(1, 2, 4, 4), label)
