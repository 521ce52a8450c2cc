"""Continuously changing corruptions: blends, paths over severities, order, and streams without an end."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from testtime.corruptions import corrupt
from testtime.data import ImageSet, from_arrays
from testtime.streams import Blend, CCCStream, Difficulty
from testtime.streams.ccc import severity_path
from testtime.streams.domain import derive_seed

NAMES = ("fog", "contrast", "brightness")


def photographs(count: int = 12) -> ImageSet:
    pixels = np.random.default_rng(0).integers(0, 256, (count, 3, 8, 8), dtype=np.uint8)
    return from_arrays("photographs", pixels, np.arange(count) % 2, ("a", "b"))


class Bright(nn.Module):
    """Predicts class 1 for bright images."""

    def __init__(self) -> None:
        super().__init__()
        self.shown = 0

    def forward(self, x: Tensor) -> Tensor:
        self.shown += len(x)
        mean = x.mean(dim=(1, 2, 3))
        return torch.stack([0.5 - mean, mean - 0.5], dim=1)


def measured(**more: object) -> Difficulty:
    return Difficulty(model=Bright(), images=photographs(), **more)  # type: ignore[arg-type]


def test_a_blend_is_one_corruption_after_the_other() -> None:
    x = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ids = np.array([4, 0, 7])
    seeds = derive_seed(5, "owner") + torch.from_numpy(ids)
    blend = Blend("contrast", "fog", (2, 3), seed=5)
    expected = corrupt(corrupt(x, "contrast", 2, seeds=seeds), "fog", 3, seeds=seeds)
    assert torch.equal(blend(x, "owner", ids), expected)
    assert torch.equal(Blend("contrast", "fog", (0, 0))(x, "owner", ids), x)


def test_a_severity_between_two_integers_interpolates_their_images() -> None:
    x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    ids = np.arange(2)
    low, high = (Blend("snow", "fog", (s, 0))(x, "o", ids) for s in (0, 1))
    assert torch.allclose(Blend("snow", "fog", (0.25, 0))(x, "o", ids), 0.75 * low + 0.25 * high)
    three, four = (Blend("snow", "fog", (s, 0))(x, "o", ids) for s in (3, 4))
    assert torch.allclose(Blend("snow", "fog", (3.5, 0))(x, "o", ids), (three + four) / 2)


@pytest.mark.parametrize("severities", [(-1, 0), (0, 5.5), (6, 0)])
def test_a_severity_out_of_range_is_refused(severities: tuple[float, float]) -> None:
    with pytest.raises(ValueError, match="severities go from 0"):
        Blend("snow", "fog", severities)


def _best(away: np.ndarray) -> float:
    """The least sum over all paths, by enumeration."""
    start, end = int(away[1:, 0].argmin()) + 1, int(away[0, 1:].argmin()) + 1
    sums = []
    for falls in itertools.combinations(range(start + end), start):
        s, t, total = start, 0, away[start, 0]
        for step in range(start + end):
            s, t = (s - 1, t) if step in falls else (s, t + 1)
            total += away[s, t]
        sums.append(total)
    return min(sums)


@pytest.mark.parametrize("seed", range(5))
def test_the_path_is_the_nearest_to_the_target(seed: int) -> None:
    accuracies = np.random.default_rng(seed).random((6, 6))
    found = severity_path(accuracies, 0.6, 1)
    away = np.abs(accuracies - 0.6)
    assert sum(away[int(s), int(t)] for s, t in found) == pytest.approx(_best(away))
    assert found[0][1] == found[-1][0] == 0
    assert found[0][0] == away[1:, 0].argmin() + 1
    assert found[-1][1] == away[0, 1:].argmin() + 1
    assert all(s - u + v - t == 1 and s >= u and v >= t for (s, t), (u, v) in itertools.pairwise(found))


def test_finer_steps_keep_to_the_target_on_a_plane() -> None:
    plane = 1 - np.add.outer(np.arange(6), 2 * np.arange(6)) / 10
    found = severity_path(plane, 0.65, 4)
    assert found[0] == (3.5, 0)
    assert found[-1] == (0, 1.75)
    assert max(abs(1 - (s + 2 * t) / 10 - 0.65) for s, t in found) <= 0.05 + 1e-9


def test_a_difficulty_is_the_accuracy_on_the_blend_measured_once(tmp_path: Path) -> None:
    file = tmp_path / "known.json"
    difficulty = measured(count=8, seed=3, file=file)
    found = difficulty("fog", "brightness")
    chosen = np.random.default_rng(derive_seed(3, "difficulty")).permutation(12)[:8]
    images = photographs()
    x = Blend("brightness", "fog", (4, 2))(images.batch(chosen), "photographs", chosen)
    right = (x.mul(255).round().div(255).mean(dim=(1, 2, 3)) > 0.5).numpy() == chosen % 2
    assert found[2, 4] == right.mean()
    shown = difficulty.model.shown  # type: ignore[union-attr]
    assert shown == 36 * 8
    assert np.array_equal(difficulty("brightness", "fog"), found.T)
    assert difficulty.model.shown == shown  # type: ignore[union-attr]
    assert json.loads(file.read_text())["brightness-4+fog-2"] == found[2, 4]
    assert np.array_equal(Difficulty(file=file)("fog", "brightness"), found)


def endless(**changes: object) -> CCCStream:
    settings = {"target": 0.5, "pace": 5, "batch_size": 4, "corruptions": NAMES, "steps": 1, "seed": 1}
    return CCCStream(photographs(), measured(), **{**settings, **changes})  # type: ignore[arg-type]


def test_the_stream_has_no_end_and_starts_with_its_first_batches() -> None:
    ccc = endless()
    stream = ccc.first(40)
    assert len(stream) == 40
    for index, (drawn, planned) in enumerate(zip(ccc, stream, strict=False)):
        assert drawn.index == planned.index == index
        assert torch.equal(drawn.x, planned.x)
        assert torch.equal(drawn.y, planned.y)
        assert (drawn.domain, drawn.visit) == (planned.domain, planned.visit)
        assert np.array_equal(drawn.sources, planned.sources)
    assert len(list(itertools.islice(ccc, 60))) == 60


def test_a_transition_begins_where_the_previous_one_ended() -> None:
    stream = endless().first(60)
    transitions: dict[int, str] = {plan.visit: plan.domain for plan in stream.plans}
    assert len(transitions) > 2
    for before, after in itertools.pairwise(transitions[v] for v in sorted(transitions)):
        assert before.split(" > ")[1] == after.split(" > ")[0]
        assert after.split(" > ")[0] != after.split(" > ")[1]
    names = [domain.name for domain in stream.domains]
    assert all(one != two for one, two in itertools.pairwise(names))


def test_every_pair_of_severities_has_pace_images_and_every_image_is_used_in_turn() -> None:
    stream = endless(batch_size=7).first(30)
    rows = np.concatenate([plan.rows for plan in stream.plans])
    lasted = np.bincount(rows[:, 0])
    assert set(lasted[:-1]) == {5}
    for turn in range(len(rows) // 12):
        assert sorted(rows[12 * turn : 12 * turn + 12, 1]) == list(range(12))


def test_the_seed_decides_and_batch_size_does_not() -> None:
    one, other, again = endless().first(25), endless(seed=2).first(25), endless().first(25)
    rows = [np.concatenate([plan.rows for plan in s.plans]) for s in (one, other, again)]
    assert np.array_equal(rows[0], rows[2])
    assert not np.array_equal(rows[0], rows[1])
    wide = endless(batch_size=5).first(20)
    assert np.array_equal(np.concatenate([p.rows for p in wide.plans])[:80], rows[0][:80])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corruptions": ("fog", "fog")}, "at least two names"),
        ({"target": 50}, "accuracy in"),
        ({"pace": 0}, "at least 1"),
    ],
)
def test_wrong_arguments_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        endless(**changes)


def test_a_model_without_labelled_images_is_refused() -> None:
    with pytest.raises(ValueError, match="images with labels"):
        Difficulty(model=Bright())
