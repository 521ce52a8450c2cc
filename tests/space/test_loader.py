"""Batches: a function of seed and step, in exact shares, true to the stored tokens."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from toy_space import VOCABULARY, Levels, shards, streams

from testtime.space import loader as module
from testtime.space.loader import Batches, Part, loader
from testtime.space.masking import Component, Masking, Stream
from testtime.space.modalities import RGB
from testtime.space.sequences import span_joined

# The places of the streams: pixels, tok_rgb, tok_depth, boxes.
RGB_AT, DEPTH_AT, BOXES_AT = 16, 32, 48
FIELDS = ("pixels", "shown", "shown_id", "asked", "asked_id", "before_id")


@pytest.fixture(scope="module")
def space(tmp_path_factory):
    return shards(tmp_path_factory.mktemp("space"), 10, crops=1)


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    return shards(tmp_path_factory.mktemp("outside"), 7, crops=1, start=500)


@pytest.fixture(scope="module")
def cropped_space(tmp_path_factory):
    return shards(tmp_path_factory.mktemp("crops"), 10, crops=4)


def batches(*parts, size=8, inputs=20, targets=16, components=None, **kwargs):
    masking = Masking(streams(), components, inputs=inputs, targets=targets)
    return Batches([p if isinstance(p, Part) else Part(p) for p in parts], masking, size, **kwargs)


def same(a, b):
    return all(torch.equal(getattr(a, f), getattr(b, f)) for f in FIELDS)


def key(picture):
    return picture.mul(255).round().to(torch.uint8).numpy().tobytes()


def frames_of(made, crop=0):
    """The frame of every picture."""
    pictures = made.read(range(len(made)), [crop] * len(made))["rgb"]
    return {picture.numpy().tobytes(): i for i, picture in enumerate(pictures)}


def test_a_batch_is_a_function_of_seed_and_step(cropped_space, outside):
    def made(seed=3):
        return batches(cropped_space, Part(outside, 0.5, ("rgb", "tok_rgb")), seed=seed)

    whole = [made()[step] for step in range(6)]
    again = made()
    assert same(again[5], whole[5])
    assert same(again[2], whole[2])
    assert not same(whole[0], whole[1])
    assert not same(made(seed=4)[2], whole[2])
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for workers in (0, 2):
        found = list(loader(made(), 2, 6, workers))
        assert len(found) == 4
        assert all(b.pixels.dtype == torch.uint8 for b in found)
        assert all(same(b.to("cpu"), w) for b, w in zip(found, whole[2:], strict=True))
    assert torch.equal(torch.get_rng_state(), before)


def test_pictures_are_those_that_are_stored(space):
    b = batches(space)[0]
    assert b.pixels.dtype == torch.float32
    frames = frames_of(space)
    for picture in b.pixels:
        stored = space.read([frames[key(picture)]], [0])["rgb"][0]
        assert torch.equal(picture, stored / 255)


@pytest.mark.parametrize(
    ("shares", "size"),
    [((1, 1), 8), ((1, 1 / 8), 8), ((1, 1 / 16), 3), ((2, 0.3, 0.1), 1), ((0.1, 0.7, 0.2, 0.4), 2)],
)
def test_shares_are_exact_over_time(space, outside, shares, size):
    parts = [Part((space, outside)[i % 2], share) for i, share in enumerate(shares)]
    made = batches(*parts, size=size)
    whole = sum(Fraction(s) for s in shares)
    given = np.zeros(len(shares), int)
    for step in range(150):
        now = made._counts((step + 1) * size)
        assert sum(now) == (step + 1) * size
        assert (np.array(now) >= given).all()  # what was given is not taken back
        given = np.array(now)
        for count, share in zip(now, shares, strict=True):
            assert abs(count - (step + 1) * size * Fraction(share) / whole) < len(shares)
    assert made._counts(0) == [0] * len(shares)
    inside = frames_of(space)
    seen = sum(key(p) in inside for step in range(20) for p in made[step].pixels)
    assert seen == sum(made._counts(20 * size)[0::2])


def test_one_to_one_and_one_to_eight(space, outside):
    """A half of every batch; and of nine samples one, to the sample."""
    inside = frames_of(space)
    half = batches(space, outside, size=8)
    assert all(sum(key(p) in inside for p in half[step].pixels) == 4 for step in range(10))
    ninth = batches(space, Part(outside, 1 / 8), size=9)
    assert all(sum(key(p) in inside for p in ninth[step].pixels) == 8 for step in range(10))


@pytest.mark.parametrize("repeat", [1, 4])
def test_each_frame_is_used_as_often_as_it_is_repeated_and_mixed(space, outside, monkeypatch, repeat):
    monkeypatch.setattr(module, "BUFFER", 20 * repeat)  # two epochs
    module._mixed.cache_clear()
    frames = frames_of(space)
    made = batches(space, Part(outside, 0.25), size=10, repeat=repeat)
    used = [frames[key(p)] for step in range(10 * repeat) for p in made[step].pixels if key(p) in frames]
    assert len(used) == 80 * repeat
    buffers = np.array(used).reshape(4, -1)
    for buffer in buffers:
        assert np.bincount(buffer, minlength=10).tolist() == [2 * repeat] * 10
    assert (buffers[0] != buffers[1]).any()
    if repeat == 4:
        follow = np.mean(np.diff(buffers.ravel()) == 0)
        assert follow < 0.3  # in a row it would be 3 of 4
    module._mixed.cache_clear()


def test_within_an_epoch_uses_are_repeated_before_they_are_mixed(space):
    """Without the mixing, a frame comes `repeat` times in a row, and every epoch has an order of its own."""
    made = batches(space, size=10, repeat=4)
    undo = np.argsort(module._mixed(0, 0, 0))
    order = made._frames(0, 0, module.BUFFER)[undo][:120].reshape(3, 10, 4)
    assert (order == order[..., :1]).all()
    epochs = order[..., 0]
    assert (np.sort(epochs, 1) == np.arange(10)).all()
    assert (epochs[0] != epochs[1]).any()
    # Any stretch of uses is the same as a part of the whole.
    assert (made._frames(0, 7, 90) == made._frames(0, 0, 200)[7:97]).all()


def test_crops_are_drawn_evenly(cropped_space):
    pictures = [key(p / 255) for k in range(4) for p in cropped_space.read(range(10), [k] * 10)["rgb"]]
    made = batches(cropped_space, size=40)
    found = [key(p) for step in range(50) for p in made[step].pixels]
    for picture in set(pictures):  # a window that does not fit is the first: such pictures come more often
        expected = 50 * pictures.count(picture)
        assert found.count(picture) == pytest.approx(expected, abs=4 * expected**0.5)


def test_shown_and_asked_ids_are_the_stored_tokens(space, outside):
    made = batches(space, outside, size=16)
    checked = np.zeros(2, int)
    for step in range(6):
        b = made[step]
        levels = Levels(RGB).encode(b.pixels)  # what the toy's tokens are
        expected = torch.cat([torch.zeros(16, 16).long(), levels, 7 - levels], 1)
        for kind, (places, ids) in enumerate(((b.shown, b.shown_id), (b.asked, b.asked_id))):
            assert places.dtype == ids.dtype == torch.int64
            grid = (places >= RGB_AT) & (places < BOXES_AT)
            assert torch.equal(ids[grid], expected.gather(1, places.clamp(0, 47))[grid])
            checked[kind] += grid.sum()
        assert not ((b.asked >= 0) & (b.asked < RGB_AT)).any()
    assert (checked > 300).all()


def test_budgets_hold_and_nothing_is_shown_twice_or_both_shown_and_asked(space):
    for inputs, targets in ((20, 16), (5, 3), (60, 60)):
        made = batches(space, size=16, inputs=inputs, targets=targets)
        for step in range(4):
            b = made[step]
            assert b.shown.shape == b.shown_id.shape == (16, inputs)
            assert b.asked.shape == b.asked_id.shape == b.before_id.shape == (16, targets)
            for shown, asked in zip(b.shown.tolist(), b.asked.tolist(), strict=True):
                shown, asked = ([p for p in places if p >= 0] for places in (shown, asked))
                assert len(set(shown)) == len(shown)
                assert len(set(asked)) == len(asked)
                grids = {p for p in shown if p < BOXES_AT}
                assert not grids & set(asked)
                for places in (shown, asked):
                    words = [p for p in places if p >= BOXES_AT]
                    assert words == list(range(BOXES_AT, BOXES_AT + len(words)))
            assert (b.shown >= 0).any(1).all()


def test_a_part_of_pictures_only_never_shows_or_asks_for_anything_else(space, outside):
    made = batches(space, Part(outside, 1.0, ("rgb", "tok_rgb")), size=16)
    inside = frames_of(space)
    others = 0
    for step in range(10):
        b = made[step]
        for i, picture in enumerate(b.pixels):
            if key(picture) not in inside:
                others += 1
                assert (b.shown[i] < DEPTH_AT).all()
                assert (b.asked[i] < DEPTH_AT).all()
    assert others == 80
    only_depth = [Component({"rgb": 1.0}, {"tok_depth": 1.0})]
    b = batches(Part(outside, 1.0, ("rgb", "tok_rgb")), space, components=only_depth)[0]
    lacking = torch.tensor([key(p) not in inside for p in b.pixels])
    assert (b.asked[lacking] == -1).all()
    assert (b.asked[~lacking] >= DEPTH_AT).all()


def test_a_part_without_pictures_shows_none(space):
    b = batches(Part(space, 1.0, ("tok_rgb", "tok_depth", "boxes")), Part(space, 1.0))[0]
    assert (b.pixels[:4] == 0).all()
    assert not ((b.shown[:4] >= 0) & (b.shown[:4] < RGB_AT)).any()
    assert (b.pixels[4:].amax((1, 2, 3)) > 0).all()


def words_of(places, ids, i):
    here = places[i] >= BOXES_AT
    return ids[i][here][places[i][here].argsort()].tolist()


def test_sequences_are_masked_in_spans_and_repeated(space):
    """What is shown and what is asked say the stored sequence where nothing was cut; before each word stands its own."""
    frames, sentinels = frames_of(space), VOCABULARY.sentinels
    components = [
        Component({"rgb": 1.0, "boxes": 3.0}, {"boxes": 1.0, "tok_rgb": 0.2}),
        Component({"rgb": 1.0}, {"boxes": 1.0}),
    ]
    made = batches(space, size=16, inputs=30, targets=30, components=components)
    joined = hidden = cut = 0
    for step in range(12):
        b = made[step]
        for i, picture in enumerate(b.pixels):
            stored = space.read([frames[key(picture)]], [0])["boxes"][0]
            stored = stored[stored >= 0].tolist()
            inside, outside = (words_of(p, t, i) for p, t in ((b.shown, b.shown_id), (b.asked, b.asked_id)))
            before = words_of(b.asked, b.before_id, i)
            assert before == [VOCABULARY.start, *outside][: len(outside)]
            assert not (b.before_id[i] != 0)[b.asked[i] < BOXES_AT].any()
            if not outside:
                continue
            assert outside[0] in sentinels
            whole = outside[0] == sentinels[0] and outside[-1] in sentinels and outside[-1] not in inside
            if whole and (inside or len(outside) == len(stored) + 2):
                assert span_joined(inside, outside, VOCABULARY).tolist() == stored
                joined += 1
                hidden += not inside
            else:
                cut += 1
                assert len([w for w in outside if w not in sentinels]) <= len(stored)
    assert joined > 50
    assert hidden > 20
    assert cut > 0


def test_a_sequence_that_is_not_shown_is_asked_for_up_to_its_end(space):
    """Else a model would never learn where a sequence ends when it is given the picture alone."""
    alone = [Component({"rgb": 1.0}, {"boxes": 1.0})]
    made = batches(space, size=16, components=alone, targets=40)
    frames = frames_of(space)
    for i, picture in enumerate(made[0].pixels):
        stored = space.read([frames[key(picture)]], [0])["boxes"][0]
        stored = stored[stored >= 0].tolist()
        first, second = VOCABULARY.sentinels[:2]
        expected = [first, *stored, second][:22]
        assert words_of(made[0].asked, made[0].asked_id, i) == expected
        assert words_of(made[0].asked, made[0].before_id, i) == [VOCABULARY.start, *expected[:-1]]


def test_masks_of_a_batch_come_from_the_mixture(space):
    """Pixels to all in one of five; the others share the budget by the concentration."""
    made = batches(space, size=64)
    pixels = torch.cat([((b.shown >= 0) & (b.shown < RGB_AT)).sum(1) for b in (made[i] for i in range(8))])
    # 20 slots, 16 places: pixels to all shows all of them and nothing else.
    share = (pixels == 16).float().mean().item()
    assert 0.2 < share < 0.5
    assert (pixels == 0).float().mean() > 0.1


def test_what_does_not_fit_is_refused(space, outside, tmp_path):
    with pytest.raises(ValueError, match="each with a share above 0"):
        batches()
    with pytest.raises(ValueError, match="each with a share above 0"):
        batches(Part(space, 0.0))
    with pytest.raises(ValueError, match="has no tok_rbg; there are rgb, tok_rgb"):
        batches(Part(space, 1.0, ("rgb", "tok_rbg")), outside)
    with pytest.raises(ValueError, match="no part has boxes, tok_depth; leave it out"):
        batches(Part(space, 1.0, ("rgb", "tok_rgb")))
    with pytest.raises(ValueError, match="the model has Stream"):
        batches(shards(tmp_path / "nine", 2, levels=9))
    with pytest.raises(ValueError, match="batch and repeat are at least 1"):
        batches(space, repeat=0)
    masking = Masking([Stream("sound", "grid", 16, 4)])
    with pytest.raises(ValueError, match="has none of sound"):
        Batches([Part(space)], masking, 4)
