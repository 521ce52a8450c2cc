"""The data sets of the protocols: their classes and the size of their images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from testtime.bench import sets
from testtime.data import Crop
from testtime.errors import DataError


def picture(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def test_a_set_has_as_many_classes_as_the_model_has_outputs(tmp_path: Path) -> None:
    part = tmp_path / "part"
    picture(part / "imagenet" / "val" / "n02099601" / "a.png", np.zeros((8, 8, 3), np.uint8))
    assert sets.class_count("imagenet", "imagenet-resnet18", part) == 1000
    picture(tmp_path / "mine" / "val" / "cats" / "a.png", np.zeros((8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r"expected 1,000 classes of imagenet, .* found 1 \(cats, \.\.\.\)"):
        sets.class_count("imagenet", "imagenet-resnet18", tmp_path / "mine")
    assert sets.class_count("digits", "digits-cnn", tmp_path) == 10


def test_our_imagenet_c_keeps_the_shape_of_pictures(tmp_path: Path) -> None:
    pixels = np.zeros((600, 300, 3), np.uint8)
    pixels[250:350, 100:200] = 255
    picture(tmp_path / "imagenet" / "val" / "n01" / "a.png", pixels)
    (domain,), origin = sets.domains("imagenet", tmp_path, ("brightness",), 1)
    assert origin.startswith("ours-")
    assert domain.size == Crop(224, 256)
    seen = domain.render(np.array([0]))[0, 0] > 127
    assert (seen.shape, int(seen.any(1).sum()), int(seen.any(0).sum())) == ((224, 224), 86, 86)
