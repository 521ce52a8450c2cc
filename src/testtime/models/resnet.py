"""ImageNet ResNets (He et al. 2016) with the state-dict keys of the public torchvision checkpoints."""

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions: the block of ResNet-18 and ResNet-34."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _projection(inputs, planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, the stride on the 3x3: the block of ResNet-50 and deeper."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.downsample = _projection(inputs, 4 * planes, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + (x if self.downsample is None else self.downsample(x)))


LAYOUT: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


class ResNet(nn.Module):
    """ResNet for images of about 224x224.

    Args:
        depth: 18, 34, 50, 101 or 152.
        classes: number of classes.
        width: channels of the first stage's 3x3 convolutions; the paper's is 64.

    Takes (N, 3, H, W) normalised images and returns (N, classes) logits. The state-dict keys are
    ``conv1 bn1 layer{1..4}.i.{conv,bn}{1..3} layer{1..4}.0.downsample.{0,1} fc``.

    Raises:
        ValueError: if depth is not one of the five.

    Source: He et al., *Deep Residual Learning for Image Recognition*, CVPR 2016; the stride of a bottleneck
    is on its 3x3 convolution, as in the public checkpoints ("v1.5").

    >>> sum(p.numel() for p in ResNet(50).parameters())
    25557032
    """

    def __init__(self, depth: int = 50, classes: int = 1000, width: int = 64) -> None:
        super().__init__()
        if depth not in LAYOUT:
            raise ValueError(f"depth must be one of {sorted(LAYOUT)}, got {depth}")
        block, counts = LAYOUT[depth]
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.channels = tuple(width * block.expansion * 2**i for i in range(4))
        self.layer1 = _stage(block, width, width, counts[0], 1)
        self.layer2 = _stage(block, self.channels[0], 2 * width, counts[1], 2)
        self.layer3 = _stage(block, self.channels[1], 4 * width, counts[2], 2)
        self.layer4 = _stage(block, self.channels[2], 8 * width, counts[3], 2)
        self.fc = nn.Linear(self.channels[3], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The maps after the four stages, of ``channels`` channels, at strides 4, 8, 16 and 32."""
        c2 = self.layer1(self.maxpool(F.relu(self.bn1(self.conv1(x)))))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return c2, c3, c4, self.layer4(c4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.stages(x)[3].mean((2, 3)))


def _projection(inputs: int, outputs: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and inputs == outputs:
        return None
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


def _stage(
    block: type[BasicBlock] | type[Bottleneck], inputs: int, planes: int, count: int, stride: int
) -> nn.Sequential:
    rest = (block(planes * block.expansion, planes, 1) for _ in range(count - 1))
    return nn.Sequential(block(inputs, planes, stride), *rest)
