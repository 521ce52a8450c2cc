import pytest
import torch

from testtime.models import ResNet

# parameters as published with the checkpoints
PARAMETERS = {18: 11689512, 34: 21797672, 50: 25557032, 101: 44549160, 152: 60192808}


@pytest.mark.parametrize(("depth", "count"), PARAMETERS.items())
def test_parameters_are_those_of_the_public_checkpoints(depth: int, count: int) -> None:
    with torch.device("meta"):
        assert sum(p.numel() for p in ResNet(depth).parameters()) == count


def test_keys_are_those_of_the_public_checkpoints() -> None:
    with torch.device("meta"):
        keys = set(ResNet(50).state_dict())
    assert len(keys) == 320
    assert {"layer1.0.downsample.0.weight", "layer1.0.downsample.1.running_mean", "layer4.2.bn3.bias"} <= keys
    assert "layer1.1.downsample.0.weight" not in keys


def test_the_stride_of_a_bottleneck_is_on_its_3x3() -> None:
    with torch.device("meta"):
        block = ResNet(50).layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))


def test_features_shrink_by_32_and_the_head_has_the_classes() -> None:
    model = ResNet(18, classes=5).eval()
    seen: list[torch.Size] = []
    model.layer4.register_forward_hook(lambda _m, _i, out: seen.append(out.shape))
    with torch.no_grad():
        assert model(torch.rand(1, 3, 64, 96)).shape == (1, 5)
    assert seen == [(1, 512, 2, 3)]


def test_depth_is_one_of_five() -> None:
    with pytest.raises(ValueError, match="got 19"):
        ResNet(19)
