"""Multimodal masking: budgets, disjointness, what is never drawn, and the mixture itself."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from testtime.space.masking import Component, Masking, Stream, mixture, rgb_to_all

STREAMS = (
    Stream("rgb", "pixels", 16),
    Stream("tok_depth", "grid", 16, 50),
    Stream("tok_edge", "grid", 16, 50),
    Stream("boxes", "sequence", 10, 30),
)


def full(n):
    return np.tile([s.length for s in STREAMS], (n, 1))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 70), st.integers(1, 70), st.booleans())
def test_budgets_hold_and_shown_and_asked_are_disjoint(seed, inputs, targets, lacking):
    masking = Masking(STREAMS, inputs=inputs, targets=targets)
    lengths = full(5)
    if lacking:
        lengths[2] = [16, 0, 7, 0]
    mask = masking.draw(lengths, np.random.default_rng(seed))
    assert mask.shown.shape == (5, inputs)
    assert mask.asked.shape == (5, targets)
    for i in range(5):
        shown, asked = mask.shown[i][mask.shown[i] >= 0], mask.asked[i][mask.asked[i] >= 0]
        assert len(set(shown)) == len(shown)
        assert not set(shown) & set(asked)
        assert (asked >= 16).all()  # pixels are never asked for
        for number in range(3):
            begin = masking.offsets[number]
            inside = [(p >= begin) & (p < begin + 16) for p in (shown, asked)]
            assert inside[0].sum() == mask.shown_of[i, number]
            assert inside[1].sum() == mask.asked_of[i, number]
            assert all(
                (p[here] - begin < lengths[i, number]).all()
                for p, here in zip((shown, asked), inside, strict=True)
            )
        assert mask.shown_of[i].sum() <= inputs
        assert mask.asked_of[i].sum() <= targets
        assert ((mask.shown_of[i] <= lengths[i]) & (mask.asked_of[i] <= lengths[i])).all()
        assert not (shown >= 48).any()  # what a sequence shows is decided elsewhere
        assert not (asked >= 48).any()


def test_a_stream_of_alpha_0_is_never_drawn():
    only = Component({"rgb": 1.0, "tok_depth": 0.0}, {"tok_edge": 0.3, "tok_depth": 0.0})
    mask = Masking(STREAMS, [only], 8, 8).draw(full(200), np.random.default_rng(0))
    assert set(np.unique(mask.shown)) <= set(range(16))
    assert set(np.unique(mask.asked)) <= set(range(32, 48))
    assert (mask.shown_of[:, 0] == 8).all()


def test_what_a_sample_has_less_of_is_left_empty():
    masking = Masking(STREAMS[:2], [Component({"rgb": 1.0}, {"tok_depth": 1.0})], 20, 20)
    mask = masking.draw(np.array([[16, 16], [5, 0]]), np.random.default_rng(0))
    assert (mask.shown[0] >= 0).sum() == 16
    assert sorted(mask.asked[0][mask.asked[0] >= 0]) == list(range(16, 32))
    assert sorted(mask.shown[1][mask.shown[1] >= 0]) == [0, 1, 2, 3, 4]
    assert (mask.asked[1] == -1).all()


def test_small_alphas_choose_one_stream_and_large_ones_share():
    streams = [Stream(name, "grid", 64, 9) for name in "abcd"]
    alike = dict.fromkeys("abcd", 0.01)
    even = dict.fromkeys("abcd", 5.0)
    one = Masking(streams, [Component(alike, even)], 64, 64).draw(
        np.full((500, 4), 64), np.random.default_rng(0)
    )
    shares = one.shown_of / one.shown_of.sum(1, keepdims=True)
    assert (shares.max(1) > 0.98).mean() > 0.85  # all but the token that rounding leaves
    # The mean of a symmetric Dirichlet is even, and its deviation is sqrt((1/4)(3/4) / (4 alpha + 1)).
    assert one.shown_of.mean(0) == pytest.approx(16, abs=5)
    asked = Masking(streams, [Component(even, even)], 32, 64).draw(
        np.full((2000, 4), 64), np.random.default_rng(1)
    )
    assert asked.asked_of.mean(0) == pytest.approx(16, abs=0.5)
    assert asked.asked_of.std(0) / 64 == pytest.approx(np.sqrt(0.25 * 0.75 / 21), rel=0.05)


def test_the_mixtures_are_those_of_the_papers():
    found = mixture(STREAMS)
    assert [c.weight for c in found] == [1.0] * 5
    assert [set(c.inputs.values()) for c in found[:4]] == [{0.01}, {0.1}, {1.0}, {10.0}]
    assert all(set(c.targets) == {"tok_depth", "tok_edge", "boxes"} for c in found)
    assert found[4] == Component({"rgb": 1000.0}, {"tok_depth": 0.5, "tok_edge": 0.5, "boxes": 0.5})
    half = rgb_to_all(STREAMS)
    assert half[0].inputs == {"rgb": 1000.0}
    assert half[1].inputs["rgb"] == half[1].targets["tok_edge"] == 0.5
    assert len(mixture(STREAMS[1:])) == 4  # without pixels there is no pixels-to-all


def test_components_are_drawn_as_often_as_their_weights_say():
    depth = Component({"rgb": 1.0}, {"tok_depth": 1.0}, 3.0)
    edge = Component({"rgb": 1.0}, {"tok_edge": 1.0})
    mask = Masking(STREAMS, [depth, edge], 4, 4).draw(full(4000), np.random.default_rng(0))
    assert (mask.asked_of[:, 1] > 0).mean() == pytest.approx(0.75, abs=0.03)


def test_the_same_generator_gives_the_same_masks():
    masking = Masking(STREAMS, inputs=9, targets=9)
    one, other = (masking.draw(full(6), np.random.default_rng(3)) for _ in range(2))
    assert (one.shown == other.shown).all()
    assert (one.asked == other.asked).all()
    assert (masking.draw(full(6), np.random.default_rng(4)).shown != one.shown).any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"inputs": 0}, "whole numbers from 1"),
        ({"targets": 1.5}, "whole numbers from 1"),
        ({"components": [Component({"rgb": 1.0}, {"rgb": 1.0})]}, "pixels cannot be a target"),
        (
            {"components": [Component({"sound": 1.0}, {"tok_depth": 1.0})]},
            "no stream sound; there are rgb, tok_depth",
        ),
        ({"components": [Component({"rgb": 1.0}, {"tok_depth": 0.0})]}, "a target stream with alpha above 0"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Masking(STREAMS, **arguments)


@pytest.mark.parametrize("alpha", [float("nan"), -1.0, float("inf"), 1e300])
@pytest.mark.parametrize("side", ["inputs", "targets"])
def test_impossible_alphas_are_refused(alpha, side):
    sides = {"inputs": {"rgb": 1.0}, "targets": {"tok_depth": 1.0}}
    sides[side] = {"tok_edge": alpha, **sides[side]}
    with pytest.raises(ValueError, match=r"tok_edge: expected an alpha in \[0, 1e\+09\]"):
        Component(**sides)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_weights_are_refused(weight):
    with pytest.raises(ValueError, match="expected a weight above 0"):
        Component({"rgb": 1.0}, {"tok_depth": 1.0}, weight)


@pytest.mark.parametrize("wrong", [{"kind": "sound"}, {"length": 0}, {"length": -4}, {"vocabulary": -1}])
def test_impossible_streams_are_refused(wrong):
    with pytest.raises(ValueError, match="a: expected a kind of pixels, grid, sequence"):
        Stream(**{"name": "a", "kind": "grid", "length": 4, "vocabulary": 9, **wrong})


def test_mixtures_and_lengths_that_do_not_fit_are_refused():
    for arguments in ({"streams": [*STREAMS, STREAMS[0]]}, {"streams": STREAMS, "components": []}):
        with pytest.raises(ValueError, match="streams of different names and a component at least"):
            Masking(**arguments)
    masking, rng = Masking(STREAMS), np.random.default_rng(0)
    for lengths in (np.full((2, 3), 4), np.full(4, 4), np.full((2, 4), -1), np.full((2, 4), 17)):
        with pytest.raises(ValueError, match=r"expected lengths \(N, 4\) from 0 to \[16, 16, 16, 10\]"):
            masking.draw(lengths, rng)


@pytest.mark.parametrize("alpha", [1e-300, 1e-6, 1e9])
def test_the_smallest_and_largest_alphas_divide_the_budget(alpha):
    component = Component(dict.fromkeys(("rgb", "tok_depth"), alpha), {"tok_edge": alpha})
    mask = Masking(STREAMS, [component], 8, 8).draw(full(20), np.random.default_rng(0))
    assert (mask.shown_of.sum(1) == 8).all()
    assert (mask.asked_of[:, 2] == 8).all()
