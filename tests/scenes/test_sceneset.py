"""Labels of scenes in the convention of dense sets."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from testtime.data.dense import IGNORE, sized
from testtime.errors import DataError
from testtime.scenes.disk import Recipe, _stage, render_space
from testtime.scenes.sceneset import SceneSet, Space


def test_labels_are_those_of_the_frame(fake):
    scenes = render_space(4, 3, (10, 12))
    _, cameras, renderer = _stage(Recipe(seed=4, frames=3, size=(10, 12)))
    for i in range(3):
        sample, frame = scenes[i], renderer.frame(cameras[i], (10, 12), None)
        assert sample.name == f"default_00004/0000{i}"
        np.testing.assert_allclose(sample.image, frame.rgb.transpose(2, 0, 1) / 255, atol=1e-7)
        assert sample.labels["semseg"].dtype == torch.int64
        assert (sample.labels["semseg"][0] == IGNORE).all()
        np.testing.assert_array_equal(sample.labels["semseg"], frame.semantic)
        assert sample.labels["depth"].shape == (1, 10, 12)
        assert sample.labels["depth"][0, 0].isnan().all()
        np.testing.assert_allclose(sample.labels["depth"][0, 1:], frame.depth[1:], atol=0.00051)
        assert sample.labels["normals"][:, 0].isnan().all()
        np.testing.assert_allclose(sample.labels["normals"].norm(dim=0)[1:], 1, atol=1e-6)
        np.testing.assert_allclose(
            sample.labels["normals"][:, 1:], frame.normal.transpose(2, 0, 1)[:, 1:], atol=0.01
        )
        np.testing.assert_array_equal(sample.labels["edge"][0], frame.occlusion.astype(np.float32))


def test_a_batch_is_its_samples(fake):
    scenes = render_space(4, 3, (10, 12))
    both = SceneSet([*scenes.spaces, *render_space(5, 2, (10, 12)).spaces])
    assert len(both) == 5
    images, labels = both.batch([4, 0, 2])
    for row, i in enumerate([4, 0, 2]):
        assert torch.equal(images[row], both[i].image)
        for task in both.tasks:
            torch.testing.assert_close(
                labels[task][row], both[i].labels[task], rtol=0, atol=0, equal_nan=True
            )
    mixed = SceneSet([*scenes.spaces, *render_space(5, 2, (8, 8)).spaces])
    images, labels = mixed.batch([0, 4], (8, 8))
    assert torch.equal(images[0], sized(mixed[0], (8, 8)).image)
    assert torch.equal(images[1], mixed[4].image)
    with pytest.raises(ValueError, match="differ in size"):
        mixed.batch([0, 4])


def test_a_subset_keeps_the_views(fake):
    scenes = render_space(4, 3, (10, 12), shift="dark", tasks=["depth"])
    two = scenes.subset([2, 0])
    assert two.title(0) == "default_00004_dark/00002"
    assert set(two[0].labels) == {"depth"}
    view = two.view(1)
    assert view.name == "default_00004_dark/00000"
    assert view.shift == "dark"
    assert [b["instance"] for b in view.boxes] == [1, 300]
    assert view.instance.dtype == torch.int64
    np.testing.assert_array_equal(view.instance, scenes.stored("instance", 0))
    np.testing.assert_array_equal(view.canny, scenes.stored("canny", 0) == 255)
    assert view.camera.k.tolist() == [[6, 0, 6], [0, 6, 5], [0, 0, 1]]
    assert (view.camera.width, view.camera.height) == (12, 10)
    _, cameras, _ = _stage(Recipe(seed=4, frames=3, size=(10, 12), shift="dark"))
    np.testing.assert_array_equal(view.camera.pose, cameras[0].pose)
    with pytest.raises(IndexError, match="no frame 3, there are 3"):
        scenes.subset([3])


def test_wrong_arguments_are_refused(fake):
    scenes = render_space(4, 1, (8, 8))
    with pytest.raises(ValueError, match="tasks must be one of semseg, depth, normals, edge"):
        SceneSet(scenes.spaces, ["colour"])
    with pytest.raises(ValueError, match="at least one space"):
        SceneSet([])
    other = Space({**scenes.spaces[0].facts, "classes": ["a"]}, [], lambda m, i: np.zeros(1))
    with pytest.raises(DataError, match="expected the 5 classes of default_00004"):
        SceneSet([*scenes.spaces, other])
    with pytest.raises(ValueError, match="modality must be one of"):
        scenes.spaces[0].array("smell")


def test_moved_small_objects_with_the_same_cameras(fake):
    before, after = render_space(4, 2, (8, 8)), render_space(4, 2, (8, 8), moved=1)
    assert after.title(0) == "default_00004_moved1/00000"
    np.testing.assert_array_equal(after.camera(1).pose, before.camera(1).pose)
    assert before.view(0).caption == "A kitchen with a table and a mug. A mug is on the table."
    assert after.view(0).caption == "A kitchen with a table and a mug."
