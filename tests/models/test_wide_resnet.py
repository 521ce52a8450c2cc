import pytest
import torch
import torch.nn.functional as F

from testtime.models import WideResNet


def test_parameters_of_the_usual_sizes() -> None:
    assert sum(p.numel() for p in WideResNet(40, 2).parameters()) == 2243546
    with torch.device("meta"):
        assert sum(p.numel() for p in WideResNet(28, 10).parameters()) == 36479194


def test_keys_are_those_of_the_published_checkpoints() -> None:
    keys = list(WideResNet(10, 1).state_dict())
    assert keys[0] == "conv1.weight"
    assert "block1.layer.0.bn1.weight" in keys
    assert "block2.layer.0.convShortcut.weight" in keys
    assert "block1.layer.0.convShortcut.weight" not in keys  # 16 -> 16 channels needs none
    assert keys[-2:] == ["fc.weight", "fc.bias"]


def test_the_convolutional_shortcut_starts_from_the_activation() -> None:
    block = WideResNet(10, 2).eval().block2.layer[0]
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(1, 32, 8, 8)
    expected = F.conv2d(F.relu(block.bn1(x)), block.convShortcut.weight, stride=2)
    assert torch.allclose(block(x), expected)


def test_dropout_acts_in_training_only() -> None:
    model, x = WideResNet(10, 1, dropout=0.5), torch.rand(4, 3, 32, 32)
    model.eval()
    assert torch.equal(model(x), model(x))
    model.train()
    assert not torch.equal(model(x), model(x))


def test_depth_is_6n_plus_4() -> None:
    with pytest.raises(ValueError, match=r"6n \+ 4 .*got 41"):
        WideResNet(41)
