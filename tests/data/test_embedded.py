import subprocess
import sys

import numpy as np
import pytest
from sklearn.datasets import load_digits, load_sample_images

from testtime.data import embedded
from testtime.data.imageset import ArrayImages


def test_the_digits_are_split_in_halves_that_do_not_change() -> None:
    train, test, _ = embedded()
    assert (len(train), len(test)) == (898, 899)
    assert train.labels is not None
    assert test.labels is not None
    assert [*train.labels, *test.labels] == load_digits().target.tolist()
    assert train.classes == test.classes == tuple("0123456789")


def test_an_enlarged_digit_is_the_digit() -> None:
    image = embedded(channels=1).train[0].numpy()[0]
    assert image.shape == (32, 32)
    small = load_digits().images[0] * 255 / 16
    assert np.abs(image.reshape(8, 4, 8, 4)[:, 1:3, :, 1:3].mean((1, 3)) - small).max() < 40
    assert image[0, 0] == round(small[0, 0])


def test_the_unknown_are_patches_of_both_photographs() -> None:
    unknown = embedded(channels=1).unknown
    assert len(unknown) == 1102
    assert unknown.labels is None
    for photograph, at in zip(load_sample_images().images, (0, 551), strict=True):
        grey = photograph @ np.array([0.299, 0.587, 0.114])
        patch = grey[:64, :64].reshape(32, 2, 32, 2).mean((1, 3))
        assert np.abs(unknown[at].numpy()[0] - patch).max() <= 0.5 + 1e-6


def test_colour_images_repeat_the_grey() -> None:
    image = embedded().unknown[7]
    assert image.shape == (3, 32, 32)
    assert (image[0] == image[2]).all()


def test_the_sets_are_made_once_and_cannot_be_written() -> None:
    assert embedded() is embedded(channels=3)
    images = embedded().test.images
    assert isinstance(images, ArrayImages)
    assert not images.array.flags.writeable


def test_scikit_learn_is_not_imported() -> None:
    code = "import sys; from testtime.data import embedded; embedded(); sys.exit('sklearn' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("module", "package"), [("sklearn", "scikit-learn"), ("PIL", "Pillow")])
def test_a_missing_package_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{package}.*pip install -e '\.\[demo\]'"):
        embedded()
