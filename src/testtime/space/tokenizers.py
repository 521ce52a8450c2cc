r"""Tokenizers: a frame of one modality as a small grid of ids, and back.

.. math:: t = \operatorname{quantise}(f(x)), \qquad \hat x = g(\operatorname{code}(t)), \qquad L = \ell(\hat x, x) + L_{commit}

An encoder f gives a latent for every patch, the quantiser puts the nearest code in its place, a decoder g makes the frame
again. Two quantisers share one interface: :class:`VQTokenizer`, as 4M has it (unit codes, cosine similarity, codes as running
means), and :class:`FSQTokenizer`, whose codes are a fixed lattice. What pre-training sees of a modality are the ids.

Departures from 4M: its decoder of images is a diffusion model (DiVAE), here it is a plain one: decoding is only for looking;
f and g are small convolutional networks by default (``network="transformer"`` gives the paper's kind of encoder); 4M has no
finite scalar quantisation; its tokenizers were trained on the Internet, ours on the space they will work in.

Reference: Mizrahi et al., 4M: Massively Multimodal Masked Modeling, NeurIPS 2023, section 2.1 and appendix; Yu et al.,
Vector-quantized Image Modeling with Improved VQGAN, ICLR 2022 (unit codes); Mentzer et al., Finite Scalar Quantization: VQ-VAE
Made Simple, ICLR 2024. The quantisers are those of the package vector-quantize-pytorch (MIT).
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from testtime.data.dense import IGNORE
from testtime.errors import WeightsError, missing_extra
from testtime.parts.randomness import epochs, generator
from testtime.progress import progress
from testtime.space.autoencoder import Network, decoder, encoder
from testtime.space.modalities import Modality
from testtime.training import checkpoint

__all__ = [
    "FSQTokenizer",
    "Frames",
    "Tokenizer",
    "TokenizerReport",
    "VQTokenizer",
    "load_tokenizer",
    "perplexity",
]

LARGEST = 2**17
"""Width, codes, classes and pixels of a side of a tokenizer that is read from a file, at most."""
CHECKPOINT, WEIGHTS = "checkpoint.safetensors", "tokenizer.safetensors"

Frames = Callable[[int], Tensor] | Sequence[Tensor] | Tensor
"""Raw values of one modality: indexed by frame, or a function that gives the batch of a step."""


@final
@dataclass(frozen=True)
class TokenizerReport:
    """How much of the frames the tokens tell, and how well the codes are used.

    Attributes:
        modality: its name.
        kind: of quantiser, "vq" or "fsq".
        unit: of the errors: "mse" in the normalised range (images), "% wrong" pixels (classes), or "1 - cosine" (features).
        error: of frames encoded and decoded.
        constant: of the best answer that is the same for all frames and pixels, for comparison.
        vocabulary: how many codes there are.
        perplexity: exp(H) of the codes of all tokens; at most ``vocabulary``.
        used: share of the codes that occur at all.
    """

    modality: str
    kind: str
    unit: str
    error: float
    constant: float
    vocabulary: int
    perplexity: float
    used: float

    def __str__(self) -> str:
        return (
            f"{self.modality} ({self.kind}): {self.unit} {self.error:.4g} (a constant: {self.constant:.4g}), perplexity "
            f"{self.perplexity:.0f} of {self.vocabulary}, {self.used:.0%} of the codes used"
        )


def perplexity(ids: Tensor, vocabulary: int) -> float:
    r""":math:`\exp(-\sum_k p_k \log p_k)` of the frequencies of ids.

    >>> perplexity(torch.tensor([0, 1, 1, 0]), 512)
    2.0
    """
    share = torch.bincount(ids.flatten(), minlength=vocabulary).double() / ids.numel()
    return float(torch.special.entr(share).sum().exp())


class Tokenizer(nn.Module, ABC):
    """What all tokenizers share; use :class:`VQTokenizer` or :class:`FSQTokenizer`.

    A frame's "raw" value is in the form and range that :class:`~testtime.space.modalities.Modality` says; a class that it
    does not have (as 255, not known) is a class of its own here. Feature maps of another size are brought to ``size``.

    Attributes:
        modality: which.
        size: (H, W) of its frames; of feature maps, the grid of the tokens.
        patch: side of a token's patch in pixels; 1 for feature maps.
        grid: (h, w) of the tokens.
        vocabulary: ids are below it.
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
        with _randomness(seed, 0, "tokenizer"):
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
        """The ids (N, h * w) int64 of raw values.

        Args:
            value: images (N, C, H, W), classes (N, H, W), or feature maps (N, C, any, any).

        Raises:
            ValueError: the value has another form, type or range, or is not finite where it has to be.
        """
        return self._quantised(self._latents(self._prepared(value)), learning=False)[1].flatten(1).long()

    @torch.no_grad()
    def decode(self, ids: Tensor) -> Tensor:
        """The values that ids (N, h * w) stand for.

        Returns:
            images (N, C, H, W) in the modality's normalised range; classes (N, H, W), 255 where no class is known; features
            (N, C, h, w) as the network gave them.

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
        say: Callable[[dict[str, float]], None] | None = None,
        every: int = 200,
    ) -> TokenizerReport:
        """Train on frames, without labels; AdamW, one cosine of the learning rate after a short warm-up.

        The result is a function of the tokenizer's seed, the frames and these arguments; the global generator is not touched.
        With a folder, the work writes checkpoints there, from which the same call continues as if it had never stopped, and
        at the end the tokenizer (``tokenizer.safetensors``); where that exists, it is read and nothing is trained.

        Args:
            frames: raw values. Indexed ones come in a new order in each epoch; a function is given the step and returns the
                batch, and should be a function of the step alone.
            steps: of the optimizer.
            batch: frames in each, where they are indexed.
            lr: learning rate at its height.
            seed: of the order, and of the codes that take the place of dead ones.
            folder: for checkpoints and the result; None keeps nothing.
            say: is told step and losses of every fiftieth step.
            every: steps between two checkpoints.

        Returns:
            the report of these frames.

        Raises:
            ValueError: no frames, frames of another form, type or range, an argument out of range, or the folder holds a
                checkpoint of other arguments.
            ArithmeticError: the loss is not finite.
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
        unfinished, weights = (
            (None, None) if folder is None else (Path(folder) / CHECKPOINT, Path(folder) / WEIGHTS)
        )
        if weights is not None and weights.exists() and checkpoint.described_in(weights) == facts:
            checkpoint.load(weights, self)
            return self.report(frames)
        optimizer = torch.optim.AdamW(self.parameters(), lr, (0.9, 0.99), weight_decay=0.05)
        start = 0
        if unfinished is not None and unfinished.exists():
            if checkpoint.described_in(unfinished) != facts:
                raise ValueError(
                    f"{unfinished} is of another tokenizer or fit; choose another folder, or delete it"
                )
            start = checkpoint.load(unfinished, self, optimizer)
        elif self.modality.kind == "features":
            self._standardise(_batch(frames, 0, batch, seed))
        rising = max(1, steps // 20)
        with torch.enable_grad():
            for step in progress(range(start, steps), steps, f"tokenizer {self.modality.name}", start):
                for group in optimizer.param_groups:
                    group["lr"] = lr * min((step + 1) / rising, 0.5 + 0.5 * math.cos(math.pi * step / steps))
                x = self._prepared(_batch(frames, step, batch, seed))
                self._expect(x.shape[0])
                with _randomness(seed, step, "codes", x.device):
                    codes, _, commitment = self._quantised(self._latents(x), learning=True)
                reconstruction = self._loss(self.decoder(codes), x)
                loss = reconstruction + commitment
                if not bool(torch.isfinite(loss)):
                    raise ArithmeticError(f"step {step}: the loss is {loss.item()}; lower lr (it is {lr})")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                if say is not None and (step % 50 == 0 or step + 1 == steps):
                    say({"step": step, "loss": reconstruction.item(), "commitment": commitment.item()})
                if unfinished is not None and (step + 1) % every == 0 and step + 1 < steps:
                    checkpoint.save(unfinished, self, optimizer, step + 1, facts)
        self.zero_grad(set_to_none=True)
        if unfinished is not None and weights is not None:
            checkpoint.save(weights, self, None, steps, facts)
            unfinished.unlink(missing_ok=True)
        return self.report(frames)

    @torch.no_grad()
    def report(self, frames: Frames, limit: int = 256) -> TokenizerReport:
        """Encode and decode frames, and say what came of it.

        Args:
            frames: raw values; of indexed ones, at most ``limit`` at equal distances; of a function, the batches of the first
                steps until there are as many.
            limit: see ``frames``.
        """
        ids, answers, targets = [], [], []
        for value in _looked_at(frames, limit):
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
            {"image": "mse", "classes": "% wrong", "features": "1 - cosine"}[self.modality.kind],
            self._error(torch.cat(answers), target),
            self._error(self._constant(target), target),
            self.vocabulary,
            perplexity(named, self.vocabulary),
            len(named.unique()) / self.vocabulary,
        )

    def save(self, path: str | Path) -> None:
        """Write a safetensors file that :func:`load_tokenizer` reads."""
        checkpoint.save(Path(path), self, None, 0, self._facts())

    @abstractmethod
    def _quantised(self, latents: Tensor, learning: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Codes (N, latent, h, w), through which gradients flow to the latents, ids (N, h, w), and the commitment loss."""

    @abstractmethod
    def _codes(self, ids: Tensor) -> Tensor:
        """Codes (N, latent, h, w) of ids (N, h, w)."""

    def _expect(self, batch: int) -> None:
        """Be told how many frames a step has."""

    def _facts(self) -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(json.dumps({"kind": self.kind, **self.arguments}))
        return facts

    def _prepared(self, value: Tensor) -> Tensor:
        """A batch of raw values as network and loss see it."""
        kind, channels = self.modality.kind, self.modality.channels
        value = value.to(next(self.parameters()).device)
        self.modality.check(value)
        if kind == "classes":
            if value.dim() != 3 or value.shape[1:] != self.size:
                raise ValueError(
                    f"{self.modality.name}: expected classes (N, {self.size[0]}, {self.size[1]}) of integers, got "
                    f"{tuple(value.shape)} {value.dtype}"
                )
            return torch.where((value >= 0) & (value < channels), value.long(), channels)
        if (
            value.dim() != 4
            or value.shape[1] != channels
            or (kind == "image" and value.shape[2:] != self.size)
        ):
            wanted = f"{self.size[0]}, {self.size[1]}" if kind == "image" else "h, w"
            raise ValueError(
                f"{self.modality.name}: expected (N, {channels}, {wanted}), got {tuple(value.shape)}; bring the frames to "
                "that size, or make a tokenizer for theirs"
            )
        value = self.modality.normalised(value.float())
        if kind == "features":
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

    def _error(self, answer: Tensor, target: Tensor) -> float:
        """In the unit of the report."""
        if self.modality.kind == "classes":
            known = target < self.modality.channels
            return 100 * float((answer != target)[known].float().mean())
        if self.modality.kind == "features":
            return 1 - float(F.cosine_similarity(answer, target).mean())
        return float(F.mse_loss(answer, target))

    def _constant(self, target: Tensor) -> Tensor:
        """The one answer that errs least."""
        if self.modality.kind == "classes":
            counts = target.flatten().bincount(minlength=self.modality.channels)
            return counts[: self.modality.channels].argmax().expand_as(target)
        unit = F.normalize(target, dim=1) if self.modality.kind == "features" else target
        return unit.mean((0, 2, 3), keepdim=True).expand_as(target)

    def _standardise(self, value: Tensor) -> None:
        """Remember mean and deviation of every channel of feature maps: networks differ in scale by orders."""
        x = self._prepared(value)
        self.mean.copy_(x.mean((0, 2, 3), keepdim=True))
        self.deviation.copy_(x.std((0, 2, 3), keepdim=True).clamp(min=1e-6))


@final
class VQTokenizer(Tokenizer):
    r"""Vector quantisation: the code of the largest cosine, codes being running means of what chose them.

    .. math:: t = \arg\max_k \frac{z}{|z|}^\top e_k, \qquad
              L_{commit} = \beta \operatorname{mse}\left(\frac{z}{|z|}, \operatorname{sg}(e_t)\right)

    Gradients go straight through. A code that fewer than 1/32 of its even share of a batch's tokens choose, on the running
    mean, is dead, and a random latent of the batch takes its place. Departure: the running mean is that of sums and counts, of
    which the code is the quotient (the package), where 4M's is of the batches' means.

    Args:
        modality: which; not a sequence.
        size: (H, W) of its frames.
        patch: side of a token's patch.
        codebook: how many codes (4M: 16,384 for pictures, 8,192 for most others, 4,096 for classes).
        latent: size of a code.
        width: channels at the grid of the tokens; half of it, but 32 at least, at each finer one.
        depth: blocks at the grid of the tokens, in encoder and in decoder.
        network: "convolution" or "transformer".
        decay: of the running means.
        commitment: beta.
        seed: of the initial weights and codes.

    Raises:
        ValueError: the modality is a sequence, or the sizes do not fit.
        ImportError: vector-quantize-pytorch is not installed.

    >>> from testtime.space.modalities import RGB
    >>> tokenizer = VQTokenizer(RGB, size=(16, 16), patch=8, codebook=32, width=16)
    >>> tokenizer.encode(torch.rand(2, 3, 16, 16)).shape, tokenizer.grid, tokenizer.vocabulary
    (torch.Size([2, 4]), (2, 2), 32)
    """

    kind = "vq"

    def __init__(
        self,
        modality: Modality,
        size: tuple[int, int] = (64, 64),
        patch: int = 8,
        codebook: int = 512,
        latent: int = 32,
        width: int = 64,
        depth: int = 1,
        network: Network = "convolution",
        decay: float = 0.99,
        commitment: float = 1.0,
        seed: int = 0,
    ) -> None:
        if not 0 <= decay < 1 or not 0 <= commitment < math.inf:
            raise ValueError(f"decay is in [0, 1) and commitment at least 0, got {decay} and {commitment}")
        super().__init__(modality, size, patch, codebook, latent, width, depth, network, seed)
        self.arguments |= {"codebook": codebook, "latent": latent, "decay": decay, "commitment": commitment}
        with _randomness(seed, 0, "codebook"):
            self.quantizer = _package().VectorQuantize(
                dim=latent,
                codebook_size=codebook,
                decay=decay,
                commitment_weight=commitment,
                use_cosine_sim=True,
                rotation_trick=False,
                threshold_ema_dead_code=1.0,
                accept_image_fmap=True,
            )
        # Born dead, as in 4M: the latents of the first batch become the codes.
        self.quantizer._codebook.cluster_size.zero_()

    def _quantised(self, latents: Tensor, learning: bool) -> tuple[Tensor, Tensor, Tensor]:
        codes, ids, loss = self.quantizer.train(learning)(latents)
        return codes, ids, loss.sum()

    def _codes(self, ids: Tensor) -> Tensor:
        codes: Tensor = self.quantizer.get_codes_from_indices(ids)
        return codes

    def _expect(self, batch: int) -> None:
        threshold = batch * math.prod(self.grid) / self.vocabulary / 32
        book = self.quantizer._codebook
        book.threshold_ema_dead_code = book.reset_cluster_size = threshold


@final
class FSQTokenizer(Tokenizer):
    r"""Finite scalar quantisation: each number of a latent is bounded and rounded to one of a few levels; no codebook to learn.

    .. math:: \hat z_i = \operatorname{round}\left(\tfrac{(L_i - 1)(1 + \epsilon)}{2} \tanh(z_i + s_i) - o_i\right), \qquad
              t = \sum_i (\hat z_i + \lfloor L_i / 2 \rfloor) \prod_{j < i} L_j

    with o = 1/2 and s = atanh(o / ((L - 1)(1 + ε) / 2)) where L is even, 0 where it is odd. Gradients go straight through the
    rounding, and there is no commitment loss.

    Args:
        modality: which; not a sequence.
        size: (H, W) of its frames.
        patch: side of a token's patch.
        levels: L; the vocabulary is their product: (8, 5, 5, 5) has 1,000 codes, (8, 6, 5) 240.
        width, depth, network, seed: as :class:`VQTokenizer`'s.

    Raises:
        ValueError: the modality is a sequence, the sizes do not fit, or a level is below 3.
        ImportError: vector-quantize-pytorch is not installed.

    >>> from testtime.space.modalities import DEPTH
    >>> FSQTokenizer(DEPTH, size=(16, 16), levels=(8, 6, 5), width=16).vocabulary
    240
    """

    kind = "fsq"

    def __init__(
        self,
        modality: Modality,
        size: tuple[int, int] = (64, 64),
        patch: int = 8,
        levels: Sequence[int] = (8, 5, 5, 5),
        width: int = 64,
        depth: int = 1,
        network: Network = "convolution",
        seed: int = 0,
    ) -> None:
        if not levels or not all(isinstance(level, int) and level >= 3 for level in levels):
            raise ValueError(f"levels are whole numbers of at least 3 each, got {list(levels)}")
        super().__init__(modality, size, patch, math.prod(levels), len(levels), width, depth, network, seed)
        self.arguments["levels"] = list(levels)
        self.quantizer = _package().FSQ(list(levels))

    def _quantised(self, latents: Tensor, learning: bool) -> tuple[Tensor, Tensor, Tensor]:
        codes, ids = self.quantizer.train(learning)(latents)
        return codes, ids, latents.new_zeros(())

    def _codes(self, ids: Tensor) -> Tensor:
        codes: Tensor = self.quantizer.indices_to_codes(ids)
        return codes


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Read a tokenizer that ``save`` or ``fit`` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file is not of a tokenizer, or its tensors are not those that its arguments ask for.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; expected a tokenizer's safetensors file")
    try:
        facts = checkpoint.described_in(path)
        kind, modality = facts["kind"], dict(facts["modality"])
        own = ("codebook", "latent", "decay", "commitment") if kind == "vq" else ("levels",)
        names = ("size", "patch", "width", "depth", "network", "seed", *own)
        arguments = {name: facts[name] for name in names}
        arguments |= {"size": tuple(arguments["size"])}
        of = Modality(**{**modality, "signs": tuple(modality["signs"])})
        large = [
            name
            for name in ("width", "depth", "latent", "codebook")
            if not 0 <= arguments.get(name, 0) <= LARGEST
        ]
        if large or of.channels > LARGEST or max(arguments["size"]) > LARGEST:
            raise ValueError(f"a size above {LARGEST}")
        tokenizer = (VQTokenizer if kind == "vq" else FSQTokenizer)(of, **arguments)
    except KeyError as error:
        raise WeightsError(f"{path} is not of a tokenizer: its metadata lack {error}") from error
    except (SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} is not of a tokenizer: {error}") from error
    checkpoint.load(path, tokenizer)
    return tokenizer.eval()


def _package() -> Any:
    try:
        return import_module("vector_quantize_pytorch")
    except ImportError as error:
        raise missing_extra("vector-quantize-pytorch", "space") from error


@contextmanager
def _randomness(seed: int, step: int, purpose: str, device: torch.device | None = None) -> Iterator[None]:
    """For code that draws from the global generator: inside it is a function of the arguments, outside it was not touched."""
    number = generator(seed, step, purpose).initial_seed()
    cuda = device is not None and device.type == "cuda"
    with torch.random.fork_rng([device] if cuda else []):
        torch.default_generator.manual_seed(number)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(number)
        yield


def _batch(frames: Frames, step: int, batch: int, seed: int) -> Tensor:
    """The raw values of a step, a function of the seed."""
    if callable(frames):
        return frames(step)
    return torch.stack([frames[i] for i in epochs(len(frames), batch, seed, step)])


def _looked_at(frames: Frames, limit: int) -> Iterator[Tensor]:
    """Batches of raw values for a report."""
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
