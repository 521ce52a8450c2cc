r"""The multimodal masked autoencoder of 4M: an encoder over the tokens that are shown, a decoder that names those asked for.

.. math:: L = \frac{1}{M} \sum_m \frac{1}{|T_m|} \sum_{t \in T_m} -\log p_\theta(t \mid \text{shown})

Every token is content plus embedding: the content is a patch of the picture through a linear layer, or a row of the modality's
table; the embedding is a fixed sine-cosine of its place plus a learned vector of its modality. The decoder starts from a shared
mask token (in a sequence, from the token before) plus the embedding of the place that is asked for; its tokens attend only to
those of their own modality, and all of them to the encoder's.

Reference: Mizrahi et al., 4M: Massively Multimodal Masked Modeling, NeurIPS 2023; sizes and details from its released code
(Apache-2.0), of which nothing is copied. Used as Singh, Garjani et al. do, Multimodality as Supervision: Self-Supervised
Specialization to the Test Environment via Multimodality (TST-MM), appendix W.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from testtime.space.masking import Stream

__all__ = ["SIZES", "Batch", "Block", "Encoder", "FourM", "Size"]


@final
@dataclass(frozen=True)
class Size:
    """Depth of encoder and decoder, width, attention heads."""

    encoder: int
    decoder: int
    dim: int
    heads: int


SIZES = {
    "tiny": Size(2, 2, 96, 3),
    "T": Size(6, 6, 384, 6),
    "S": Size(8, 8, 512, 8),
    "B": Size(12, 12, 768, 12),
}
"""By name; "tiny" is for two cores, the others are 4M's."""


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """What the model is given: slots of shown and asked tokens (:class:`~testtime.space.masking.Mask`), with their contents.

    Attributes:
        pixels: (N, 3, H, W) in [0, 1]; on its way to the device it may be uint8 (:meth:`to`).
        shown, asked: (N, inputs), (N, targets) int64, places; -1 where a slot is empty.
        shown_id, asked_id: ids of the same shapes; of a pixel patch without meaning.
        before_id: (N, targets), in a sequence the token before the one asked for; on a grid without meaning.
    """

    pixels: Tensor
    shown: Tensor
    shown_id: Tensor
    asked: Tensor
    asked_id: Tensor
    before_id: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """The same on another device, with pictures in [0, 1] whatever they were."""
        pixels, *rest = (
            getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__
        )
        return Batch(pixels if pixels.is_floating_point() else pixels.float() / 255, *rest)

    def part(self, number: int, of: int) -> Batch:
        """Every of-th sample, beginning with the number-th."""
        return Batch(*(getattr(self, name)[number::of] for name in self.__dataclass_fields__))


class SwiGLU(nn.Module):
    """W2(SiLU(W1 x) * W3 x), without biases, of hidden width int(2/3 * 4 dim)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = int(2 * 4 * dim / 3)
        self.fc1, self.fc2, self.fc3 = (
            nn.Linear(a, b, bias=False) for a, b in ((dim, hidden), (hidden, dim), (dim, hidden))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.silu(self.fc1(x)) * self.fc3(x))


class Attention(nn.Module):
    """Attention to the tokens themselves or to a context, without biases."""

    def __init__(self, dim: int, heads: int, cross: bool = False) -> None:
        super().__init__()
        self.heads = heads
        if cross:
            self.q, self.kv = nn.Linear(dim, dim, bias=False), nn.Linear(dim, 2 * dim, bias=False)
        else:
            self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)

    def forward(self, x: Tensor, mask: Tensor | None, context: Tensor | None = None) -> Tensor:
        if context is None:
            q, k, v = self.qkv(x).chunk(3, -1)
        else:
            q, (k, v) = self.q(x), self.kv(context).chunk(2, -1)
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        return self.proj(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm block of the encoder."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = _norm(dim), _norm(dim)
        self.attn, self.mlp = Attention(dim, heads), SwiGLU(dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class DecoderBlock(nn.Module):
    """Attention among the asked tokens, then to the context, then the MLP; query and context have norms of their own."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.query_norm, self.context_norm, self.norm2 = (_norm(dim) for _ in range(4))
        self.self_attn, self.cross_attn = Attention(dim, heads), Attention(dim, heads, cross=True)
        self.mlp = SwiGLU(dim)

    def forward(self, x: Tensor, context: Tensor, own: Tensor, seen: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm1(x), own)
        x = x + self.cross_attn(self.query_norm(x), seen, self.context_norm(context))
        return x + self.mlp(self.norm2(x))


@final
class FourM(nn.Module):
    """The model.

    Args:
        streams: of tokens; those of kind "grid" have as many places as the picture has patches.
        size: a name in :data:`SIZES`, or a :class:`Size`.
        image: (H, W) of the picture in pixels.
        patch: side in pixels of a patch.

    Raises:
        ValueError: the patch does not divide the picture, or a grid has another number of places.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        size: str | Size = "S",
        image: tuple[int, int] = (224, 224),
        patch: int = 16,
    ) -> None:
        super().__init__()
        self.streams = tuple(streams)
        if isinstance(size, str):
            if size not in SIZES:
                raise ValueError(f"no size {size!r}; there are {', '.join(SIZES)}")
            size = SIZES[size]
        if patch < 1 or min(image) < patch or image[0] % patch or image[1] % patch:
            raise ValueError(f"a patch of {patch} does not divide a picture of {image[0]} x {image[1]}")
        if len({s.name for s in self.streams}) < len(self.streams) or not self.streams:
            raise ValueError(f"expected streams of different names, got {[s.name for s in self.streams]}")
        empty = [s.name for s in self.streams if s.kind != "pixels" and not s.vocabulary]
        if empty:
            raise ValueError(f"{', '.join(empty)}: expected a vocabulary of at least 1, got 0")
        self.size, self.image, self.patch, self.dim = size, image, patch, size.dim
        self.grid = (image[0] // patch, image[1] // patch)
        places = self.grid[0] * self.grid[1]
        for stream in self.streams:
            if stream.kind != "sequence" and stream.length != places:
                raise ValueError(
                    f"{stream.name} has {stream.length} places, but the picture has {places} patches"
                )
        dim = size.dim
        asked = [s for s in self.streams if s.kind != "pixels"]
        self.pixels = nn.Linear(3 * patch * patch, dim, bias=False)
        self.tokens = nn.ModuleDict({s.name: nn.Embedding(s.vocabulary, dim) for s in asked})
        self.modality = nn.ParameterDict({s.name: nn.Parameter(torch.empty(dim)) for s in self.streams})
        self.blocks = nn.ModuleList(Block(dim, size.heads) for _ in range(size.encoder))
        self.norm = _norm(dim)
        self.context = nn.Linear(dim, dim)
        self.mask_token = nn.Parameter(torch.empty(dim))
        self.answers = nn.ModuleDict({s.name: nn.Embedding(s.vocabulary, dim) for s in asked})
        self.decoder = nn.ModuleList(DecoderBlock(dim, size.heads) for _ in range(size.decoder))
        self.decoder_norm = _norm(dim)
        self.register_buffer("position", self._positions(), persistent=False)
        lengths = torch.tensor([s.length for s in self.streams])
        self.register_buffer(
            "stream_of", torch.arange(len(lengths)).repeat_interleave(lengths), persistent=False
        )
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer(
            "deviation", torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1), persistent=False
        )
        self._born()

    position: Tensor
    stream_of: Tensor
    mean: Tensor
    deviation: Tensor

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """The mean cross-entropy of each stream's asked tokens, in nats; 0 for one that is not asked in this batch."""
        hidden = self.decode(batch, self.encode(batch))
        losses = {}
        for number, stream in enumerate(self.streams):
            if stream.kind == "pixels":
                continue
            here = self._of(batch.asked) == number
            logits = hidden[here] @ self._answers(stream.name).T
            loss = F.cross_entropy(logits.float(), batch.asked_id[here], reduction="sum")
            losses[stream.name] = loss / here.sum().clamp(min=1)
        return losses

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """How many tokens the loss of each stream is the mean of; parts of a batch weigh as much."""
        of = self._of(batch.asked.to(self.stream_of.device))
        return {s.name: (of == i).sum() for i, s in enumerate(self.streams) if s.kind != "pixels"}

    def encode(self, batch: Batch) -> Tensor:
        """The encoder's output (N, inputs, dim), after its norm; empty slots mean nothing."""
        x = self._content(batch.shown, batch.shown_id, self.tokens, batch.pixels) + self._embedding(
            batch.shown
        )
        seen = _attended(batch.shown)
        for block in self.blocks:
            x = block(x, seen)
        return self.norm(x)

    def decode(self, batch: Batch, encoded: Tensor) -> Tensor:
        """The decoder's output (N, targets, dim), after its norm; times the table of its stream it gives the logits."""
        sequences = [i for i, s in enumerate(self.streams) if s.kind == "sequence"]
        x = self.mask_token.expand(*batch.asked.shape, -1)
        of = self._of(batch.asked)
        for number in sequences:
            here = of == number
            x = x.masked_scatter(
                here[..., None], self.answers[self.streams[number].name](batch.before_id[here]).to(x.dtype)
            )
        x = x + self._embedding(batch.asked)
        context = self.context(encoded) + self._embedding(batch.shown)
        own = (of[:, :, None] == of[:, None, :]) & (of >= 0)[:, None, :]
        if sequences:
            causal = batch.asked[:, :, None] >= batch.asked[:, None, :]
            ordered = torch.isin(of, torch.tensor(sequences, device=of.device))
            own = own & (causal | ~ordered[:, :, None])
        own = (own | torch.eye(own.shape[-1], dtype=torch.bool, device=own.device))[:, None]
        seen = _attended(batch.shown)
        for block in self.decoder:
            x = block(x, context, own, seen)
        return self.decoder_norm(x)

    def logits(self, hidden: Tensor, stream: str) -> Tensor:
        """Logits (..., vocabulary) of a stream from the decoder's output."""
        return hidden @ self._answers(stream).T

    def patches(self, pixels: Tensor) -> Tensor:
        """The linear embedding of every patch of pictures in [0, 1], (N, places, dim)."""
        x = (pixels - self.mean) / self.deviation
        return self.pixels(F.unfold(x, self.patch, stride=self.patch).transpose(1, 2))

    def _content(
        self, places: Tensor, ids: Tensor, tables: Mapping[str, nn.Module] | Any, pixels: Tensor
    ) -> Tensor:
        of = self._of(places)
        x = self.mask_token.new_zeros(*places.shape, self.dim)
        for number, stream in enumerate(self.streams):
            here = of == number
            if stream.kind == "pixels":
                start = int(sum(s.length for s in self.streams[:number]))
                patches = self.patches(pixels)
                index = (places - start).clamp(0, patches.shape[1] - 1)[..., None].expand(-1, -1, self.dim)
                x = torch.where(here[..., None], patches.gather(1, index), x)
            else:
                rows = tables[stream.name](torch.where(here, ids, 0))
                x = torch.where(here[..., None], rows, x)
        return x

    def _embedding(self, places: Tensor) -> Tensor:
        table = self.position + torch.stack([self.modality[s.name] for s in self.streams])[self.stream_of]
        return table[places.clamp(min=0)] * (places >= 0)[..., None]

    def _of(self, places: Tensor) -> Tensor:
        return torch.where(places >= 0, self.stream_of[places.clamp(min=0)], -1)

    def _answers(self, name: str) -> Tensor:
        table: Any = self.answers[name]
        return table.weight

    def _positions(self) -> Tensor:
        grid = grid_embedding(self.grid, self.dim)
        return torch.cat(
            [line_embedding(s.length, self.dim) if s.kind == "sequence" else grid for s in self.streams]
        )

    def _born(self) -> None:
        """Xavier for linear layers, query, key and value each for itself; normal with deviation 0.02 for embeddings."""
        for name, module in self.named_modules():
            if isinstance(module, nn.Linear):
                parts = 3 if name.endswith("qkv") else 2 if name.endswith("kv") else 1
                for weight in module.weight.chunk(parts):
                    nn.init.xavier_uniform_(weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for parameter in (*self.modality.values(), self.mask_token):
            nn.init.normal_(parameter, std=0.02)


@final
class Encoder(nn.Module):
    """The encoder of pictures alone, as transfer uses it: patches of the picture in, one feature vector for each out.

    Args:
        model: pre-trained; its patch embedding, blocks and norm are taken as they are, not copied.
        stream: the name of the pixels among its streams.
    """

    def __init__(self, model: FourM, stream: str = "rgb") -> None:
        super().__init__()
        number = [s.name for s in model.streams].index(stream)
        self.dim, self.grid, self.size, self.patch = model.dim, model.grid, model.image, model.patch
        self.pixels, self.blocks, self.norm = model.pixels, model.blocks, model.norm
        self.modality = model.modality[stream]
        self.register_buffer("position", model.position[model.stream_of == number], persistent=False)
        self.register_buffer("mean", model.mean, persistent=False)
        self.register_buffer("deviation", model.deviation, persistent=False)

    position: Tensor
    mean: Tensor
    deviation: Tensor

    def forward(self, images: Tensor) -> Tensor:
        """Features (N, places, dim) of pictures (N, 3, H, W) in [0, 1]."""
        x = (images - self.mean) / self.deviation
        x = self.pixels(F.unfold(x, self.patch, stride=self.patch).transpose(1, 2))
        x = x + self.position + self.modality
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def grid_embedding(grid: tuple[int, int], dim: int) -> Tensor:
    """Sines and cosines of row and column, (rows * columns, dim): the first half tells the row, as in 4M.

    Raises:
        ValueError: dim is not a multiple of four.
    """
    if dim % 4:
        raise ValueError(f"the width of a 2-D sine-cosine embedding is a multiple of four, got {dim}")
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.cat([_waves(rows.flatten(), dim // 2), _waves(columns.flatten(), dim // 2)], 1)


def line_embedding(length: int, dim: int) -> Tensor:
    """Sines and cosines of the rank in a sequence, (length, dim)."""
    return _waves(torch.arange(length), dim)


def _waves(places: Tensor, dim: int) -> Tensor:
    frequency = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = places.double()[:, None] * frequency
    return torch.cat([angles.sin(), angles.cos()], 1).float()


def _attended(places: Tensor) -> Tensor:
    """Which keys may be attended to, (N, 1, 1, slots); a sample with none attends to all, which are zeros."""
    there = places >= 0
    return (there | ~there.any(1, keepdim=True))[:, None, None]


def _norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-6, bias=False)
