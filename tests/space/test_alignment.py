"""Faults between modalities are found, and none imagined."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_house import Changed, small_house
from torch import Tensor

from testtime.data import Sample, seven_scenes
from testtime.scenes import SceneSet, render_space
from testtime.space.alignment import alignment, normal_signs
from testtime.space.normals import normals_of
from testtime.space.sources import read_space


@pytest.fixture(scope="module")
def scenes() -> SceneSet:
    return small_house()


def zoomed(factor: float) -> Callable[[Tensor], Tensor]:
    def change(value: Tensor) -> Tensor:
        rows, columns = (
            ((torch.arange(n) + 0.5 - n / 2) / factor + n / 2).long().clamp(0, n - 1)
            for n in value.shape[-2:]
        )
        return value[:, rows[:, None], columns]

    return change


@pytest.mark.parametrize("task", ["depth", "normals"])
def test_what_lies_right_is_not_warned_of(scenes, task):
    found = alignment(scenes, task)
    assert found.warning == ""
    assert (found.best, found.shift, found.frames) == ("as it is", (0, 0), 10)
    assert found.score == found.best_score > 0.3
    for one in range(10):
        assert alignment(scenes.subset([one]), task).warning == ""


@pytest.mark.parametrize("task", ["depth", "normals"])
@pytest.mark.parametrize(
    ("change", "best"),
    [
        (lambda x: x.roll(2, -1), "shifted by (-2, 0) pixels"),
        (lambda x: x.roll((-3, 1), (-1, -2)), "shifted by (3, -1) pixels"),
        (lambda x: x.flip(-1), "mirrored left to right"),
        (lambda x: x.flip(-2), "mirrored top to bottom"),
        (lambda x: x.flip(-1, -2), "rotated by 180 degrees"),
        (zoomed(1.25), "scaled by 0.80"),
        (zoomed(0.8), "scaled by 1.25"),
    ],
)
def test_planted_faults_are_named(scenes, task, change, best):
    found = alignment(Changed(scenes, change), task)
    assert found.best == best
    assert found.best_score > 1.1 * found.score
    assert best in found.warning
    assert f"{found.score:.2f}" in found.warning
    if best.startswith("shifted"):
        assert str(found.shift) in best
        right = alignment(scenes, task)
        assert found.best_score == pytest.approx(right.score, abs=0.06)


def test_a_shift_is_found_in_the_noise_of_a_sensor():
    large = render_space(seed=4, frames=6, size=(120, 160), tasks=("depth",))
    rng = torch.Generator().manual_seed(0)

    def noisy(value: Tensor) -> Tensor:
        value = value * (1 + 0.01 * torch.randn(value.shape, generator=rng))
        return value.where(torch.rand(value.shape, generator=rng) > 0.1, torch.nan)

    assert alignment(Changed(large, noisy), "depth").warning == ""
    found = alignment(Changed(large, lambda x: noisy(x).roll(5, -1)), "depth")
    assert found.shift == (-5, 0)
    assert "shifted by (-5, 0) pixels" in found.warning


@pytest.mark.shared
def test_the_two_lenses_of_the_kinect_are_distinguished():
    """7-Scenes has depth as the infrared camera sees it, with a focal length of 585 pixels beside 525 of the colours'."""
    root = Path(__file__).parents[2] / ".data" / "7scenes"
    if not root.is_dir():
        pytest.skip("no 7-Scenes beside the checkout")
    frames = range(0, 60, 8)
    found = alignment(seven_scenes(root).subset(frames), "depth")
    assert found.best == "scaled by 0.90"
    assert found.best_score > 1.5 * found.score
    brought = alignment(read_space(root).subset(frames), "depth")  # through the colours' lens
    assert brought.score > 2 * found.score
    assert brought.warning == ""


def test_depth_of_the_next_frame_is_named(scenes):
    class Late(Changed):
        def __getitem__(self, index: int) -> Sample:
            labels = {"depth": self.data[max(0, index - 1)].labels["depth"]}
            return replace(self.data[index], labels=labels)

    found = alignment(Late(scenes, only="depth"), "depth")
    assert found.best == "taken from the frame after"
    assert found.warning


def test_depth_of_other_frames_is_warned_of(scenes):
    noise = lambda x: 1 + torch.rand(x.shape, generator=torch.Generator().manual_seed(int(1e3 * x.nanmean())))  # noqa: E731
    assert "hardly correlated" in alignment(Changed(scenes, noise), "depth").warning
    with pytest.raises(ValueError, match="task must be one of depth, normals"):
        alignment(scenes, "semseg")


def test_correlation_of_shifts_is_that_of_the_moved_borders():
    from testtime.space.alignment import _shifted

    rng = np.random.default_rng(0)
    a, b = rng.random((14, 15)), rng.random((14, 15))
    found = _shifted(torch.from_numpy(a), torch.from_numpy(b), 3)
    for dy, dx in ((0, 0), (2, -1), (-3, 3)):
        # Borders moved dx right and dy down, compared within the inner part.
        moved = np.roll(b, (dy, dx), (0, 1))[3:-3, 3:-3]
        expected = np.corrcoef(a[3:-3, 3:-3].ravel(), moved.ravel())[0, 1]
        assert float(found[3 + dy, 3 + dx]) == pytest.approx(expected, abs=1e-9)


def test_normals_of_another_convention_are_named(scenes):
    def pairs(signs):
        turned = torch.tensor(signs).view(3, 1, 1)
        for i in range(4):
            labels = scenes[i].labels
            yield labels["normals"] * turned, normals_of(labels["depth"], scenes.camera(i).k)

    right = normal_signs(pairs((1, 1, 1)))
    assert right["angle"] < 1
    assert right["warning"] == ""
    down = normal_signs(pairs((1, -1, 1)))
    assert down["signs"] == [1, -1, 1]
    assert down["best_angle"] == right["angle"]
    assert "with y inverted" in down["warning"]
    both = normal_signs(pairs((-1, 1, -1)))
    assert "with x and z inverted" in both["warning"]
    assert normal_signs([])["angle"] is None
