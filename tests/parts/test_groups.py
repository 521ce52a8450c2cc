"""The stem and the stages, wherever they are; a convolution alone; none."""

import pytest
from torch import nn

from testtime.models.resnet import ResNet
from testtime.models.wide_resnet import WideResNet
from testtime.parts.groups import groups_of


def test_the_stem_and_the_stages() -> None:
    stages = ["conv1", "layer1", "layer2", "layer3", "layer4"]
    assert groups_of(ResNet(18, 10, 4)) == stages
    assert groups_of(nn.Sequential(nn.Identity(), ResNet(18, 10, 4))) == [f"1.{s}" for s in stages]
    assert len(groups_of(WideResNet(10, 1, 10))) == 4


def test_a_single_convolution_and_none() -> None:
    assert groups_of(nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 1)), nn.ReLU())) == ["0.0"]
    with pytest.raises(ValueError, match="this model has none"):
        groups_of(nn.Linear(3, 2))
