"""The worlds in which the laws are tried: tiny networks that know a synthetic task, and streams that drift.

An image (3, 8, 8) of class c is 0.5 plus a smooth random template of c, scaled and noisy. The networks are
trained on that, once per process and in a moment, so that entropies vary and filters select some. A stream is
darker, flatter and noisier from batch to batch, and a quarter of its images is of classes never seen. The sequence
world has windows of two waves instead, which rise and flatten.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.errors import AdapterWarning
from testtime.forecasting.forecaster import Forecaster
from testtime.models import Views
from testtime.models.assisted import Assisted
from testtime.space.mae import MaskedAutoencoder, PictureEncoder
from testtime.space.model import Size
from testtime.tasks import Depth, Segmentation, Task, total_loss

__all__ = ["CLASSES", "WORLDS", "Meter", "World"]

CLASSES = 5
"""Number of classes of the worlds."""
UNKNOWN = 2  # classes of the streams that no network was trained on
SIDE = 8
LENGTH, HORIZON, SERIES = 8, 4, 2  # of the windows of the sequence world
DENSE_TASKS: dict[str, Task] = {"semseg": Segmentation(tuple("abcde")), "depth": Depth()}


@dataclass
class Meter:
    """Counts the images that passed through a network and its copies, which share their meter."""

    forwards: int = 0
    backwards: int = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> Meter:
        return self


@final
class Metered(nn.Module):
    """A network whose passes are counted, in images."""

    wrapped = "network"  # name of the attribute whose output it returns

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.meter = Meter()
        self.views = Views()  # declared, so that no forward is spent on asking the network

    def forward(self, x: Tensor) -> Any:
        self.meter.forwards += len(x)
        unseen = [True]

        def count(gradient: Tensor) -> None:
            self.meter.backwards += len(x)

        def first(module: nn.Module, inputs: Any, output: Any) -> None:
            # A backward, wherever in the network it begins, ends at the first activation that asks for a gradient.
            if unseen and isinstance(output, Tensor) and output.requires_grad:
                unseen.clear()
                output.register_hook(count)

        handles = [m.register_forward_hook(first) for m in self.network.modules()]
        try:
            return self.network(x)
        finally:
            for handle in handles:
                handle.remove()


@final
class Attention(nn.Module):
    """A pre-norm transformer block of one head."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).chunk(3, dim=-1)
        weights = (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(dim=-1)
        x = x + self.out(weights @ v)
        return x + self.mlp(self.norm2(x))


@final
class TinyViT(nn.Module):
    """Patches of 2 x 2, two blocks, the mean of the tokens."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 2, stride=2)
        self.position = nn.Parameter(torch.randn(SIDE * SIDE // 4, width) * 0.1)
        self.blocks = nn.Sequential(Attention(width), Attention(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        return self.head(self.norm(self.blocks(tokens)).mean(dim=1))


@final
class TinyCNN(nn.Module):
    """Two convolutions, each followed by the given kind of normalisation, the second strided."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1, bias=False), norm(8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, padding=1, stride=2, bias=False), norm(16), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Linear(16, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean(dim=(2, 3)))


@final
class TinyDense(nn.Module):
    """A dense multi-task network: {"semseg": (N, CLASSES, H, W), "depth": (N, 1, H, W)}."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
            nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        )  # fmt: skip
        self.tasks = DENSE_TASKS
        self.heads = nn.ModuleDict(
            {name: nn.Conv2d(16, task.channels, 1) for name, task in self.tasks.items()}
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features = self.encoder(x)
        return {name: head(features) for name, head in self.heads.items()}


def segmenter() -> nn.Module:
    """A network of logits for each pixel, (N, CLASSES, H, W), that takes images of any size."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, CLASSES, 1),
    )  # fmt: skip


class Encoded(nn.Module):
    """A linear classifier on the mean of the features of a masked autoencoder's encoder."""

    def __init__(self, encoder: PictureEncoder) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(encoder.dim, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def autoencoded() -> nn.Module:
    """That classifier beside the autoencoder whose encoder it has; only the classifier has been trained."""
    mae = MaskedAutoencoder(Size(1, 1, 16, 2), (SIDE, SIDE), 2)
    return Assisted(Encoded(mae.encoder), mae)


def _templates() -> Tensor:
    """One smooth pattern (3, 8, 8) of unit deviation per class, the unknown ones last."""
    rng = torch.Generator().manual_seed(20)
    coarse = torch.randn(CLASSES + UNKNOWN, 3, 3, 3, generator=rng)
    smooth = F.interpolate(coarse, size=SIDE, mode="bilinear", align_corners=True)
    return smooth / smooth.std(dim=(1, 2, 3), keepdim=True)


def classified(n: int, rng: torch.Generator, unknown: float = 0.0) -> tuple[Tensor, Tensor]:
    """Draw images (n, 3, 8, 8) and their classes (n,); a share ``unknown`` of them from CLASSES upwards."""
    label = torch.randint(CLASSES, (n,), generator=rng)
    strange = torch.rand(n, generator=rng) < unknown
    label = torch.where(strange, CLASSES + torch.randint(UNKNOWN, (n,), generator=rng), label)
    scale = 0.03 + 0.12 * torch.rand(n, 1, 1, 1, generator=rng)
    noise = 0.13 * torch.randn(n, 3, SIDE, SIDE, generator=rng)
    return (0.5 + scale * _templates()[label] + noise).clamp(0, 1), label


def dense(n: int, rng: torch.Generator, unknown: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw images of two textures, and per pixel the class (n, 8, 8) and the depth (n, 1, 8, 8)."""
    left, left_label = classified(n, rng, unknown)
    right, right_label = classified(n, rng, unknown)
    edge = torch.randint(2, SIDE - 1, (n, 1, 1), generator=rng)
    is_left = (torch.arange(SIDE) < edge).expand(n, SIDE, SIDE)
    label = torch.where(is_left, left_label[:, None, None], right_label[:, None, None])
    depth = torch.where(is_left, 0.5, 1.0)[:, None]
    return torch.where(is_left[:, None], left, right) * depth, {"semseg": label, "depth": depth}


class TinyForecaster(nn.Module):
    """Features of each series' past, normalised, and a linear head; it forecasts levels."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.read, self.norm = nn.Linear(LENGTH, width), nn.LayerNorm(width)
        self.head = nn.Linear(width, HORIZON)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.read(x.transpose(1, 2)))).transpose(1, 2)


def forecaster() -> nn.Module:
    """A forecaster of two waves, whose range is declared."""
    return Forecaster(TinyForecaster(), LENGTH, HORIZON, SERIES, input_range=(-4.0, 4.0))


def waves(n: int, rng: torch.Generator, unknown: float = 0.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Draw n windows (n, 12, 2) of two noisy waves that follow one another by a step, and what comes after each."""
    span = LENGTH + HORIZON
    start = torch.rand(1, SERIES, generator=rng) * 24
    time = torch.arange(n + span + HORIZON)[:, None] + start
    wave = torch.sin(2 * torch.pi * time / torch.tensor([12.0, 8.0]))
    wave = wave + 0.1 * torch.randn(wave.shape, generator=rng)
    windows = wave.unfold(0, span + HORIZON, 1).transpose(1, 2)[:n]
    return windows[:, :span].contiguous(), {"forecast": windows[:, span:].contiguous()}


def shifted(x: Tensor, severity: float, rng: torch.Generator) -> Tensor:
    """The series higher, flatter and noisier; severity in [0, 1]."""
    return (1 - 0.3 * severity) * x + severity + 0.1 * severity * torch.randn(x.shape, generator=rng)


def drifted(x: Tensor, severity: float, rng: torch.Generator) -> Tensor:
    """The images darker, flatter and noisier; severity in [0, 1]."""
    noise = 0.08 * severity * torch.randn(x.shape, generator=rng)
    return ((x - 0.5) * (1 - 0.3 * severity) + 0.5 - 0.12 * severity + noise).clamp(0, 1)


@dataclass(frozen=True)
class World:
    """A network that knows its task, what it learned from, and a stream that drifts.

    Attributes:
        name: name in ``check_adapter(worlds=...)``.
        make: builds the untrained network.
        task: draws n images and what is true of them, which only training sees.
        loss: loss of the network's output against that truth.
        drift: function of a batch, a severity in [0, 1] and a generator that makes it differ from the source.
        in_turn: whether the samples of a batch are in the order of time, so that none may depend on a later one.
    """

    name: str
    make: Callable[[], nn.Module]
    task: Callable[..., tuple[Tensor, Any]]
    loss: Callable[[Any, Any], Tensor]
    drift: Callable[[Tensor, float, torch.Generator], Tensor] | None = None
    in_turn: bool = False

    def network(self) -> nn.Module:
        """A fresh copy of the trained network, in evaluation mode, with a ``meter`` of its own."""
        return Metered(copy.deepcopy(_trained(self.name)))

    def stream(self, batches: int, size: int = 16, seed: int = 0) -> list[Tensor]:
        """Batches (size, 3, 8, 8), or windows (size, 12, 2), that drift further from the source one by one."""
        return [x.clone() for x in _stream(self.name, batches, size, seed)]

    def source(self, batches: int = 4, size: int = 32) -> list[Tensor]:
        """Unlabelled batches of what the network was trained on."""
        rng = torch.Generator().manual_seed(5)
        return [self.task(size, rng)[0] for _ in range(batches)]


def _forecast_loss(y: dict[str, Tensor], truth: dict[str, Tensor]) -> Tensor:
    return F.mse_loss(y["forecast"], truth["forecast"])


def _pixel_loss(y: Tensor, truth: dict[str, Tensor]) -> Tensor:
    return F.cross_entropy(y, truth["semseg"])


WORLDS: dict[str, World] = {
    world.name: world
    for world in (
        World("batchnorm", lambda: TinyCNN(nn.BatchNorm2d), classified, F.cross_entropy),
        World("groupnorm", lambda: TinyCNN(lambda c: nn.GroupNorm(4, c)), classified, F.cross_entropy),
        World("vit", TinyViT, classified, F.cross_entropy),
        World("dense", TinyDense, dense, partial(total_loss, DENSE_TASKS)),
        World("pixels", segmenter, dense, _pixel_loss),
        World("autoencoder", autoencoded, classified, F.cross_entropy),
        World("sequence", forecaster, waves, _forecast_loss, shifted, in_turn=True),
    )
}
"""The worlds by name."""


@functools.cache
def _trained(name: str) -> nn.Module:
    world = WORLDS[name]
    with ambient(), torch.inference_mode(False), torch.enable_grad():
        network, rng = world.make().train(), torch.Generator().manual_seed(1)
        optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
        for _ in range(150):
            x, truth = world.task(64, rng)
            optimizer.zero_grad()
            world.loss(network(x), truth).backward()
            optimizer.step()
    for p in network.parameters():
        p.grad = None
    return network.eval()


@functools.cache
def _stream(name: str, batches: int, size: int, seed: int) -> tuple[Tensor, ...]:
    world, rng = WORLDS[name], torch.Generator().manual_seed(100 + seed)
    severities = [0.3 + 0.7 * i / max(batches - 1, 1) for i in range(batches)]
    drift = world.drift or drifted
    return tuple(drift(world.task(size, rng, 0.25)[0], s, rng) for s in severities)


@contextmanager
def ambient(seed: int = 0) -> Iterator[None]:
    """Inside, torch's global generator starts from a seed and new tensors are float32; both are put back.

    An adapter's warnings are not shown: the laws show it bad images on purpose.
    """
    dtype = torch.get_default_dtype()
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore", AdapterWarning)
        torch.manual_seed(seed)
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
