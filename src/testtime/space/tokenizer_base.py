"""The base class of tokenizers: encoding, decoding, training and report, whatever the quantiser."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime.data.dense import IGNORE
from testtime.parts.randomness import epochs, seeded
from testtime.space.autoencoder import Network, decoder, encoder
from testtime.space.modalities import Modality
from testtime.space.tokenizer_report import (
    UNITS,
    TokenizerReport,
    best_constant,
    perplexity,
    reconstruction_error,
)
from testtime.training import checkpoint
from testtime.training.loop import Plan, Training, folder_files

__all__ = ["Frames", "Tokenizer"]

Frames = Callable[[int], Tensor] | Sequence[Tensor] | Tensor
"""Raw values of one modality: indexed by frame, or a function that returns the batch of a step."""

BLOCK = 4
"""Number of frames that are encoded at a time on a CPU, whose activations stay in a cache."""


class Tokenizer(nn.Module, ABC):
    """The base of :class:`~testtime.space.tokenizers.VQTokenizer` and :class:`~testtime.space.tokenizers.FSQTokenizer`.

    Raw values of a frame have the shape and range of :class:`~testtime.space.modalities.Modality`; a label that is none of its
    classes (as 255, not known) is a class of its own here. Feature maps of another size are resized to ``size``.

    Args:
        modality: modality of the frames; not a sequence.
        size: (H, W) of the frames; of feature maps, the grid of the tokens.
        patch: side of a token's patch in pixels; 1 for feature maps.
        vocabulary: number of codes.
        latent: size of a code.
        width: channels at the grid of the tokens.
        depth: blocks at the grid of the tokens, in encoder and in decoder.
        network: "convolution" or "transformer".
        seed: random seed of the initial weights.

    Attributes:
        grid: (h, w) of the tokens.
        kind: "vq" or "fsq".
    """

    kind: ClassVar[Literal["vq", "fsq"]]

    def __init__(
        self,
        modality: Modality,
        size: tuple[int, int],
        patch: int,
        vocabulary: int,
        latent: int,
        width: int,
        depth: int,
        network: Network,
        seed: int,
    ) -> None:
        super().__init__()
        if modality.kind == "sequence":
            raise ValueError(
                f"{modality.name} is a sequence: its ids are its tokens, and no tokenizer is needed"
            )
        if modality.kind == "features" and patch != 1:
            raise ValueError(
                f"a place of the feature map {modality.name} is a token: expected patch=1, got {patch}"
            )
        if patch < 1 or min(size) < patch or size[0] % patch or size[1] % patch:
            raise ValueError(f"size must be a multiple of patch, got {size} and {patch}")
        if width < 8 or width % 8:
            raise ValueError(f"width is a multiple of 8, got {width}")
        if depth < 0 or latent < 1 or vocabulary < 2:
            raise ValueError(
                f"expected depth >= 0, a latent of at least 1 and 2 codes or more, got {depth}, {latent} and {vocabulary}"
            )
        if network not in ("convolution", "transformer"):
            raise ValueError(f"network is 'convolution' or 'transformer', got {network!r}")
        self.modality, self.size, self.patch = modality, (size[0], size[1]), patch
        self.grid, self.vocabulary = (size[0] // patch, size[1] // patch), vocabulary
        self.arguments: dict[str, Any] = {
            "modality": asdict(modality),
            "size": list(self.size),
            "patch": patch,
            "width": width,
            "depth": depth,
            "network": network,
            "seed": seed,
        }
        channels = modality.channels + (modality.kind == "classes")
        with seeded(seed, 0, "tokenizer"):
            embedded = min(64, width) if modality.kind == "classes" else channels
            self.classes = nn.Embedding(channels, embedded) if modality.kind == "classes" else None
            kernel = 1 if modality.kind == "features" else 3
            self.encoder = encoder(embedded, width, depth, patch, latent, kernel, network, self.grid)
            self.decoder = decoder(channels, width, depth, patch, latent, kernel, network, self.grid)
        if modality.kind == "features":
            self.register_buffer("mean", torch.zeros(1, channels, 1, 1))
            self.register_buffer("deviation", torch.ones(1, channels, 1, 1))

    mean: Tensor
    deviation: Tensor

    @torch.no_grad()
    def encode(self, value: Tensor) -> Tensor:
        """Return the ids (N, h * w) int64 of raw values.

        Args:
            value: images (N, C, H, W), classes (N, H, W), or feature maps (N, C, any, any).

        Raises:
            ValueError: the value has another shape, type or range, or is not finite where it has to be.
        """
        value = self._checked(value)
        count = math.ceil(len(value) / BLOCK) if value.device.type == "cpu" else 1
        parts = value.tensor_split(max(count, 1))  # of equal sizes: one frame alone takes other kernels
        return torch.cat(
            [self._ids(self._latents(self._normalised(part))).flatten(1) for part in parts]
        ).long()

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """Reconstruct frames.

        Args:
            ids: ids (N, h * w).

        Returns:
            images (N, C, H, W) in the modality's normalised range; classes (N, H, W), 255 where no class is known; features
            (N, C, h, w) in the scale of the network that made them.

        Raises:
            ValueError: another number of ids, or an id that the vocabulary lacks.
        """
        if ids.dim() != 2 or ids.shape[1] != math.prod(self.grid) or ids.is_floating_point():
            raise ValueError(
                f"expected ids (N, {math.prod(self.grid)}) as whole numbers, got {tuple(ids.shape)} {ids.dtype}"
            )
        if ids.numel() and (int(ids.min()) < 0 or int(ids.max()) >= self.vocabulary):
            raise ValueError(
                f"ids are in 0 ... {self.vocabulary - 1}, got {int(ids.min())} ... {int(ids.max())}"
            )
        answer = self.decoder(self._codes(ids.view(-1, *self.grid)))
        if self.modality.kind == "classes":
            named = answer.argmax(1)
            return named.masked_fill(named == self.modality.channels, IGNORE)
        return answer * self.deviation + self.mean if self.modality.kind == "features" else answer

    def fit(
        self,
        frames: Frames,
        steps: int = 400,
        batch: int = 32,
        lr: float = 3e-3,
        seed: int = 0,
        folder: str | Path | None = None,
        every: int = 200,
    ) -> TokenizerReport:
        """Train on frames, without labels: AdamW, and a cosine of the learning rate after a short warmup.

        The result is a function of the tokenizer's seed, the frames and these arguments; the global generator is not touched.
        A folder holds a checkpoint, from which the same call continues, the log (``losses.jsonl``, every fiftieth step) and at
        the end the tokenizer (``tokenizer.safetensors``), which the same call loads; see
        :class:`testtime.training.loop.Training`.

        Args:
            frames: raw values. Indexed ones come in a new order in each epoch; a function receives the step and returns the
                batch, and should be a function of the step alone.
            steps: number of steps of the optimizer.
            batch: number of frames of a step, where they are indexed.
            lr: largest learning rate.
            seed: random seed of the order, and of the codes that replace dead ones.
            folder: folder of checkpoint, log and result; None writes none.
            every: steps between two checkpoints.

        Returns:
            the report of these frames.

        Raises:
            ValueError: no frames, frames of another shape, type or range, an argument out of range, or the folder belongs to
                another tokenizer or fit.
            NonFiniteError: a loss, a gradient or a weight is not finite.
        """
        if not callable(frames) and len(frames) == 0:
            raise ValueError(f"{self.modality.name}: no frames to learn from")
        if min(steps, batch, every) < 1 or not 0 < lr < math.inf:
            raise ValueError(
                f"steps, batch and every are at least 1 and lr is above 0, got {steps}, {batch}, {every} and {lr}"
            )
        if isinstance(frames, Tensor):
            self.modality.check(frames)
        facts = {**self._facts(), "steps": steps, "batch": batch, "lr": lr, "fit_seed": seed}
        facts["frames"] = None if callable(frames) else len(frames)
        files = None if folder is None else folder_files(folder, "tokenizer.safetensors")
        rising = max(1, steps // 20)
        plan = Plan(
            steps,
            lambda step: min((step + 1) / rising, 0.5 + 0.5 * math.cos(math.pi * step / steps)),
            log_every=50,
            save_every=every,
        )
        optimizer = torch.optim.AdamW(self.parameters(), lr, (0.9, 0.99), weight_decay=0.05)
        training = Training(self, optimizer, plan, f"tokenizer {self.modality.name}", files, facts, seed)
        if training.done == 0 and self.modality.kind == "features":
            self._standardise(_batch(frames, 0, batch, seed))
        training.run(lambda step: self._losses(_batch(frames, step, batch, seed), seed, step))
        return self.report(frames)

    def _losses(self, value: Tensor, seed: int, step: int) -> dict[str, Tensor]:
        """Reconstruction and commitment loss of a batch of raw values."""
        x = self._prepared(value)
        self._set_batch(x.shape[0])
        with seeded(seed, step, "codes", x.device):
            codes, _, commitment = self._quantised(self._latents(x), learning=True)
        return {"reconstruction": self._loss(self.decoder(codes), x), "commitment": commitment}

    @torch.no_grad()
    def report(self, frames: Frames, limit: int = 256) -> TokenizerReport:
        """Encode and decode frames, and measure the errors and the use of the codes.

        Args:
            frames: raw values; of indexed ones, at most ``limit`` at equal distances; of a function, the batches of the first
                steps until there are as many.
            limit: largest number of frames.
        """
        ids, answers, targets = [], [], []
        for value in _sampled(frames, limit):
            ids.append(self.encode(value))
            answers.append(self.decode(ids[-1]))
            target = self._prepared(value)
            if self.modality.kind == "features":
                target = target * self.deviation + self.mean
            targets.append(target)
        named, target = torch.cat(ids), torch.cat(targets)
        return TokenizerReport(
            self.modality.name,
            self.kind,
            UNITS[self.modality.kind],
            reconstruction_error(self.modality, torch.cat(answers), target),
            reconstruction_error(self.modality, best_constant(self.modality, target), target),
            self.vocabulary,
            perplexity(named, self.vocabulary),
            len(named.unique()) / self.vocabulary,
        )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file that :func:`~testtime.space.tokenizers.load_tokenizer` reads.

        Args:
            path: the file.
        """
        checkpoint.save(Path(path), self, None, 0, self._facts())

    @abstractmethod
    def _quantised(self, latents: Tensor, learning: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Return codes (N, latent, h, w), which are differentiable in the latents, ids (N, h, w), and the commitment loss."""

    def _ids(self, latents: Tensor) -> Tensor:
        """Return the ids (N, h, w) of latents."""
        return self._quantised(latents, learning=False)[1]

    @abstractmethod
    def _codes(self, ids: Tensor) -> Tensor:
        """Return the codes (N, latent, h, w) of ids (N, h, w)."""

    def _set_batch(self, batch: int) -> None:
        """Prepare the quantiser for steps of so many frames."""

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(json.dumps({"kind": self.kind, **self.arguments}))
        return facts

    def _prepared(self, value: Tensor) -> Tensor:
        """Return a batch of raw values in the range of network and loss."""
        return self._normalised(self._checked(value))

    def _checked(self, value: Tensor) -> Tensor:
        """Return a batch of raw values on the device of the weights, if it has the shape, type and range of frames."""
        kind, channels = self.modality.kind, self.modality.channels
        value = value.to(next(self.parameters()).device)
        self.modality.check(value)
        if kind == "classes":
            if value.dim() != 3 or value.shape[1:] != self.size:
                raise ValueError(
                    f"{self.modality.name}: expected classes (N, {self.size[0]}, {self.size[1]}) of integers, got "
                    f"{tuple(value.shape)} {value.dtype}"
                )
        elif (
            value.dim() != 4
            or value.shape[1] != channels
            or (kind == "image" and value.shape[2:] != self.size)
        ):
            wanted = f"{self.size[0]}, {self.size[1]}" if kind == "image" else "h, w"
            raise ValueError(
                f"{self.modality.name}: expected (N, {channels}, {wanted}), got {tuple(value.shape)}; resize the frames, "
                "or make a tokenizer of their size"
            )
        return value

    def _normalised(self, value: Tensor) -> Tensor:
        if self.modality.kind == "classes":
            known = (value >= 0) & (value < self.modality.channels)
            return torch.where(known, value.long(), self.modality.channels)
        value = self.modality.normalised(value.float())
        if self.modality.kind == "features":
            if value.shape[2:] != self.size:
                value = F.interpolate(value, self.size, mode="bilinear", antialias=True)
            value = (value - self.mean) / self.deviation
        return value

    def _latents(self, x: Tensor) -> Tensor:
        latents: Tensor = self.encoder(x if self.classes is None else self.classes(x).permute(0, 3, 1, 2))
        return latents

    def _loss(self, answer: Tensor, x: Tensor) -> Tensor:
        """Cross-entropy of classes, squares of images of three channels, smooth-L1 of all else."""
        if self.modality.kind == "classes":
            return F.cross_entropy(answer, x)
        if self.modality.kind == "image" and self.modality.channels > 1:
            return F.mse_loss(answer, x)
        return F.smooth_l1_loss(answer, x)

    def _standardise(self, value: Tensor) -> None:
        """Set mean and deviation of every channel of feature maps, because networks differ in scale by orders."""
        x = self._prepared(value)
        self.mean.copy_(x.mean((0, 2, 3), keepdim=True))
        self.deviation.copy_(x.std((0, 2, 3), keepdim=True).clamp(min=1e-6))


def _batch(frames: Frames, step: int, batch: int, seed: int) -> Tensor:
    """Return the raw values of a step."""
    if callable(frames):
        return frames(step)
    return torch.stack([frames[i] for i in epochs(len(frames), batch, seed, step)])


def _sampled(frames: Frames, limit: int) -> Iterator[Tensor]:
    """Yield batches of raw values for a report."""
    if callable(frames):
        step = seen = 0
        while seen < limit:
            value = frames(step)
            yield value
            step, seen = step + 1, seen + len(value)
        return
    count = min(limit, len(frames))
    indices = [i * len(frames) // count for i in range(count)]
    for begin in range(0, count, 64):
        yield torch.stack([frames[i] for i in indices[begin : begin + 64]])
