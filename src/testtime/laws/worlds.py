"""The worlds in which the laws are tried: tiny networks that know a synthetic task, and streams that drift.

An image (3, 8, 8) of class c is 0.5 plus a smooth random template of c, scaled and noisy. The networks are
trained on that, once per process and in a moment, so that entropies vary and filters select some. A stream is
darker, flatter and noisier from batch to batch, and a quarter of its images is of classes never seen. The sequence
world has windows of two waves instead, which rise and flatten. In the worlds of tokens and of dictionaries a sample is a
sentence of 12 words, each class with words of its own, which drift to words of no class. The image-text world has a zero-shot
classifier, whose image encoder was trained towards the texts of the classes.
"""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.errors import AdapterWarning
from testtime.forecasting.forecaster import Forecaster
from testtime.intake.named import NamedTensors, called
from testtime.models import Views
from testtime.models.assisted import Assisted
from testtime.space.mae import MaskedAutoencoder, PictureEncoder
from testtime.space.model import Size
from testtime.tasks import Depth, Segmentation, Task, total_loss
from testtime.vision_language.pair import ImageText
from testtime.vision_language.zero_shot import ZeroShot

__all__ = ["CLASSES", "WORLDS", "Meter", "World"]

CLASSES = 5
"""Number of classes of the worlds."""
UNKNOWN = 2  # classes of the streams that no network was trained on
SIDE = 8
VOCABULARY, WORDS = 40, 12  # words in all, and of a sentence
OWN, FACTS = 4, 3  # words of a class alone, and numbers beside a sentence
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

    def forward(self, *inputs: Any, **named: Any) -> Any:
        n = len(inputs[0] if inputs else next(iter(named.values())))
        self.meter.forwards += n
        unseen = [True]

        def count(gradient: Tensor) -> None:
            self.meter.backwards += n

        def first(module: nn.Module, given: Any, output: Any) -> None:
            # A backward, wherever in the network it begins, ends at the first activation that asks for a gradient.
            if unseen and isinstance(output, Tensor) and output.requires_grad:
                unseen.clear()
                output.register_hook(count)

        watched = (
            self.network.modules() if torch.is_grad_enabled() else ()
        )  # without gradients there is no backward
        handles = [m.register_forward_hook(first) for m in watched]
        try:
            return self.network(*inputs, **named)
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


class SentenceClassifier(nn.Module):
    """The mean of embedded words, without those that a mask leaves out, through a normalised layer.

    Args:
        norm: normalisation of (N, 16).
        facts: numbers of a sample beside its words.
    """

    def __init__(self, norm: Callable[[int], nn.Module], facts: int = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 16)
        self.mix = nn.Linear(16 + facts, 16)
        self.between, self.head = norm(16), nn.Linear(16, CLASSES)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, facts: Tensor | None = None
    ) -> Tensor:
        words = self.embedding(input_ids)
        shown = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        z = (words * shown[..., None]).sum(dim=1) / shown.sum(dim=1, keepdim=True).clamp(min=1)
        z = z if facts is None else torch.cat([z, facts], dim=1)
        return self.head(F.relu(self.between(self.mix(z))))


class TinyTexts(nn.Module):
    """The interface of a text encoder: words of a fixed vocabulary, mixed by their places, and the mean of them."""

    start, places = 1, 8
    vocabulary: ClassVar = (
        "",
        "<start>",
        "a",
        "photo",
        "of",
        "thing",
        "red",
        "green",
        "blue",
        "grey",
        "black",
    )

    def __init__(self, width: int = 12, outputs: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(len(self.vocabulary), width)
        self.mix, self.norm = nn.Linear(self.places, self.places), nn.LayerNorm(width)
        self.out = nn.Linear(width, outputs)

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Return ids (K, 8) of the start and the words; an unknown word is a thing."""
        known = {word: i for i, word in enumerate(self.vocabulary)}
        rows = [[1, *(known.get(word, 5) for word in text.split())] for text in prompts]
        return torch.tensor([(row + [0] * self.places)[: self.places] for row in rows])

    def embed(self, ids: Tensor) -> Tensor:
        return self.words(ids)

    def forward(self, tokens: Tensor, ids: Tensor) -> Tensor:
        mixed = tokens + self.mix(tokens.transpose(1, 2)).transpose(1, 2).tanh()
        seen = (ids > 0)[..., None].to(tokens.dtype)
        return self.out((self.norm(mixed) * seen).sum(1) / seen.sum(1))


def zero_shot() -> nn.Module:
    """A zero-shot classifier of colours; its texts are fixed, so that the image encoder is trained towards them."""
    encoder = TinyCNN(nn.BatchNorm2d)
    encoder.head = nn.Linear(16, 16)
    texts = TinyTexts().requires_grad_(False)
    model = ZeroShot(ImageText(encoder, texts, 8.0), texts.vocabulary[-CLASSES:], "a photo of a {} thing")
    model.head.requires_grad_(False)
    return model


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


def sentences(n: int, rng: torch.Generator, unknown: float = 0.0) -> tuple[Tensor, Tensor]:
    """Draw token ids (n, 12) and their classes (n,): a third of the words is of the class, the others of any."""
    label = torch.randint(CLASSES, (n,), generator=rng)
    strange = torch.rand(n, generator=rng) < unknown
    label = torch.where(strange, CLASSES + torch.randint(UNKNOWN, (n,), generator=rng), label)
    own = OWN * label[:, None] + torch.randint(OWN, (n, WORDS), generator=rng)
    any_word = torch.randint(VOCABULARY, (n, WORDS), generator=rng)
    return torch.where(torch.rand(n, WORDS, generator=rng) < 0.4, own, any_word), label


def tokenised(n: int, rng: torch.Generator, unknown: float = 0.0) -> tuple[NamedTensors, Tensor]:
    """Draw sentences of 4 to 12 words with their masks, and three noisy numbers (n, 3) beside each."""
    ids, label = sentences(n, rng, unknown)
    length = torch.randint(4, WORDS + 1, (n, 1), generator=rng)
    shown = (torch.arange(WORDS) < length).long()
    facts = label[:, None] / CLASSES + torch.randn(n, FACTS, generator=rng)
    return NamedTensors({"input_ids": ids * shown, "attention_mask": shown, "facts": facts}), label


def reworded(x: Any, severity: float, rng: torch.Generator) -> Any:
    """The sentences with words of no class in place of up to a third of their own; the numbers beside them higher."""
    if isinstance(x, NamedTensors):
        ids = reworded(x["input_ids"], severity, rng) * x["attention_mask"]
        return NamedTensors({**x.entries, "input_ids": ids, "facts": x["facts"] + severity})
    other = torch.randint(OWN * (CLASSES + UNKNOWN), VOCABULARY, x.shape, generator=rng)
    return torch.where(torch.rand(x.shape, generator=rng) < severity / 3, other, x)


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
        metered: name of the part whose passes are counted; empty for the whole network.
        batch: number of samples of a batch of the stream. Those in turn are learned from one by one, and take as many steps.
    """

    name: str
    make: Callable[[], nn.Module]
    task: Callable[..., tuple[Any, Any]]
    loss: Callable[[Any, Any], Tensor]
    drift: Callable[[Any, float, torch.Generator], Any] | None = None
    in_turn: bool = False
    metered: str = ""
    batch: int = 16

    def network(self) -> nn.Module:
        """A fresh copy of the trained network, in evaluation mode, with a ``meter`` of its own."""
        network = copy.deepcopy(_trained(self.name))
        if not self.metered:
            return Metered(network)
        parent, _, name = self.metered.rpartition(".")
        part = Metered(network.get_submodule(self.metered))
        setattr(network.get_submodule(parent), name, part)
        vars(network)["meter"] = part.meter
        return network

    def stream(self, batches: int, size: int | None = None, seed: int = 0) -> list[Any]:
        """Batches of images, windows, token ids or tensors by name, which drift further from the source one by one."""
        return [x.clone() for x in _stream(self.name, batches, size or self.batch, seed)]

    def source(self, batches: int = 2, size: int = 32) -> list[Any]:
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
        World("sequence", forecaster, waves, _forecast_loss, shifted, in_turn=True, batch=8),
        World("tokens", lambda: SentenceClassifier(nn.LayerNorm), sentences, F.cross_entropy, reworded),
        World(
            "dictionary",
            lambda: SentenceClassifier(nn.BatchNorm1d, FACTS),
            tokenised,
            F.cross_entropy,
            reworded,
        ),
        World("image-text", zero_shot, classified, F.cross_entropy, metered="pair.images"),
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
            world.loss(called(network, x), truth).backward()
            optimizer.step()
    for p in network.parameters():
        p.grad = None
    return network.eval()


@functools.cache
def _stream(name: str, batches: int, size: int, seed: int) -> tuple[Any, ...]:
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
        torch.default_generator.manual_seed(seed)  # torch.manual_seed asks every kind of device first
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
