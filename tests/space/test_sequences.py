"""Boxes as words, and spans behind sentinels: recomputed by hand and by an independent reading of the definition."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from testtime.space.sequences import Box, BoxVocabulary, span_joined, span_masked

WORDS = BoxVocabulary(["chair", "table"], bins=11, sentinels=40)
SEQUENCES = st.lists(st.integers(WORDS.sentinels.stop, len(WORDS) - 1), max_size=60)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_ids_are_where_the_docstring_says():
    assert (WORDS.pad, WORDS.start, WORDS.end, WORDS.sentinels) == (0, 1, 2, range(3, 43))
    assert len(WORDS) == 3 + 40 + 4 * 11 + 2
    ids = WORDS.encode([Box(0.3, 0.1, 1, 0.74, "table")])
    assert ids.tolist() == [43 + 3, 43 + 11 + 1, 43 + 22 + 10, 43 + 33 + 7, 43 + 44 + 1, 2]
    assert ids.dtype == torch.int64
    assert WORDS.text([0, 1, 2, 3, 42]) == "[pad] [start] [end] [0] [39]"


def test_coordinates_are_rounded_to_a_thousand_bins():
    vocabulary = BoxVocabulary(["chair"])
    text = vocabulary.text(vocabulary.encode([Box(0.1234, 0.5, 0.9999, 1.0, "chair")]))
    assert text == "v0=123 v1=500 v2=999 v3=999 chair [end]"  # 123.28, 499.5 (to even), 998.9, 999


def test_boxes_come_by_the_distance_of_their_corner_and_only_if_sure():
    boxes = [
        Box(0.6, 0.6, 1, 1, "chair"),  # 0.72
        Box(0.0, 0.8, 1, 1, "table", 0.6),  # 0.64, just sure enough
        Box(0.0, 0.0, 1, 1, "table", 0.59),
        Box(0.7, 0.1, 1, 1, "table"),  # 0.50
    ]
    assert WORDS.text(WORDS.encode(boxes)) == (
        "v0=7 v1=1 v2=10 v3=10 table v0=0 v1=8 v2=10 v3=10 table v0=6 v1=6 v2=10 v3=10 chair [end]"
    )


def test_too_long_a_sequence_is_cut_and_its_last_box_not_read():
    boxes = [Box(0, 0, 0.5, 1, "chair"), Box(0.2, 0, 0.5, 1, "table")]
    ids = WORDS.encode(boxes, length=8)
    assert WORDS.text(ids) == "v0=0 v1=0 v2=5 v3=10 chair v0=2 v1=0 v2=5"
    assert WORDS.decode(ids) == boxes[:1]
    assert WORDS.encode([], length=3).tolist() == [WORDS.end]


@given(
    st.lists(
        st.tuples(*[st.integers(0, 10)] * 4, st.sampled_from(WORDS.classes)).filter(
            lambda b: b[0] <= b[2] and b[1] <= b[3]
        ),
        max_size=6,
    )
)
@settings(max_examples=50, deadline=None)
def test_boxes_on_the_bins_are_encoded_exactly(raw: list[tuple[int, int, int, int, str]]):
    boxes = [Box(a / 10, b / 10, c / 10, d / 10, name) for a, b, c, d, name in raw]
    told = WORDS.decode(WORDS.encode(boxes))
    assert told == sorted(boxes, key=lambda b: b.x0**2 + b.y0**2)


def test_nonsense_between_boxes_is_passed_over():
    good = WORDS.encode([Box(0.1, 0.2, 0.3, 0.4, "chair")])[:-1].tolist()
    v0, v1, v2, v3 = (43 + 11 * axis for axis in range(4))
    chair = len(WORDS) - 2
    for noise in ([v1], [chair], [v0, v1, chair], [v0, v2], [5, 0, 1], [v0 + 9, v1, v2, v3, chair], [v0, v0]):
        assert WORDS.decode([*noise, *good, *noise, WORDS.end, *good]) == [Box(0.1, 0.2, 0.3, 0.4, "chair")]


def test_a_box_in_the_mirror():
    box = Box(0.25, 0.1, 0.5, 0.9, "chair", 0.7)
    assert box.mirrored() == Box(0.5, 0.1, 0.75, 0.9, "chair", 0.7)
    assert box.mirrored().mirrored() == box


@given(SEQUENCES, st.integers(0, 70), st.integers(0, 90), st.integers(0, 2**32))
@settings(max_examples=300, deadline=None)
def test_budgets_hold_and_nothing_is_lost_that_was_not_cut(
    words: list[int], room: int, asked: int, seed: int
):
    shown, target = span_masked(words, room, asked, WORDS, seeded(seed))
    assert len(shown) <= room
    assert len(target) <= asked
    again = span_masked(words, room, asked, WORDS, seeded(seed))
    assert shown.equal(again[0])
    assert target.equal(again[1])
    same, whole = span_masked(words, room, 1000, WORDS, seeded(seed))
    assert same.equal(shown)  # what is shown does not depend on the other budget
    assert span_joined(shown, whole, WORDS).tolist() == words
    if len(whole) <= asked:
        assert target.equal(whole)
    elif asked:
        begin = target[0].item()
        assert begin in WORDS.sentinels
        at = whole.tolist().index(begin)
        assert whole[at : at + asked].equal(target)
    # Every run of hidden tokens is one sentinel, and they count up from the first.
    marks = [i for i in shown.tolist() if i in WORDS.sentinels]
    assert marks == list(WORDS.sentinels)[: len(marks)]
    assert all(
        not {a, b} <= set(WORDS.sentinels) for a, b in zip(shown.tolist(), shown[1:].tolist(), strict=False)
    )
    if room:
        told = [i for i in whole.tolist() if i in WORDS.sentinels]
        assert told == list(WORDS.sentinels)[: len(marks) + 1]  # one more for the end


def test_spans_from_the_draws_themselves():
    words = list(range(50, 70))
    for seed in range(20):
        shown, target = span_masked(words, 100, 100, WORDS, seeded(seed))
        draws = seeded(seed)
        keep = torch.rand((), generator=draws)
        kept = torch.rand(20, generator=draws) < keep
        left, right, mark = [], [], 2
        for i, word in enumerate(words):
            if kept[i]:
                left.append(word)
                continue
            if i == 0 or kept[i - 1]:
                mark += 1
                left.append(mark)
                right.append(mark)
            right.append(word)
        assert shown.tolist() == left
        assert target.tolist() == [*right, mark + 1]


def test_nothing_shown_asks_for_everything():
    shown, target = span_masked([50, 51, 52], 0, 10, WORDS, seeded(0))
    assert shown.tolist() == []
    assert target.tolist() == [3, 50, 51, 52, 4]
    assert span_joined(shown, target, WORDS).tolist() == [50, 51, 52]


def test_a_cut_target_begins_at_every_sentinel_but_the_last():
    words = list(range(43, 73))
    begins = set()
    for seed in range(200):
        target = span_masked(words, 100, 3, WORDS, seeded(seed))[1]
        whole = span_masked(words, 100, 100, WORDS, seeded(seed))[1]
        if len(whole) > 3:
            begins.add(int(target[0]))
            assert int(target[0]) != int(whole[-1])
            assert len(target) == 3
    assert begins >= set(range(3, 9))


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match="divide pixels"):
        Box(0, 0, 64, 64, "chair")
    with pytest.raises(ValueError, match="no class 'sofa'; there are chair, table"):
        WORDS.encode([Box(0, 0, 1, 1, "sofa")])
    with pytest.raises(ValueError, match="each once"):
        BoxVocabulary(["chair", "chair"])
    with pytest.raises(ValueError, match="at least 2"):
        BoxVocabulary(["chair"], bins=1)
    with pytest.raises(ValueError, match="at least 0"):
        span_masked([50], -1, 3, WORDS, seeded(0))
    with pytest.raises(ValueError, match="100 tokens may need 51 sentinels, the vocabulary has 40"):
        span_masked([50] * 100, 9, 9, WORDS, seeded(0))
