"""An own segmentation net whose camera loses light: what adapters on the logits of each pixel are worth, without labels."""

import torch
from torch import nn

from testtime import adam
from testtime.methods import BNAdapt, CoTTA, Source, Tent
from testtime.metrics import BoundaryF, MeanIoU

rng = torch.manual_seed(0)
COLOURS = torch.tensor([[0.2, 0.5, 0.3], [0.6, 0.4, 0.2], [0.3, 0.3, 0.7], [0.7, 0.7, 0.4]])  # four surfaces


def frames(n, light=1.0):  # images (n, 3, 32, 48), and classes (n, 32, 48) for training and metrics
    y = torch.randint(4, (n, 4, 6), generator=rng).repeat_interleave(8, 1).repeat_interleave(8, 2)
    x = COLOURS[y].movedim(-1, 1) + 0.08 * torch.randn(n, 3, 32, 48, generator=rng)
    return (light * x * torch.tensor([1.0, light, light**0.5]).view(3, 1, 1)).clamp(0, 1), y


net = nn.Sequential(nn.Conv2d(3, 12, 3, 1, 1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 4, 3, 1, 1))
optimizer = torch.optim.Adam(net.parameters(), 1e-2)
for x, y in (frames(8) for _ in range(80)):
    optimizer.zero_grad(), nn.functional.cross_entropy(net(x), y).backward(), optimizer.step()
stream = [frames(4, light) for light in torch.linspace(0.9, 0.5, 12).tolist()]
for adapter in (Source(net), BNAdapt(net), Tent(net), CoTTA(net, adam(1e-4), scales=(1.0, 1.5))):
    overlap, boundary = MeanIoU(4), BoundaryF(4, tolerance=2)
    for x, y in stream:  # in production: logits = adapter(x), once for each batch of frames
        logits = adapter(x)
        overlap.update(logits, y), boundary.update(logits, y)
    print(f"{type(adapter).label:9} mIoU {overlap.value():5.1f}  boundary F {boundary.value():5.1f}")
