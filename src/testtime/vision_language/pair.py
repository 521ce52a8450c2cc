"""A pair of an image encoder and a text encoder that embed in one space, with the scale of their similarity."""

from __future__ import annotations

import reprlib
from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["ImageText", "TextEncoder"]

CHUNK = 256  # prompts that are encoded at once where no gradient is needed


class TextEncoder(nn.Module):
    """Interface of a text encoder that is differentiable from the embeddings of its tokens; any module with it will do.

    Attributes:
        start: number of tokens that every prompt begins with, such as [CLS] or the start of text.
    """

    start: int = 1

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Return token ids (K, T), int64, padded as the encoder expects."""
        raise NotImplementedError

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings (K, T, E) of token ids (K, T)."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Return the embeddings (K, D) of prompts.

        Args:
            tokens: embeddings of the tokens (K, T, E), through which gradients flow.
            ids: token ids (K, T) that tell padding and end of text.
        """
        raise NotImplementedError


@final
class ImageText(nn.Module):
    """An image encoder and a text encoder in one space.

    Args:
        images: module (N, 3, H, W) in [0, 1] -> (N, D); its method ``patches(x)``, where it has one, returns local tokens
            (N, P, D) in the same space.
        texts: module with the interface of :class:`TextEncoder`.
        scale: factor of the cosine in the logits; 100 for CLIP.

    Raises:
        TypeError: a part is no module, the text encoder lacks a part of its interface, or scale is no number.
        ValueError: scale is not a positive number.

    >>> from testtime.laws.worlds import WORLDS
    >>> pair = WORLDS["image-text"].make().pair
    >>> [round(norm, 4) for norm in pair(torch.rand(2, 3, 8, 8)).norm(dim=1).tolist()]
    [1.0, 1.0]
    """

    scale: Tensor

    def __init__(self, images: nn.Module, texts: nn.Module, scale: float | Tensor = 100.0) -> None:
        super().__init__()
        for name, module in {"images": images, "texts": texts}.items():
            if not isinstance(module, nn.Module):
                raise TypeError(f"{name} is a torch.nn.Module, got {type(module).__name__}")
        missing = [name for name in ("tokenize", "embed", "start") if not hasattr(texts, name)]
        if missing:
            raise TypeError(
                f"{type(texts).__name__} has no {', '.join(missing)}; a text encoder has tokenize(prompts) -> ids (K, T), "
                "embed(ids) -> (K, T, E), forward(tokens, ids) -> (K, D) and start, the number of tokens that every prompt "
                "begins with (testtime.vision_language.TextEncoder)"
            )
        if not isinstance(scale, int | float) and not (isinstance(scale, Tensor) and scale.numel() == 1):
            got = f"shape {tuple(scale.shape)}" if isinstance(scale, Tensor) else type(scale).__name__
            raise TypeError(f"scale is one number, such as logit_scale.exp() of CLIP, got {got}")
        value = float(scale.detach() if isinstance(scale, Tensor) else scale)
        if not 0 < value < float("inf"):
            raise ValueError(
                f"scale is the positive factor of the cosine, such as logit_scale.exp() of CLIP, got {value:g}"
            )
        self.images, self.texts = images, texts
        self.register_buffer("scale", torch.tensor(value), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings (N, D) of images, of norm 1."""
        return _unit(_embedded(self.images, self.images(x), x.shape[0]))

    def image_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the image encoder: what its ``own_parameters()`` returns, where it shares a module."""
        return _own_parameters(self.images)

    def text_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the text encoder: what its ``own_parameters()`` returns, where it shares a module."""
        return _own_parameters(self.texts)

    @property
    def has_patches(self) -> bool:
        """Whether the image encoder returns local tokens."""
        return callable(getattr(self.images, "patches", None))

    def patches(self, x: Tensor) -> Tensor:
        """Return local tokens (N, P, D) of images, of norm 1.

        Raises:
            TypeError: the image encoder has no ``patches``.
        """
        if not self.has_patches:
            raise TypeError(
                f"{type(self.images).__name__} has no local tokens; expected a method patches(x) -> (N, P, D) of the image "
                "encoder"
            )
        found: Any = self.images
        return _unit(found.patches(x))

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Return the token ids (K, T) of prompts, on the device of the pair.

        Raises:
            TypeError: the prompts are one string, or not all are strings; or the text encoder returned no token ids.
            ValueError: there are none.
        """
        texts: Any = self.texts
        given = list(prompts)
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in given):
            raise TypeError(
                f"expected a list of texts, got {reprlib.repr(prompts)}; one text is a list too: [text]"
            )
        if not given:
            raise ValueError("expected one text or more, got none")
        ids = texts.tokenize(given)
        if not isinstance(ids, Tensor) or ids.dim() != 2 or len(ids) != len(given) or ids.is_floating_point():
            got = f"shape {tuple(ids.shape)}, {ids.dtype}" if isinstance(ids, Tensor) else type(ids).__name__
            raise TypeError(
                f"tokenize of {type(texts).__name__} returned {got}, expected token ids ({len(given)}, T) of int64; of a "
                'batch of a tokenizer that is its entry "input_ids", with padding and return_tensors="pt"'
            )
        return ids.to(self.scale.device)

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings (K, T, E) of token ids (K, T)."""
        texts: Any = self.texts
        return texts.embed(ids)

    def encode_tokens(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Return the embeddings (..., D) of prompts given by the embeddings of their tokens, of norm 1.

        Args:
            tokens: (..., K, T, E), through which gradients flow.
            ids: (K, T).
        """
        leading = tokens.shape[:-2]
        ids = ids.expand(*leading, -1).reshape(-1, ids.shape[-1])
        flat = tokens.reshape(-1, *tokens.shape[-2:])
        return _unit(self.texts(flat, ids)).reshape(*leading, -1)

    def encode_texts(self, prompts: Sequence[str]) -> Tensor:
        """Return the embeddings (K, D) of prompts, of norm 1, without a graph."""
        with torch.no_grad():
            ids = self.tokenize(prompts)
            return torch.cat([self.encode_tokens(self.embed(part), part) for part in ids.split(CHUNK)])

    def logits(self, features: Tensor, texts: Tensor) -> Tensor:
        """Return the scaled cosines (..., N, K) of image embeddings (..., N, D) and text embeddings (..., K, D)."""
        return self.scale * features @ texts.transpose(-1, -2)


def _own_parameters(encoder: nn.Module) -> list[nn.Parameter]:
    own: Any = getattr(encoder, "own_parameters", encoder.parameters)
    return list(own())


def _unit(features: Tensor) -> Tensor:
    return F.normalize(features, dim=-1)


def _embedded(encoder: nn.Module, features: Any, n: int) -> Tensor:
    """The embeddings that an image encoder returned.

    Raises:
        ValueError: they are no tensor (N, D).
    """
    if not isinstance(features, Tensor) or features.dim() != 2 or features.shape[0] != n:
        got = f"shape {tuple(features.shape)}" if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(
            f"the image encoder {type(encoder).__name__} returned {got} for {n} images; expected embeddings ({n}, D): wrap it "
            "in a module that returns them"
        )
    return features
