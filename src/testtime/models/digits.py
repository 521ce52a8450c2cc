"""The small network of the embedded default: handwritten digits, in the package, no download."""

from torch import Tensor, nn


class DigitsCNN(nn.Module):
    """Three convolutions with BatchNorm, and a linear head over a 4x4 grid: 34 thousand parameters.

    Args:
        classes: number of classes.
        width: channels of the first convolution.

    Takes (N, 3, 32, 32) images and returns (N, classes) logits.

    >>> sum(p.numel() for p in DigitsCNN().parameters())
    33946
    """

    def __init__(self, classes: int = 10, width: int = 16) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_layer(3, width),
            nn.MaxPool2d(2),
            *_layer(width, 2 * width),
            nn.MaxPool2d(2),
            *_layer(2 * width, 4 * width),
            nn.AvgPool2d(2),
        )
        self.fc = nn.Linear(4 * width * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.features(x).flatten(1))


def _layer(inputs: int, outputs: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
