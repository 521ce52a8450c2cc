r"""Tokenizers: a frame of one modality as a small grid of ids, and back.

.. math:: t = \operatorname{quantise}(f(x)), \qquad \hat x = g(\operatorname{code}(t)), \qquad L = \ell(\hat x, x) + L_{commit}

An encoder f returns a latent for every patch, the quantiser replaces it by the nearest code, a decoder g reconstructs the
frame. Two quantisers share one interface: :class:`VQTokenizer`, that of 4M (unit codes, cosine similarity, codes as running
means), and :class:`FSQTokenizer`, whose codes are a fixed lattice. The ids are the input of pre-training.

Departures from 4M: its decoder of images is a diffusion model (DiVAE), here it is a plain one, because decoding is only for
inspection; f and g are small convolutional networks by default (``network="transformer"`` is the paper's kind of encoder); 4M
has no finite scalar quantisation; its tokenizers were trained on images of the Internet, ours on the space they will work in.

Reference: Mizrahi et al., 4M: Massively Multimodal Masked Modeling, NeurIPS 2023, section 2.1 and appendix; Yu et al.,
Vector-quantized Image Modeling with Improved VQGAN, ICLR 2022 (unit codes); Mentzer et al., Finite Scalar Quantization: VQ-VAE
Made Simple, ICLR 2024. The quantisers are those of the package vector-quantize-pytorch (MIT).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, final

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor

from testtime.errors import WeightsError, missing_extra
from testtime.moved import current_arguments, takes_former
from testtime.parts.randomness import seeded
from testtime.space.autoencoder import Network
from testtime.space.modalities import Modality
from testtime.space.tokenizer_base import Frames, Tokenizer
from testtime.space.tokenizer_report import TokenizerReport, perplexity
from testtime.training import checkpoint

__all__ = [
    "FSQTokenizer",
    "Frames",
    "Tokenizer",
    "TokenizerReport",
    "VQOptions",
    "VQTokenizer",
    "load_tokenizer",
    "perplexity",
]

COSINES = 2**18
"""Number of cosines of latents and codes that are computed at once."""
LARGEST = 2**17
"""Largest width, number of codes and classes, and side in pixels of a tokenizer that is read from a file."""


@final
@dataclass(frozen=True)
class VQOptions:
    """Codes of a :class:`VQTokenizer` and their loss.

    Args:
        latent: size of a code.
        decay: decay of the running means.
        commitment: beta, weight of the commitment loss.

    Raises:
        ValueError: decay is not in [0, 1), or commitment is negative.
    """

    latent: int = 32
    decay: float = 0.99
    commitment: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.decay < 1 or not 0 <= self.commitment < math.inf:
            raise ValueError(
                f"decay is in [0, 1) and commitment at least 0, got {self.decay} and {self.commitment}"
            )


@final
@takes_former
class VQTokenizer(Tokenizer):
    r"""Vector quantisation: the code of the largest cosine, codes being running means of what chose them.

    .. math:: t = \arg\max_k \frac{z}{|z|}^\top e_k, \qquad
              L_{commit} = \beta \operatorname{mse}\left(\frac{z}{|z|}, \operatorname{sg}(e_t)\right)

    The gradient is straight-through. A code that fewer than 1/32 of its even share of a batch's tokens choose, on the running
    mean, is dead, and is replaced by a random latent of the batch. Departure: the running mean is that of sums and counts, of
    which the code is the quotient (the package), where 4M's is of the batches' means.

    Args:
        modality: modality of the frames; not a sequence.
        size: (H, W) of the frames.
        patch: side of a token's patch.
        codebook: number of codes (4M: 16,384 for images, 8,192 for most others, 4,096 for classes).
        width: channels at the grid of the tokens; half of it, but 32 at least, at each finer one.
        depth: blocks at the grid of the tokens, in encoder and in decoder.
        network: "convolution" or "transformer".
        options: codes and their loss.
        seed: random seed of the initial weights and codes.

    Raises:
        ValueError: the modality is a sequence, or the sizes do not fit.
        ImportError: vector-quantize-pytorch is not installed.

    >>> import torch
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
        width: int = 64,
        depth: int = 1,
        network: Network = "convolution",
        options: VQOptions = VQOptions(),
        seed: int = 0,
    ) -> None:
        super().__init__(modality, size, patch, codebook, options.latent, width, depth, network, seed)
        self.arguments |= {"codebook": codebook, **asdict(options)}
        with seeded(seed, 0, "codebook"):
            self.quantizer = _package().VectorQuantize(
                dim=options.latent,
                codebook_size=codebook,
                decay=options.decay,
                commitment_weight=options.commitment,
                use_cosine_sim=True,
                rotation_trick=False,
                threshold_ema_dead_code=1.0,
                accept_image_fmap=True,
            )
        # All codes are dead at first, as in 4M: the latents of the first batch become the codes.
        self.quantizer._codebook.cluster_size.zero_()

    def _quantised(self, latents: Tensor, learning: bool) -> tuple[Tensor, Tensor, Tensor]:
        codes, ids, loss = self.quantizer.train(learning)(latents)
        return codes, ids, loss.sum()

    def _ids(self, latents: Tensor) -> Tensor:
        """Return the ids of `_quantised`, without its (N h w, codes) one-hot codes, in blocks that fit in a cache."""
        book = self.quantizer._codebook.embed[0]
        unit = F.normalize(latents.float().flatten(2).mT.flatten(0, 1), eps=1e-6)
        rows = max(1, COSINES // len(book))
        cosines = unit.new_empty(min(rows, len(unit)), len(book))  # memory that every block writes again
        ids = [_argmax(torch.mm(part, book.T, out=cosines[: len(part)])) for part in unit.split(rows)]
        return torch.cat(ids).view(len(latents), *latents.shape[2:])

    def _codes(self, ids: Tensor) -> Tensor:
        codes: Tensor = self.quantizer.get_codes_from_indices(ids)
        return codes

    def _set_batch(self, batch: int) -> None:
        threshold = batch * math.prod(self.grid) / self.vocabulary / 32
        book = self.quantizer._codebook
        book.threshold_ema_dead_code = book.reset_cluster_size = threshold


@final
class FSQTokenizer(Tokenizer):
    r"""Finite scalar quantisation: each number of a latent is bounded and rounded to one of a few levels; no learned codebook.

    .. math:: \hat z_i = \operatorname{round}\left(\tfrac{(L_i - 1)(1 + \epsilon)}{2} \tanh(z_i + s_i) - o_i\right), \qquad
              t = \sum_i (\hat z_i + \lfloor L_i / 2 \rfloor) \prod_{j < i} L_j

    with o = 1/2 and s = atanh(o / ((L - 1)(1 + ε) / 2)) where L is even, 0 where it is odd. The gradient of the
    rounding is straight-through, and there is no commitment loss.

    Args:
        modality: modality of the frames; not a sequence.
        size: (H, W) of the frames.
        patch: side of a token's patch.
        levels: L; the vocabulary is their product: (8, 5, 5, 5) has 1,000 codes, (8, 6, 5) 240.
        width: channels at the grid of the tokens, see :class:`VQTokenizer`.
        depth: blocks at the grid of the tokens, in encoder and in decoder.
        network: "convolution" or "transformer".
        seed: random seed of the initial weights.

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

    Args:
        path: the file.

    Raises:
        FileNotFoundError: there is no such file.
        WeightsError: the file is not of a tokenizer, or its tensors do not match its arguments.
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
        made = VQTokenizer if kind == "vq" else FSQTokenizer
        tokenizer = made(of, **current_arguments(made, arguments, saved=True))
    except KeyError as error:
        raise WeightsError(f"{path} is not of a tokenizer: its metadata lack {error}") from error
    except (SafetensorError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} is not of a tokenizer: {error}") from error
    checkpoint.load(path, tokenizer)
    return tokenizer.eval()


def _argmax(x: Tensor) -> Tensor:
    """Return the index of the largest value of each row; numpy takes a tenth of torch's time for it on a CPU."""
    return x.argmax(1) if x.device.type != "cpu" else torch.from_numpy(x.detach().numpy().argmax(1))


def _package() -> Any:
    try:
        return import_module("vector_quantize_pytorch")
    except ImportError as error:
        raise missing_extra("vector-quantize-pytorch", "space") from error
