import torch
from torch import nn

from testtime.models import MobileNet


def test_parameters_and_keys_of_the_published_checkpoint() -> None:
    model = MobileNet()
    assert sum(p.numel() for p in model.parameters()) == 470072
    keys = set(model.state_dict())
    assert {"stage1.0.0.weight", "stage1.1.3.weight", "stage2.5.4.running_var", "stage3.1.4.bias"} <= keys


def test_depthwise_convolutions_are_depthwise() -> None:
    groups = [m.groups for m in MobileNet().modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)]
    assert groups == [1, 8, 16, 32, 32, 64, 64, 128, 128, 128, 128, 128, 128, 256]


def test_features_shrink_by_32() -> None:
    model = MobileNet().eval()
    with torch.no_grad():
        features = model.stage3(model.stage2(model.stage1(torch.rand(1, 3, 64, 64))))
    assert features.shape == (1, 256, 2, 2)
