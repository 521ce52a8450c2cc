"""CLIP models of open_clip and of transformers as pairs, by what both libraries promise to their users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from testtime.intake.held import Held
from testtime.vision_language.pair import ImageText

__all__ = ["open_clip_pair", "transformers_pair"]

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""Normalisation of OpenAI's CLIP, where a model does not say otherwise."""
Library = Literal["open_clip", "transformers"]


@final
class Tower(nn.Module):
    """The image encoder of a CLIP model, for images in [0, 1] of any size.

    Args:
        model: the whole model.
        library: library that it comes from.
        size: height and width that it takes, in pixels.
        mean: mean of the normalisation.
        std: standard deviation of the normalisation.
    """

    mean: Tensor
    std: Tensor
    input_range = (0.0, 1.0)

    def __init__(
        self, model: nn.Module, library: Library, size: int, mean: Sequence[float], std: Sequence[float]
    ) -> None:
        super().__init__()
        self.model, self.library, self.size = model, library, size
        for name, values in (("mean", mean), ("std", std)):
            by_channel = torch.tensor([float(v) for v in values]).view(1, -1, 1, 1)
            self.register_buffer(name, by_channel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the embeddings (N, D)."""
        model: Any = self.model
        if self.library == "open_clip":
            return model.encode_image(self._prepared(x))
        return _pooled(model.get_image_features(pixel_values=self._prepared(x)))

    def own_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the image half of the model."""
        return [p for name, p in self.model.named_parameters() if name.startswith("vis")]

    def patches(self, x: Tensor) -> Tensor:
        """Return the embeddings (N, P, D) of the patches of a vision transformer: its last tokens, projected as the pooled one.

        Raises:
            TypeError: the image encoder is no vision transformer of the library.
        """
        model: Any = self.model
        if self.library == "transformers" and hasattr(model, "visual_projection"):
            hidden = model.vision_model(pixel_values=self._prepared(x)).last_hidden_state[:, 1:]
            return model.visual_projection(model.vision_model.post_layernorm(hidden))
        visual = getattr(model, "visual", None)
        if self.library == "open_clip" and hasattr(visual, "output_tokens") and visual is not None:
            before, visual.output_tokens = visual.output_tokens, True
            try:
                _, tokens = visual(self._prepared(x))
            finally:
                visual.output_tokens = before
            return tokens if visual.proj is None else tokens @ visual.proj
        raise TypeError(
            f"{type(model).__name__} of {self.library} has no patch tokens in the space of its embeddings; expected a CLIP "
            "whose image encoder is a vision transformer"
        )

    def _prepared(self, x: Tensor) -> Tensor:
        if x.shape[-2:] != (self.size, self.size):
            x = F.interpolate(
                x, (self.size, self.size), mode="bicubic", antialias=x.dtype == torch.float32
            ).clamp(0, 1)
        return (x - self.mean) / self.std


@final
class Words(nn.Module):
    """The text encoder of a CLIP model, differentiable from the embeddings of its tokens.

    The embeddings take the place of what the model's own token embedding returns, inside the library's own forward.

    Args:
        model: the whole model.
        library: library that it comes from.
        tokenizer: function of texts that returns ids (K, T).
    """

    start = 1

    def __init__(self, model: nn.Module, library: Library, tokenizer: Callable[[list[str]], Tensor]) -> None:
        super().__init__()
        self.model, self.library, self.tokenizer = model, library, Held(tokenizer)
        self.embedding()

    def embedding(self) -> nn.Module:
        """Return the token embedding.

        Raises:
            TypeError: the model has none by the name ``token_embedding``.
        """
        for name, module in self.model.named_modules():
            if name.rpartition(".")[2] == "token_embedding":
                return module
        raise TypeError(
            f"{type(self.model).__name__} has no module token_embedding; expected a CLIP of {self.library} with its own text "
            "encoder, or write a text encoder with the interface of testtime.vision_language.TextEncoder"
        )

    def own_parameters(self) -> list[nn.Parameter]:
        """Return the parameters of the text half of the model."""
        return [p for name, p in self.model.named_parameters() if not name.startswith(("vis", "logit_"))]

    def tokenize(self, prompts: Sequence[str]) -> Tensor:
        """Return token ids (K, T)."""
        return self.tokenizer.value(list(prompts))

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings (K, T, E) of token ids (K, T)."""
        return self.embedding()(ids)

    def forward(self, tokens: Tensor, ids: Tensor) -> Tensor:
        """Return the embeddings (K, D) of prompts, from the embeddings of their tokens and their ids."""
        model: Any = self.model
        handle = self.embedding().register_forward_hook(lambda module, inputs, output: tokens)
        try:
            if self.library == "open_clip":
                return model.encode_text(ids)
            return _pooled(model.get_text_features(input_ids=ids))
        finally:
            handle.remove()


def open_clip_pair(model: nn.Module, tokenizer: Callable[..., Tensor]) -> ImageText:
    """Return the pair of a model of ``open_clip``.

    Args:
        model: first result of ``open_clip.create_model_and_transforms(name)``.
        tokenizer: result of ``open_clip.get_tokenizer(name)``.

    Raises:
        TypeError: the model has no ``encode_image``, ``encode_text``, ``logit_scale`` or token embedding.
    """
    _need(model, "open_clip", "encode_image", "encode_text", "logit_scale")
    visual: Any = getattr(model, "visual", model)
    mean, std = (getattr(visual, f"image_{name}", None) for name in ("mean", "std"))
    model = model.eval()
    towers = Tower(model, "open_clip", _side(getattr(visual, "image_size", 224)), mean or MEAN, std or STD)
    return ImageText(towers, Words(model, "open_clip", tokenizer), _scale(model)).eval()


def transformers_pair(model: nn.Module, processor: Any) -> ImageText:
    """Return the pair of a CLIP model of ``transformers``.

    Args:
        model: a ``CLIPModel``, or another with ``get_image_features`` and ``get_text_features``.
        processor: its processor, or its tokenizer alone: then images are normalised as OpenAI's CLIP has them.

    Raises:
        TypeError: the model has no such methods, no ``logit_scale`` or no token embedding.
    """
    _need(model, "transformers", "get_image_features", "get_text_features", "logit_scale")
    found: Any = model
    images = getattr(processor, "image_processor", None)
    tokenizer = getattr(processor, "tokenizer", processor)

    def tokenize(prompts: list[str]) -> Tensor:
        return tokenizer(prompts, padding=True, truncation=True, return_tensors="pt")["input_ids"]

    mean, std = (
        getattr(images, name, None) or value for name, value in (("image_mean", MEAN), ("image_std", STD))
    )
    model = model.eval()
    towers = Tower(model, "transformers", int(found.config.vision_config.image_size), mean, std)
    return ImageText(towers, Words(model, "transformers", tokenize), _scale(model)).eval()


def _need(model: nn.Module, library: str, *names: str) -> None:
    missing = [name for name in names if not hasattr(model, name)]
    if missing:
        raise TypeError(
            f"{type(model).__name__} has no {', '.join(missing)}; expected a CLIP model of {library}, or build the pair from "
            "two modules: testtime.vision_language.ImageText(images, texts, scale)"
        )


def _scale(model: Any) -> float:
    return float(model.logit_scale.detach().float().exp())


def _side(size: Any) -> int:
    return int(size if isinstance(size, int) else size[0])


def _pooled(output: Any) -> Tensor:
    """The embeddings in what ``get_image_features`` returns: a tensor, or from transformers 5 on an object that holds them."""
    return output if isinstance(output, Tensor) else output.pooler_output
