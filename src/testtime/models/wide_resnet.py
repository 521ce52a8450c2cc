"""Wide ResNets (Zagoruyko and Komodakis 2016): the source models of most CIFAR-10-C tables."""

import math

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Pre-activation block; where the width changes, the 1x1 shortcut starts from the activation.

    Args:
        inputs: channels that enter.
        outputs: channels that leave.
        stride: stride of the first convolution.
        dropout: probability of dropping an activation between the two convolutions.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.dropout = dropout
        self.convShortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.bn1(x))
        out = F.relu(self.bn2(self.conv1(active)))
        out = self.conv2(F.dropout(out, self.dropout, self.training))
        return out + (x if self.convShortcut is None else self.convShortcut(active))


class Stage(nn.Module):
    """A run of blocks, kept in ``layer`` as the published state dicts name it."""

    def __init__(self, inputs: int, outputs: int, blocks: int, stride: int, dropout: float) -> None:
        super().__init__()
        rest = (Block(outputs, outputs, 1, dropout) for _ in range(blocks - 1))
        self.layer = nn.Sequential(Block(inputs, outputs, stride, dropout), *rest)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)


class WideResNet(nn.Module):
    """WideResNet-depth-widen for 32x32 images.

    Args:
        depth: number of layers, 6n + 4 (28, 40).
        widen: factor on the 16-32-64 channels.
        classes: number of classes.
        dropout: probability of dropping an activation inside a block.

    Takes (N, 3, 32, 32) images and returns (N, classes) logits. The state-dict keys are those that
    RobustBench and AugMix publish: ``conv1 block{1..3}.layer.i.{bn1,conv1,bn2,conv2,convShortcut} bn1 fc``.

    Raises:
        ValueError: if depth is not 6n + 4.

    Source: Zagoruyko and Komodakis, *Wide Residual Networks*, BMVC 2016.

    >>> sum(p.numel() for p in WideResNet(40, 2).parameters())
    2243546
    """

    def __init__(self, depth: int = 40, widen: int = 2, classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"depth must be 6n + 4 (28, 40), got {depth}")
        blocks = (depth - 4) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.block1 = Stage(16, 16 * widen, blocks, 1, dropout)
        self.block2 = Stage(16 * widen, 32 * widen, blocks, 2, dropout)
        self.block3 = Stage(32 * widen, 64 * widen, blocks, 2, dropout)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, classes)
        nn.init.zeros_(self.fc.bias)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels
                nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))
