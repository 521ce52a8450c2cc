"""Streams: order and condition of the images, which depend on the seed alone."""

from collections import Counter

import numpy as np
import pytest
import torch

from testtime.corruptions import corrupt
from testtime.data import Crop, ImageSet, from_arrays
from testtime.streams import (
    Batch,
    Stream,
    clean,
    continual,
    correlated,
    corrupted,
    gradual,
    label_shift,
    mixed,
    open_set,
    published,
)
from testtime.streams.domain import Blend, Condition, Domain, derive_seed

pytestmark = pytest.mark.filterwarnings("error")


def images(name: str, count: int, size: int = 8, classes: int = 4) -> ImageSet:
    pixels = np.random.default_rng(count).integers(0, 256, (count, 3, size, size), dtype=np.uint8)
    labels = np.arange(count) % classes
    return from_arrays(name, pixels, labels, tuple("abcdefghij"[:classes]))


KNOWN, UNKNOWN = images("known", 40), images("unknown", 7, size=16)
UNLABELLED = from_arrays("bare", np.zeros((4, 8, 8), np.uint8))


def by_image(stream: Stream) -> dict[tuple[str, int, int], torch.Tensor]:
    """Every image of a stream, by visit, index of the domain and index of the image."""
    found = {}
    for batch in stream:
        for row in range(len(batch)):
            found[batch.visit, int(batch.sources[row]), int(batch.ids[row])] = batch.x[row]
    return found


def same(a: Batch, b: Batch) -> bool:
    return torch.equal(a.x, b.x) and torch.equal(a.y, b.y) and (a.domain, a.index) == (b.domain, b.index)


def test_continual_shows_every_image_once_per_domain_with_its_label() -> None:
    stream = continual(KNOWN, ["fog", "contrast"], batch_size=16, seed=3)
    assert [(b.domain, len(b), b.index, b.visit) for b in stream] == [
        ("fog", 16, 0, 0),
        ("fog", 16, 1, 0),
        ("fog", 8, 2, 0),
        ("contrast", 16, 3, 1),
        ("contrast", 16, 4, 1),
        ("contrast", 8, 5, 1),
    ]
    for visit in (0, 1):
        batches = [b for b in stream if b.visit == visit]
        assert sorted(np.concatenate([b.ids for b in batches]).tolist()) == list(range(40))
    assert all(torch.equal(b.y, torch.from_numpy(b.ids % 4)) for b in stream)
    first, second = (np.concatenate([b.ids for b in stream if b.visit == v]) for v in (0, 1))
    assert first.tolist() != second.tolist()


def test_images_are_the_corruption_of_the_clean_ones() -> None:
    batch = continual(KNOWN, ["gaussian_noise"], severity=3, batch_size=5, seed=11)[2]
    seeds = derive_seed(11, "known") + torch.from_numpy(batch.ids)
    expected = corrupt(KNOWN.batch(batch.ids), "gaussian_noise", 3, seeds=seeds)
    assert batch.domain == "gaussian_noise-3"
    assert torch.equal(batch.x, expected)


def test_levels_are_rendered_as_their_floats_would_be() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    images = from_arrays("noise", pixels, channels_last=True).subset([4, 0, 5, 1])
    ids = np.array([2, 0, 3])
    x = torch.from_numpy(pixels[[5, 4, 1]]).permute(0, 3, 1, 2)
    assert torch.equal(clean(images).render(ids), x)
    for condition in (Condition("fog", 3, jpeg=True), Blend("contrast", "fog", (2.5, 1))):
        expected = condition(x.float() / 255, "noise", ids).mul(255).round().to(torch.uint8)
        assert torch.equal(Domain(images, condition).render(ids), expected)
    assert clean(images, (16, 16)).render(ids).shape == (3, 3, 16, 16)


def test_a_corrupted_image_does_not_depend_on_batch_size_or_order() -> None:
    small = by_image(open_set(continual(KNOWN, ["impulse_noise", "fog"], batch_size=4), UNKNOWN))
    large = by_image(open_set(continual(KNOWN, ["impulse_noise", "fog"], batch_size=30), UNKNOWN))
    shared = small.keys() & large.keys()
    assert len(shared) > 80
    assert all(torch.equal(small[key], large[key]) for key in shared)


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_do_not_change_the_stream(workers: int) -> None:
    stream = open_set(mixed(KNOWN, ["fog", "shot_noise"], batch_size=12, seed=5), UNKNOWN)
    ahead = stream.prefetch(workers)
    assert len(list(ahead)) == len(stream)
    assert all(same(a, b) for a, b in zip(stream, ahead, strict=True))
    assert all(same(a, b) for a, b in zip(list(stream)[3:], ahead.since(3), strict=True))


def test_the_order_depends_on_the_seed_alone() -> None:
    one, again, other = (continual(KNOWN, ["shot_noise"], batch_size=8, seed=s) for s in (1, 1, 2))
    torch.manual_seed(99)
    assert all(same(a, b) for a, b in zip(one, again, strict=True))
    assert one[0].ids.tolist() != other[0].ids.tolist()
    a, b = by_image(one), by_image(other)
    assert not torch.equal(a[0, 0, 0], b[0, 0, 0])  # other noise, too


def test_limit_takes_a_prefix_of_the_same_order() -> None:
    whole, part = (continual(KNOWN, ["fog", "snow"], batch_size=10, limit=n, seed=1) for n in (None, 15))
    for visit in (0, 1):
        order = np.concatenate([b.ids for b in whole if b.visit == visit])
        head = np.concatenate([b.ids for b in part if b.visit == visit])
        assert head.tolist() == order[:15].tolist()


def test_gradual_severities_increase_and_decrease() -> None:
    names = [b.domain for b in gradual(KNOWN, ["fog"], batch_size=40)]
    assert names == ["fog-1", "fog-2", "fog-3", "fog-4", "fog", "fog-4", "fog-3", "fog-2", "fog-1"]


def test_mixed_holds_all_domains_in_one_visit() -> None:
    stream = mixed(KNOWN, ["fog", "contrast"], batch_size=20, seed=2)
    assert {b.domain for b in stream} == {"mixed"}
    counts = Counter(int(source) for b in stream for source in b.sources)
    assert counts == {0: 40, 1: 40}
    assert all(0 < (b.sources == 0).sum() < 20 for b in stream)


def test_correlated_classes_follow_each_other_and_no_image_is_lost() -> None:
    known = images("many", 400, size=4)

    def changes(delta: float) -> float:
        stream = correlated(known, [clean(known)], batch_size=50, delta=delta, seed=0)
        y = torch.cat([b.y for b in stream])
        assert sorted(np.concatenate([b.ids for b in stream]).tolist()) == list(range(400))
        shares = torch.stack([torch.bincount(b.y, minlength=4) / 50.0 for b in stream])
        assert len(y) == 400
        return float(shares.max(1).values.mean())

    assert changes(0.01) > 0.5  # one class or two at a time
    assert changes(1e4) < 0.4  # nearly a quarter each


def test_classes_are_correlated_across_mixed_domains() -> None:
    known = images("many", 400)
    stream = correlated(known, ["fog", "contrast"], batch_size=50, delta=0.01, together=True)
    assert {(b.domain, b.visit) for b in stream} == {("mixed", 0)}
    assert Counter(
        (int(s), int(i)) for b in stream for s, i in zip(b.sources, b.ids, strict=True)
    ) == Counter((s, i) for s in (0, 1) for i in range(400))
    shares = [np.bincount(b.y, minlength=4).max() / len(b) for b in stream]
    assert np.mean(shares) > 0.6
    assert all(0.2 < (b.sources == 0).mean() < 0.8 for b in stream)


@pytest.mark.parametrize(("imbalance", "share"), [(1.0, 0.25), (3.0, 0.5), (27.0, 0.9), (float("inf"), 1.0)])
def test_every_class_dominates_a_period(imbalance: float, share: float) -> None:
    known = images("many", 2000)
    stream = label_shift(known, [clean(known), "fog"], batch_size=500, imbalance=imbalance, seed=1)
    assert [b.domain for b in stream] == ["clean"] * 4 + ["fog"] * 4
    counted = [np.bincount(b.y, minlength=4) for b in stream]
    assert np.mean([r.max() / 500 for r in counted]) == pytest.approx(share, abs=0.03)
    if share > 0.3:
        assert sorted(int(r.argmax()) for r in counted[:4]) == [0, 1, 2, 3]
        assert [int(r.argmax()) for r in counted[:4]] != [int(r.argmax()) for r in counted[4:]]
    for b in stream:
        assert np.array_equal(b.y, known.labels[b.ids])
        counts = Counter(int(i) for i in b.ids)
        assert max(counts.values()) <= (1 if imbalance == float("inf") else 3)
    again = label_shift(known, [clean(known), "fog"], batch_size=500, imbalance=imbalance, seed=1)
    assert same(stream[5], again[5])


@pytest.mark.parametrize(
    ("ratio", "size", "expected"),
    [(1.0, 20, (10, 10)), (0.25, 20, (16, 4)), (1.75, 22, (8, 14)), (0.0, 20, (20, 0))],
)
def test_open_set_ratio(ratio: float, size: int, expected: tuple[int, int]) -> None:
    stream = open_set(continual(KNOWN, ["fog"], batch_size=size), UNKNOWN, ratio)
    first = stream[0]
    assert (int((first.y >= 0).sum()), int((first.y < 0).sum())) == expected
    known = [i for b in stream for i, y in zip(b.ids, b.y, strict=True) if y >= 0]
    assert sorted(int(i) for i in known) == list(range(40))  # every known image once


def test_unknown_images_are_resized_corrupted_and_repeated_evenly() -> None:
    stream = open_set(continual(KNOWN, ["shot_noise"], batch_size=20, seed=4), UNKNOWN)
    ids = np.concatenate([b.ids[b.y.numpy() < 0] for b in stream])
    assert len(ids) == 40
    assert set(Counter(ids.tolist()).values()) <= {5, 6}  # 40 of 7
    batch = stream[0]
    row = int(np.flatnonzero(batch.y.numpy() < 0)[0])
    image = int(batch.ids[row])
    small = UNKNOWN.batch([image], 8)
    expected = corrupt(small, "shot_noise", 5, seeds=[derive_seed(4, "unknown") + image])[0]
    assert torch.equal(batch.x[row], expected)


def test_known_and_unknown_are_shuffled_within_a_batch() -> None:
    y = open_set(continual(KNOWN, ["fog"], batch_size=20), UNKNOWN)[0].y
    assert (y[:10] < 0).any()
    assert (y[10:] < 0).any()


def test_a_mixed_batch_gives_its_unknown_the_same_mix() -> None:
    stream = open_set(mixed(KNOWN, ["fog", "contrast"], batch_size=20, seed=1), UNKNOWN)
    for batch in stream:
        known = Counter(int(s) for s in batch.sources if s < 2)
        unknown = Counter(int(s) - 2 for s in batch.sources if s >= 2)
        assert known == unknown


def test_published_sets_are_domains_too(tmp_path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    np.save(tmp_path / "fog.npy", pixels)
    np.save(tmp_path / "labels.npy", np.tile(np.arange(10), 5))
    from testtime.data import cifar_c

    domain = published(cifar_c, tmp_path, "fog", 2)
    stream = open_set(continual(None, [domain], batch_size=4), UNKNOWN)
    batch = stream[0]
    row = int(np.flatnonzero(batch.y.numpy() >= 0)[0])
    stored = torch.from_numpy(pixels[10 + batch.ids[row]]).permute(2, 0, 1) / 255
    assert batch.domain == "fog-2"
    assert torch.allclose(batch.x[row], stored)
    other = int(np.flatnonzero(batch.y.numpy() < 0)[0])
    expected = corrupt(
        UNKNOWN.batch([batch.ids[other]], 32),
        "fog",
        2,
        seeds=[derive_seed(0, "unknown") + int(batch.ids[other])],
    )
    assert torch.equal(batch.x[other], expected[0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: continual(KNOWN, []), "at least one domain"),
        (lambda: continual(None, ["fog"]), "needs images"),
        (lambda: continual(KNOWN, ["fog"], batch_size=0), "at least 1"),
        (lambda: open_set(continual(KNOWN, ["fog"], batch_size=2), UNKNOWN, 9.0), "known image"),
        (lambda: open_set(continual(KNOWN, ["fog"]), UNKNOWN, -1.0), "at least 0"),
        (lambda: correlated(KNOWN, ["fog"], delta=0.0), "positive"),
        (lambda: label_shift(KNOWN, ["fog"], imbalance=0.5), "at least 1, got 0.5"),
        (lambda: label_shift(UNLABELLED, ["fog"]), "a label-shifted stream is ordered by them"),
        (lambda: continual(KNOWN, ["fgo"])[0], "did you mean 'fog'"),
    ],
)
def test_wrong_arguments_are_refused(make, message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_domains_of_other_sizes_are_refused() -> None:
    stream = mixed(None, [clean(KNOWN), clean(UNKNOWN)], batch_size=47)
    with pytest.raises(ValueError, match="same size="):
        stream[0]


def test_images_are_rendered_on_demand() -> None:
    class Never:
        def __len__(self) -> int:
            return 10

        def pixels(self, index: int, channels: int) -> np.ndarray:
            raise AssertionError("an image was read")

        def raw(self, index: int) -> bytes:
            raise AssertionError("an image was read")

    lazy = ImageSet("lazy", ("a",), np.zeros(10, np.int64), Never())
    stream = continual(None, [corrupted(lazy, "fog", size=(8, 8))], batch_size=4)
    assert len(open_set(stream, lazy)) == 5


def test_domains_of_different_classes_are_refused() -> None:
    pixels = np.zeros((2, 8, 8), np.uint8)
    sets = [from_arrays(name, pixels, [0, 1], classes) for name, classes in (
        ("a", ("n02", "n03")), ("b", ("n01", "n02", "n03")), ("c", ("n03", "n02")))]  # fmt: skip
    with pytest.raises(ValueError, match=r"different classes: fog has 2, frost has 3 \(only in frost: n01\)"):
        continual(None, [corrupted(sets[0], "fog"), corrupted(sets[1], "frost")])
    with pytest.raises(ValueError, match=r"fog has 2, clean has 2 \(in another order\)"):
        mixed(None, [corrupted(sets[0], "fog"), clean(sets[2])])
    continual(None, [corrupted(sets[0], "fog"), clean(UNLABELLED)])
    open_set(continual(None, [clean(sets[0])], batch_size=2), sets[1])


def test_images_of_the_label_minus_1_are_unknown() -> None:
    part = from_arrays("part", np.zeros((4, 8, 8), np.uint8), [0, -1, 1, -1], ("a", "b"))
    assert sorted(next(iter(continual(None, [clean(part)]))).y.tolist()) == [-1, -1, 0, 1]


def test_pictures_keep_their_shape_in_a_crop_and_so_do_the_unknown() -> None:
    picture = np.zeros((1, 300, 600, 3), np.uint8)
    picture[:, 100:200, 250:350] = 255
    wide = from_arrays("wide", picture, [0], ("a",), channels_last=True)
    stream = open_set(continual(None, [clean(wide, Crop(224, 256))], batch_size=2), wide)
    seen = stream[0].x[:, 0] > 0.5
    assert seen.shape == (2, 224, 224)
    for square in seen:
        assert int(square.any(1).sum()) == int(square.any(0).sum()) == 86  # 100 * 256 / 300
