"""MobileNetV1 (Howard et al. 2017) in the form of the small public ImageNet checkpoint of width 0.25."""

from torch import Tensor, nn


def _first(outputs: int) -> nn.Sequential:
    conv = nn.Conv2d(3, outputs, 3, 2, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


def _separable(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False),
        nn.BatchNorm2d(inputs),
        nn.ReLU(),
        nn.Conv2d(inputs, outputs, 1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class MobileNet(nn.Module):
    """MobileNetV1: one convolution and 13 depthwise-separable blocks in three stages.

    Args:
        width: factor on the channels; 0.25 is the published checkpoint.
        classes: number of classes.

    Takes (N, 3, 224, 224) normalised images and returns (N, classes) logits.

    The activation is the ReLU that the checkpoint was trained with; later versions of its repository have a
    leaky one, with which it loses a fifth of its accuracy.

    Source: Howard et al., *MobileNets*, 2017.

    >>> sum(p.numel() for p in MobileNet().parameters())
    470072
    """

    def __init__(self, width: float = 0.25, classes: int = 1000) -> None:
        super().__init__()
        c = [round(width * base) for base in (32, 64, 128, 256, 512, 1024)]
        self.stage1 = nn.Sequential(
            _first(c[0]),
            _separable(c[0], c[1], 1),
            _separable(c[1], c[2], 2),
            _separable(c[2], c[2], 1),
            _separable(c[2], c[3], 2),
            _separable(c[3], c[3], 1),
        )
        same = (_separable(c[4], c[4], 1) for _ in range(5))
        self.stage2 = nn.Sequential(_separable(c[3], c[4], 2), *same)
        self.stage3 = nn.Sequential(_separable(c[4], c[5], 2), _separable(c[5], c[5], 1))
        self.fc = nn.Linear(c[5], classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(x.mean((2, 3)))
