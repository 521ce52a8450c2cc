r"""The multimodal masked autoencoder of 4M: an encoder of input tokens, and a decoder that predicts target tokens.

.. math:: L = \frac{1}{M} \sum_m \frac{1}{|T_m|} \sum_{t \in T_m} -\log p_\theta(t \mid \text{inputs})

Every token is content plus embedding: the content is a patch of the picture through a linear layer, or a row of the modality's
table; the embedding is a fixed sine-cosine of its position plus a learned vector of its modality. The input of the decoder is a
shared mask token (in a sequence, the previous token) plus the embedding of the target position; its tokens attend to those of
their own modality, and to all tokens of the encoder.

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
    "mini": Size(4, 4, 192, 6),
    "T": Size(6, 6, 384, 6),
    "S": Size(8, 8, 512, 8),
    "B": Size(12, 12, 768, 12),
}
"""Sizes by name; "tiny" and "mini" are for two CPU cores, the others are 4M's."""


@final
@dataclass(frozen=True, eq=False)
class Batch:
    """Input of the model: positions of input and target tokens (:class:`~testtime.space.masking.Mask`), with their ids.

    Attributes:
        pixels: pictures (N, 3, H, W) in [0, 1]; uint8 before :meth:`to`.
        shown, asked: positions (N, inputs) of input and (N, targets) of target tokens, int64; -1 for an empty slot.
        shown_id, asked_id: ids of the same shapes; not used for patches of pixels.
        before_id: ids (N, targets) of the token before the target in a sequence; not used on a grid.
    """

    pixels: Tensor
    shown: Tensor
    shown_id: Tensor
    asked: Tensor
    asked_id: Tensor
    before_id: Tensor

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on another device, with pictures in [0, 1].

        Args:
            device: the device.
        """
        pixels, *rest = (
            getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__
        )
        return Batch(pixels if pixels.is_floating_point() else pixels.float() / 255, *rest)

    def part(self, number: int, of: int) -> Batch:
        """Return every ``of``-th sample, from sample ``number`` on."""
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
    """Self-attention or cross-attention, without biases."""

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
    """Self-attention of the target tokens, cross-attention to the context, and MLP; query and context have separate norms."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.query_norm, self.context_norm, self.norm2 = (_norm(dim) for _ in range(4))
        self.self_attn, self.cross_attn = Attention(dim, heads), Attention(dim, heads, cross=True)
        self.mlp = SwiGLU(dim)

    def forward(self, x: Tensor, context: Tensor, own: Tensor, visible: Tensor) -> Tensor:
        x = x + self.self_attn(self.norm1(x), own)
        x = x + self.cross_attn(self.query_norm(x), visible, self.context_norm(context))
        return x + self.mlp(self.norm2(x))


@final
class FourM(nn.Module):
    """Multimodal masked autoencoder.

    Args:
        streams: streams of tokens; those of kind "grid" have one position for each patch of the picture.
        size: size, a name in :data:`SIZES`, or a :class:`Size`.
        image: (H, W) of the picture in pixels.
        patch: side of a patch in pixels.

    Raises:
        ValueError: the patch does not divide the picture, or a grid has another number of positions.
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
        self._initialise()

    position: Tensor
    stream_of: Tensor
    mean: Tensor
    deviation: Tensor

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the mean cross-entropy of each stream's target tokens, in nats; 0 for a stream without targets."""
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
        """Return the number of target tokens of each stream, by which the parts of a batch are weighted."""
        of = self._of(batch.asked.to(self.stream_of.device))
        return {s.name: (of == i).sum() for i, s in enumerate(self.streams) if s.kind != "pixels"}

    def encode(self, batch: Batch) -> Tensor:
        """Return the encoder's output (N, inputs, dim) after its norm; the values of empty slots are not used."""
        x = self._content(batch.shown, batch.shown_id, self.tokens, batch.pixels) + self._embedding(
            batch.shown
        )
        visible = _attended(batch.shown)
        for block in self.blocks:
            x = block(x, visible)
        return self.norm(x)

    def decode(self, batch: Batch, encoded: Tensor) -> Tensor:
        """Return the decoder's output (N, targets, dim) after its norm; :meth:`logits` turns it into logits."""
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
        visible = _attended(batch.shown)
        for block in self.decoder:
            x = block(x, context, own, visible)
        return self.decoder_norm(x)

    def logits(self, hidden: Tensor, stream: str) -> Tensor:
        """Return the logits (..., vocabulary) of a stream from the decoder's output."""
        return hidden @ self._answers(stream).T

    def patches(self, pixels: Tensor) -> Tensor:
        """Return the linear embedding of every patch, (N, positions, dim), of pictures in [0, 1]."""
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

    def _initialise(self) -> None:
        """Initialise: Xavier for linear layers, query, key and value separately; normal with deviation 0.02 for embeddings."""
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
    """Encoder of pictures for transfer, with one feature vector for each patch.

    Args:
        model: pre-trained model, whose patch embedding, blocks and norm are shared, not copied.
        stream: name of the stream of pixels.
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
        """Return features (N, positions, dim) of pictures (N, 3, H, W) in [0, 1]."""
        x = (images - self.mean) / self.deviation
        x = self.pixels(F.unfold(x, self.patch, stride=self.patch).transpose(1, 2))
        x = x + self.position + self.modality
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def grid_embedding(grid: tuple[int, int], dim: int) -> Tensor:
    """Return the sine-cosine embedding of a grid, (rows * columns, dim): the first half encodes the row, as in 4M.

    Args:
        grid: (rows, columns).
        dim: width of the embedding.

    Raises:
        ValueError: dim is not a multiple of four.
    """
    if dim % 4:
        raise ValueError(f"the width of a 2-D sine-cosine embedding is a multiple of four, got {dim}")
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.cat([_waves(rows.flatten(), dim // 2), _waves(columns.flatten(), dim // 2)], 1)


def line_embedding(length: int, dim: int) -> Tensor:
    """Return the sine-cosine embedding of the index in a sequence, (length, dim).

    Args:
        length: length of the sequence.
        dim: width of the embedding.
    """
    return _waves(torch.arange(length), dim)


def _waves(places: Tensor, dim: int) -> Tensor:
    frequency = 10000.0 ** -(torch.arange(dim // 2, dtype=torch.float64) / (dim // 2))
    angles = places.double()[:, None] * frequency
    return torch.cat([angles.sin(), angles.cos()], 1).float()


def _attended(places: Tensor) -> Tensor:
    """Return the attention mask of keys, (N, 1, 1, slots); a sample without tokens attends to all slots, which are 0."""
    there = places >= 0
    return (there | ~there.any(1, keepdim=True))[:, None, None]


def _norm(dim: int) -> nn.LayerNorm:
    return nn.LayerNorm(dim, eps=1e-6, bias=False)
