"""The promptable segmenter: drawn points against numpy, and the packaged weights on a scene that it has not met."""

import numpy as np
import pytest
import torch

from testtime.vision_language.point_segmenter import (
    WEIGHTS,
    PointSegmenter,
    draw_points,
    load_point_segmenter,
)


def test_points_are_drawn_as_the_largest_of_their_bells():
    points = torch.tensor([[[0.2, 0.3], [0.7, 0.6], [0.5, 0.5], [0.9, 0.1]]])
    labels = torch.tensor([[1, 1, 0, -1]])
    found = draw_points(points, labels, (10, 20), radius=0.1)[0].numpy()
    y, x = np.mgrid[:10, :20] + 0.5
    bells = [np.exp(-((x - px * 20) ** 2 + (y - py * 10) ** 2) / 2) for px, py in points[0].numpy()]
    np.testing.assert_allclose(found[0], np.maximum(bells[0], bells[1]), rtol=1e-5)
    np.testing.assert_allclose(found[1], bells[2], rtol=1e-5)


@pytest.mark.parametrize(
    ("points", "labels", "words"),
    [
        (torch.zeros(1, 2), torch.ones(1, 2), "points\\[None\\]"),
        (torch.full((1, 2, 2), 30.0), torch.ones(1, 2), "divide pixels"),
        (torch.zeros(1, 2, 2), torch.ones(1, 3), "labels \\(N, P\\)"),
    ],
)
def test_points_that_do_not_fit_are_refused(points, labels, words):
    with pytest.raises(ValueError, match=words):
        draw_points(points, labels, (8, 8))


def test_other_images_and_sizes_are_refused():
    with pytest.raises(ValueError, match="multiple of 8"):
        PointSegmenter(20)
    with pytest.raises(ValueError, match="points for each"):
        PointSegmenter(8)(torch.zeros(2, 3, 8, 8), torch.zeros(1, 1, 2), torch.ones(1, 1))


def test_the_packaged_weights_are_small_and_find_what_the_points_are_on():
    """On a house that it was not trained on; a mask of all pixels would have the IoU of the objects' shares, 0.13."""
    scenes = pytest.importorskip("testtime.scenes")
    assert WEIGHTS.stat().st_size < 3e6
    house = scenes.generate_house(3)
    frame = scenes.Renderer(house).frame(house.cameras(1)[0], (64, 64), boxes=False)
    image = torch.from_numpy(frame.rgb).permute(2, 0, 1)[None].float() / 255
    net, found = load_point_segmenter(), []
    numbers, counts = np.unique(frame.instance, return_counts=True)
    for number in numbers[(counts > 120) & (numbers > 0)]:
        mask = frame.instance == number
        places = np.argwhere(mask)[[len(np.argwhere(mask)) // 3, len(np.argwhere(mask)) // 2]]
        points = torch.tensor((places[:, ::-1] + 0.5) / 64)[None].float()
        with torch.no_grad():
            answer = net(image, points, torch.ones(1, 2, dtype=torch.int64))[0].numpy() > 0
        found.append((answer & mask).sum() / (answer | mask).sum())
    assert len(found) > 3
    assert np.mean(found) > 0.3
