import pytest
import torch
import torch.nn.functional as F

from testtime.models import ResNetCIFAR, resnet20, resnet32, resnet44, resnet56, resnet110
from testtime.models.resnet_cifar import Block


def test_parameters_are_those_of_the_paper() -> None:
    sizes = [sum(p.numel() for p in make().parameters()) for make in (resnet20, resnet32, resnet44, resnet56)]
    assert sizes == [269722, 464154, 658586, 853018]
    assert sum(p.numel() for p in resnet110().parameters()) == 1727962


def test_keys_are_those_of_the_published_checkpoints() -> None:
    keys = list(resnet20().state_dict())
    assert keys[:3] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert "layer3.2.bn2.running_var" in keys
    assert keys[-2:] == ["linear.weight", "linear.bias"]
    assert not any("shortcut" in key or "downsample" in key for key in keys)


def test_option_a_shortcut_subsamples_and_pads_a_quarter_of_the_channels_on_each_side() -> None:
    block = Block(16, 32, 2).eval()
    torch.nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 16, 8, 8)
    assert torch.equal(block(x), F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 8, 8)))


def test_classes_set_the_head() -> None:
    assert ResNetCIFAR(20, 7)(torch.rand(2, 3, 32, 32)).shape == (2, 7)


def test_depth_is_6n_plus_2() -> None:
    with pytest.raises(ValueError, match=r"6n \+ 2 .*got 21"):
        ResNetCIFAR(21)
