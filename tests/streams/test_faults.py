"""Faults of a camera: noise, other batch sizes, frames that stand still; and unknown images under their own condition."""

import numpy as np
import pytest
import torch

from testtime.data import from_arrays
from testtime.streams import clean, continual, noise_images, open_set, rebatched, stuck

GREY = from_arrays(
    "grey", np.arange(60, dtype=np.uint8)[:, None, None].repeat(4, 1).repeat(4, 2), [0, 1] * 30, ("a", "b")
)


def test_noise_has_every_level_and_no_label() -> None:
    noise = noise_images(50, side=16, seed=3)
    x = noise.batch(range(50))
    assert noise.labels is None
    assert x.mean().item() == pytest.approx(0.5, abs=0.005)
    assert x.std().item() == pytest.approx(12**-0.5, abs=0.005)
    assert not torch.equal(x, noise_images(50, side=16, seed=4).batch(range(50)))


def test_parts_of_a_stream_have_batches_of_their_size_and_the_same_images() -> None:
    stream = continual(GREY, ["fog", "contrast"], batch_size=60)
    small = rebatched(stream, (8, 4, 1))
    assert [len(b) for b in small] == [8] * 5 + [4] * 5 + [4] * 5 + [1] * 40
    assert [b.domain for b in small] == ["fog"] * 10 + ["contrast"] * 45
    whole, parts = (np.concatenate([b.ids for b in one]) for one in (stream, small))
    assert parts.tolist() == whole.tolist()
    assert small.batch_size == 8


def test_batches_do_not_cross_visits() -> None:
    stream = rebatched(continual(GREY.subset(range(6)), ["fog", "contrast"], batch_size=3), (4,))
    assert [(b.domain, len(b)) for b in stream] == [
        ("fog", 4),
        ("fog", 2),
        ("contrast", 4),
        ("contrast", 2),
    ]


def test_a_stuck_camera_repeats_one_frame_over_batches_and_copies_come_before() -> None:
    stream = stuck(continual(None, [clean(GREY)], batch_size=6), period=10, length=2)
    plain = continual(None, [clean(GREY)], batch_size=6)
    kinds = [len(set(b.ids.tolist())) for b in stream]
    assert kinds == [6, 6, 6, 6, 6, 6, 3, 3, 1, 1]
    assert set(stream[8].ids.tolist()) == set(stream[9].ids.tolist()) == {int(plain[8].ids[0])}
    assert stream[6].ids.tolist() == plain[6].ids[[0, 0, 2, 2, 4, 4]].tolist()
    assert torch.equal(stream[9].y, torch.from_numpy(stream[9].ids % 2))


@pytest.mark.parametrize("wrong", [(10, 5), (10, 0)])
def test_a_standstill_without_end_is_refused(wrong: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="below half of the period"):
        stuck(continual(None, [clean(GREY)]), *wrong)


def test_batches_without_images_are_refused() -> None:
    with pytest.raises(ValueError, match="each at least 1, got \\(4, 0\\)"):
        rebatched(continual(None, [clean(GREY)]), (4, 0))


def test_a_domain_of_unknown_images_keeps_its_condition() -> None:
    other = from_arrays("other", np.full((3, 4, 4), 200, np.uint8), [0, 1, 0], ("a", "b"))
    mixed = open_set(continual(GREY, ["contrast"], batch_size=20), clean(other), ratio=1 / 3)
    for batch in mixed:
        assert int((batch.y < 0).sum()) == 5
        assert batch.x[batch.y < 0].mul(255).round().unique().tolist() == [200]
    under = open_set(continual(GREY, ["brightness"], batch_size=20), other, ratio=1 / 3)[0]
    assert under.x[under.y < 0].mul(255).round().unique().tolist() != [200]
