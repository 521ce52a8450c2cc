"""The CIFAR ResNets of He et al. 2016 (section 4.2), with the parameter-free option-A shortcut."""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut that subsamples and zero-pads (option A).

    Args:
        inputs: channels that enter.
        outputs: channels that leave.
        stride: stride of the first convolution.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride = stride
        self.pad = (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1 or self.pad:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + x)


class ResNetCIFAR(nn.Module):
    """ResNet for 32x32 images: 16-32-64 channels, (depth - 2) / 6 blocks a stage.

    Args:
        depth: number of layers: 20, 32, 44, 56, 110 or any other 6n + 2.
        classes: number of classes.

    Takes (N, 3, 32, 32) normalised images and returns (N, classes) logits. The state-dict keys are those of
    the published checkpoints: ``conv1 bn1 layer{1..3}.i.{conv1,bn1,conv2,bn2} linear``.

    Raises:
        ValueError: if depth is not 6n + 2.

    Source: He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016.

    >>> sum(p.numel() for p in ResNetCIFAR(20).parameters())
    269722
    """

    def __init__(self, depth: int = 20, classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"depth must be 6n + 2 (20, 32, 44, 56, 110), got {depth}")
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, 1)
        self.layer2 = _stage(16, 32, blocks, 2)
        self.layer3 = _stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
    first = Block(inputs, outputs, stride)
    return nn.Sequential(first, *(Block(outputs, outputs, 1) for _ in range(blocks - 1)))


def resnet20(classes: int = 10) -> ResNetCIFAR:
    """Return the CIFAR ResNet of 20 layers (0.27 M parameters)."""
    return ResNetCIFAR(20, classes)


def resnet32(classes: int = 10) -> ResNetCIFAR:
    """Return the CIFAR ResNet of 32 layers (0.46 M parameters)."""
    return ResNetCIFAR(32, classes)


def resnet44(classes: int = 10) -> ResNetCIFAR:
    """Return the CIFAR ResNet of 44 layers (0.66 M parameters)."""
    return ResNetCIFAR(44, classes)


def resnet56(classes: int = 10) -> ResNetCIFAR:
    """Return the CIFAR ResNet of 56 layers (0.85 M parameters)."""
    return ResNetCIFAR(56, classes)


def resnet110(classes: int = 10) -> ResNetCIFAR:
    """Return the CIFAR ResNet of 110 layers (1.7 M parameters)."""
    return ResNetCIFAR(110, classes)
