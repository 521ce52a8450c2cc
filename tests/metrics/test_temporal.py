"""Metrics of temporal localisation against their definitions, written out with sets of frames."""

from itertools import pairwise

import numpy as np
import pytest

from testtime.metrics.temporal import Segment, frame_f, runs, segment_ap, segment_map, temporal_iou

RNG = np.random.default_rng(1)


def drawn(count):
    starts = RNG.integers(0, 40, count)
    return np.stack([starts, starts + RNG.integers(1, 15, count)], 1)


def test_iou_is_that_of_sets_of_frames():
    one, other = drawn(6), drawn(5)
    sets = [[set(range(a, b)) for a, b in part] for part in (one, other)]
    expected = [[len(p & q) / len(p | q) for q in sets[1]] for p in sets[0]]
    np.testing.assert_allclose(temporal_iou(one, other), expected)


def test_runs_are_found_again():
    flags = RNG.random(60) < 0.5
    again = np.zeros(60, bool)
    found = runs(flags)
    for a, b in found:
        again[a:b] = True
    np.testing.assert_array_equal(again, flags)
    assert all(b < c for (_, b), (c, _) in pairwise(found))


@pytest.mark.parametrize("iou", [0.3, 0.5, 0.7])
def test_average_precision_is_the_mean_of_the_highest_precision_at_each_recall(iou):
    truth = [Segment(v, 0, *map(float, s)) for v in range(3) for s in ((2, 10), (15, 30), (33, 40))]
    found = [
        Segment(int(RNG.integers(3)), 0, s + RNG.normal(), e + RNG.normal(), float(RNG.random()))
        for s, e in ((2, 10), (15, 30), (33, 40), (5, 25), (14, 29), (1, 9)) * 3
    ]
    taken, curve, right = set(), [], 0
    for n, f in enumerate(sorted(found, key=lambda s: -s.score), 1):
        options = [
            (min(f.end, t.end) - max(f.start, t.start), t)
            for t in truth
            if t.video == f.video and t not in taken
        ]
        shares = [(o / ((f.end - f.start) + (t.end - t.start) - o), t) for o, t in options if o > 0]
        best = max(shares, key=lambda p: p[0], default=(0.0, None))
        if best[0] >= iou:
            taken.add(best[1])
            right += 1
        curve.append((right / len(truth), right / n))
    levels = [k / len(truth) for k in range(1, len(truth) + 1)]
    expected = np.mean([max([p for r, p in curve if r >= level - 1e-9], default=0.0) for level in levels])
    assert segment_ap(found, truth, iou) == pytest.approx(100 * expected)


def test_the_mean_is_over_classes_with_true_segments():
    truth = [Segment("v", "a", 0, 10), Segment("v", "b", 20, 30)]
    found = [Segment("v", "a", 0, 10, 0.5), Segment("v", "c", 20, 30, 0.9)]
    assert segment_map(found, truth, 0.7) == 50.0
    assert segment_map([], truth) == 0.0
    assert np.isnan(segment_map(found, []))


def test_a_segment_of_another_video_is_wrong_and_a_second_on_one_truth_too():
    truth = [Segment("v", 0, 0, 10)]
    assert segment_ap([Segment("w", 0, 0, 10)], truth) == 0.0
    twice = [Segment("v", 0, 0, 10, 0.9), Segment("v", 0, 0, 10, 0.8)]
    assert segment_ap(twice, truth) == 100.0
    assert segment_ap([Segment("v", 0, 20, 30, 0.95), *twice], truth) == 50.0


def test_frame_f():
    answers, truth = (
        [RNG.random(30) < 0.4, RNG.random(20) < 0.4],
        [RNG.random(30) < 0.5, RNG.random(20) < 0.5],
    )
    a, t = np.concatenate(answers), np.concatenate(truth)
    precision, recall = (a & t).sum() / a.sum(), (a & t).sum() / t.sum()
    assert frame_f(answers, truth) == pytest.approx(200 * precision * recall / (precision + recall))
    assert np.isnan(frame_f([[False]], [[False]]))


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match="in \\(0, 1\\]"):
        segment_ap([], [Segment(0, 0, 0, 1)], 0.0)
    with pytest.raises(ValueError, match="each frame"):
        frame_f([[True]], [[True, False]])
    with pytest.raises(ValueError, match="each frame"):
        runs([[True]])
