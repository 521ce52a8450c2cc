"""Errors that name what was meant, and everything that is missing at once."""

import pytest

from testtime.build import adapt
from testtime.errors import did_you_mean, need_packages, unknown_name
from testtime.models import model_card


def test_the_name_that_was_meant() -> None:
    assert did_you_mean("Pafkip", ["PAF+KIP", "tent"]) == " (did you mean 'PAF+KIP'?)"
    assert did_you_mean("moon", ["svhn", "textures"]) == ""
    assert str(unknown_name("data set", "moon", ["svhn"])) == "no data set 'moon'; there are svhn"


def test_names_of_models_and_methods() -> None:
    with pytest.raises(
        ValueError, match=r"no model 'digits-cn' \(did you mean 'digits-cnn'\?\); there are cifar10"
    ):
        model_card("digits-cn")
    with pytest.raises(ValueError, match=r"no method 'tnet' \(did you mean 'tent'\?\)"):
        adapt(None, "tnet")  # type: ignore[arg-type]


def test_what_is_missing_is_named_in_one_message() -> None:
    need_packages(json="images")
    with pytest.raises(ImportError) as error:
        need_packages(no_such="scenes", json="mat", cv2_not_there="scenes", nor_this="space")
    assert str(error.value) == (
        "no_such, cv2_not_there, nor_this are not installed; they come with testtime[scenes,space]: "
        "pip install -e '.[scenes,space]' in the folder of testtime's source"
    )
